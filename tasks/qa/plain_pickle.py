"""Reads pickled plain data without unpickling: a small machine that knows lists, dicts, strings, numbers and None.

The authors' benchmark files are pickles. Nothing in one can be called here, because no instruction that names, builds
or calls an object exists in this machine: each of those, and every container or value that is not plain, is an error.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import UserError

_MARK = object()
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = {"PROTO", "FRAME"}


class _Refused(Exception):
    """What makes a pickle unacceptable."""


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.actions: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self.stack.append(_MARK),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "LIST": lambda _: self.stack.append(self.marked()),
            "DICT": lambda _: self.stack.append(self.pairs({}, self.marked())),
            "APPEND": lambda _: self.extend([self.pop()]),
            "APPENDS": lambda _: self.extend(self.marked()),
            "SETITEM": lambda _: self.update([*reversed([self.pop(), self.pop()])]),
            "SETITEMS": lambda _: self.update(self.marked()),
            "MEMOIZE": lambda _: self.memo.update({len(self.memo): self.top()}),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda place: self.memo.update({place: self.top()})),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda place: self.stack.append(self.memo[place])),
        }

    def pop(self) -> Any:
        """Take the top off."""
        value = self.stack.pop()
        if value is _MARK:
            raise _Refused("a mark stands where a value should")
        return value

    def top(self) -> Any:
        """The value on top."""
        value = self.pop()
        self.stack.append(value)
        return value

    def marked(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top."""
        if not isinstance(self.top(), list):
            raise _Refused("something is appended to what is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Put keys and values into the dict on top."""
        if not isinstance(self.top(), dict):
            raise _Refused("a key is set on what is no dict")
        self.pairs(self.stack[-1], items)

    @staticmethod
    def pairs(found: dict, items: list[Any]) -> dict:
        """Fill a dict from alternating keys and values."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float):
                raise _Refused(f"a dict has a key of type {type(key).__name__}")
            found[key] = value
        return found


def loads(data: bytes, where: Path | str) -> Any:
    """The plain value in a pickle.

    Args:
        data: the pickle, any protocol.
        where: the file, for messages.

    Raises:
        UserError: anything but lists, dicts, strings, numbers, booleans and None; a value that holds itself; a cut
            or broken file; bytes after the end.
    """
    machine, stream = _Machine(), io.BytesIO(data)
    try:
        for operation, argument, _ in pickletools.genops(stream):
            name = operation.name
            if name in _VALUES:
                machine.stack.append(argument)
            elif name in _CONSTANTS:
                machine.stack.append(_CONSTANTS[name])
            elif name in machine.actions:
                machine.actions[name](argument)
            elif name == "STOP":
                break
            elif name not in _IGNORED:
                raise _Refused(f"it holds {name}, which plain data has no need of")
        value = machine.pop()
        if machine.stack or stream.read(1):
            raise _Refused("something stands behind its value")
        _check_no_cycle(value)
    except _Refused as error:
        raise UserError(f"{where}: refused: {error}; only plain lists, dicts, strings and numbers are read") from None
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, AttributeError, UnicodeError) as error:
        raise UserError(f"{where}: not a whole pickle ({error}); delete it and fetch it again") from None
    return value


def load(path: Path | str) -> Any:
    """:func:`loads` of a file."""
    return loads(Path(path).read_bytes(), path)


def _check_no_cycle(value: Any) -> None:
    done: set[int] = set()
    inside: set[int] = set()
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        item, left = stack.pop()
        if not isinstance(item, list | dict) or id(item) in done:
            continue
        if left:
            inside.discard(id(item))
            done.add(id(item))
        elif id(item) in inside:
            raise _Refused("a value holds itself")
        else:
            inside.add(id(item))
            stack.append((item, True))
            stack.extend((part, False) for part in (item.values() if isinstance(item, dict) else item))
