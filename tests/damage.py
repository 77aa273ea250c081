"""Damage to files, drawn by hypothesis: what disks, downloads and hands do to bytes and to JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.sampled_from([0, -1, 1, 2**31, 2**40, 2**63]),
    st.floats(), st.text(max_size=8), st.just([]), st.just({}), st.lists(st.integers(-9, 9), max_size=3),
    st.just([[[]]]), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@st.composite
def damaged(draw: Callable, whole: bytes) -> bytes:
    """The bytes after one accident, which hits the head of the file as often as all the rest."""
    last = len(whole) - 1
    place = draw(st.one_of(st.integers(0, min(last, 600)), st.integers(0, last)))
    match draw(st.sampled_from(["flip", "flips", "cut", "empty", "zeros", "insert", "remove", "end"])):
        case "flip":
            return whole[:place] + bytes([whole[place] ^ 1 << draw(st.integers(0, 7))]) + whole[place + 1 :]
        case "flips":
            new = bytearray(whole)
            for at in draw(st.lists(st.integers(0, last), min_size=2, max_size=8)):
                new[at] = draw(st.integers(0, 255))
            return bytes(new)
        case "cut":
            return whole[:place]
        case "empty":
            return b""
        case "zeros":
            size = draw(st.integers(1, 64))
            return whole[:place] + bytes(len(whole[place : place + size])) + whole[place + size :]
        case "insert":
            return whole[:place] + draw(st.binary(min_size=1, max_size=16)) + whole[place:]
        case "remove":
            return whole[:place] + whole[place + draw(st.integers(1, 64)) :]
        case _:
            return whole + draw(st.binary(min_size=1, max_size=16))


@st.composite
def edited(draw: Callable, whole: bytes) -> bytes:
    """A JSON object with one value, at any depth, made strange or removed."""
    content = json.loads(whole)
    inside: Any = content
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = draw(st.sampled_from(keys))
        if not (isinstance(inside[key], dict | list) and inside[key] and draw(st.booleans())):
            break
        inside = inside[key]
    if draw(st.booleans()):
        inside[key] = draw(STRANGE)
    else:
        del inside[key]
    return json.dumps(content).encode()
