"""Reads pickled plain data without unpickling: a small machine that knows lists, dicts, strings, numbers and None.

The authors' benchmark files are pickles. Nothing in one can be called here, because no instruction that names, builds
or calls an object exists in this machine: each of those, and every container or value that is not plain, is an error.
"""

from __future__ import annotations

import io
import json
import pickletools
from pathlib import Path
from typing import Any

from msa_base.errors import UserError

_MARK = object()
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = {"PROTO", "FRAME", "STOP"}


class _Refused(Exception):
    """What makes a pickle unacceptable."""


def loads(data: bytes, where: Path | str) -> Any:
    """The plain value in a pickle of any protocol; ``where`` is the file, for messages.

    Raises:
        UserError: anything but lists, dicts, strings, numbers, booleans and None; a value that holds itself; a cut
            or broken file; bytes after the end.
    """
    stream, stack, memo = io.BytesIO(data), [], {}
    try:
        for operation, argument, _ in pickletools.genops(stream):
            _do(operation.name, argument, stack, memo)
        value = _top(stack)
        if len(stack) > 1 or stream.read(1):
            raise _Refused("something stands behind its value")
        _check_no_cycle(value)
    except _Refused as error:
        raise UserError(f"{where}: refused: {error}; only plain lists, dicts, strings and numbers are read") from None
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, AttributeError, UnicodeError) as error:
        raise UserError(f"{where}: not a whole pickle ({error}); delete it and fetch it again") from None
    return value


def load(path: Path | str) -> Any:
    return loads(Path(path).read_bytes(), path)


def _do(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One instruction."""
    match name:
        case "MARK":
            stack.append(_MARK)
        case "EMPTY_LIST":
            stack.append([])
        case "EMPTY_DICT":
            stack.append({})
        case "LIST":
            stack.append(_marked(stack))
        case "DICT":
            stack.append(_filled({}, _marked(stack)))
        case "APPEND" | "APPENDS":
            items = _marked(stack) if name == "APPENDS" else [_top(stack, take=True)]
            if not isinstance(_top(stack), list):
                raise _Refused("something is appended to what is no list")
            stack[-1].extend(items)
        case "SETITEM" | "SETITEMS":
            items = _marked(stack) if name == "SETITEMS" else [_top(stack, take=True), _top(stack, take=True)][::-1]
            if not isinstance(_top(stack), dict):
                raise _Refused("a key is set on what is no dict")
            _filled(stack[-1], items)
        case "MEMOIZE" | "PUT" | "BINPUT" | "LONG_BINPUT":
            memo[len(memo) if name == "MEMOIZE" else argument] = _top(stack)
        case "GET" | "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case _ if name in _VALUES:
            stack.append(argument)
        case _ if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        case _ if name not in _IGNORED:
            raise _Refused(f"it holds {name}, which plain data has no need of")


def _top(stack: list[Any], take: bool = False) -> Any:
    """The value on top."""
    value = stack.pop() if take else stack[-1]
    if value is _MARK:
        raise _Refused("a mark stands where a value should")
    return value


def _marked(stack: list[Any]) -> list[Any]:
    """Take everything above the last mark, and the mark."""
    items: list[Any] = []
    while (value := stack.pop()) is not _MARK:
        items.append(value)
    return items[::-1]


def _filled(found: dict, items: list[Any]) -> dict:
    """A dict with more keys and values, which stand alternately."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float):
            raise _Refused(f"a dict has a key of type {type(key).__name__}")
        found[key] = value
    return found


def _check_no_cycle(value: Any) -> None:
    try:
        json.dumps(value)
    except ValueError:
        raise _Refused("a value holds itself") from None
    except RecursionError:
        raise _Refused("its values are nested too deep") from None
