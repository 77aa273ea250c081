"""Pickles of plain data are read in every protocol; everything else is an error and runs nothing."""

from __future__ import annotations

import collections
import os
import pickle
import struct

import pytest

from msa_base.errors import UserError
from tasks.qa import plain_pickle

shared = ["a passage", "深度学习"]
PLAIN = [
    {"query": "who?", "reference_list": shared, "answer": "x" * 70_000, "n": -(2**70), 3: 0.5},
    {"query": "", "reference_list": shared, "answer": "", "flags": [True, False, None], "empty": [{}, []]},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(protocol) -> None:
    assert plain_pickle.loads(pickle.dumps(PLAIN, protocol), "here") == PLAIN
    assert plain_pickle.loads(pickle.dumps("one string", protocol), "here") == "one string"


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_nothing(protocol, tmp_path) -> None:
    data = pickle.dumps([{"query": Hostile(tmp_path / "ran")}], protocol)
    with pytest.raises(UserError, match=r"data\.pkl: refused: it holds (GLOBAL|STACK_GLOBAL)"):
        plain_pickle.loads(data, "data.pkl")
    assert not (tmp_path / "ran").exists()


CYCLE = pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.BINGET + b"\0" + pickle.APPEND + pickle.STOP


@pytest.mark.parametrize(
    "data",
    [
        *(pickle.dumps(value, 4) for value in ((1, 2), {1, 2}, frozenset(), b"bytes", bytearray(b"x"), 1j, len)),
        pickle.dumps(collections.OrderedDict(a=1)),
        pickle.dumps({(1, 2): 3}),
        pickle.dumps(PLAIN)[:-1],
        pickle.dumps(PLAIN)[:200],
        pickle.dumps(PLAIN) + b"more",
        b"",
        b"not a pickle",
        pickle.STOP,
        pickle.APPEND + pickle.STOP,
        pickle.MARK + pickle.STOP,
        pickle.NONE + pickle.NONE + pickle.APPEND + pickle.STOP,
        pickle.BINGET + b"\7" + pickle.STOP,
        pickle.PERSID + b"id\n" + pickle.STOP,
        pickle.BINUNICODE8 + struct.pack("<Q", 2**62) + b"x" + pickle.STOP,
        pickle.EMPTY_LIST + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1) + pickle.NONE + pickle.STOP,
        CYCLE,
    ],
)
def test_what_is_not_plain_is_an_error(data) -> None:
    with pytest.raises(UserError, match=r"data\.pkl: (refused|not a whole pickle)"):
        plain_pickle.loads(data, "data.pkl")
