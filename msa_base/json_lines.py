"""JSON of other people's hands: strict values, and lines that end at newlines alone, each fault named by its line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msa_base.errors import UserError

BOM = b"\xef\xbb\xbf"
MAX_DIGITS = 4000  # of a whole number; the standard library refuses somewhat more


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises ValueError: it has a key twice, of which the standard library keeps the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def parse_json(text: str | bytes) -> Any:
    """One JSON value. Raises ValueError: no JSON or UTF-8, a key twice, NaN, half a character, or nested too deep."""
    if isinstance(text, bytes):
        text = text.removeprefix(BOM).decode()
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_constant, parse_int=_whole)
        if "\\ud" in text.lower():  # half of a surrogate pair can be written as an escape, and is no text
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character (a lone surrogate, {error.object[error.start]!a})") from None
    return value


def read_json_lines(path: Path | str) -> Iterator[tuple[int, Any]]:
    """(line number, value) of JSON lines in UTF-8, gzipped or not; a byte order mark and blank lines are left out.

    Raises:
        UserError: no such file, or a line that :func:`parse_json` refuses.
    """
    path = Path(path)
    for number, line in enumerate(_lines(path), start=1):
        try:
            if line.strip(b" \t\r\n").removeprefix(BOM if number == 1 else b""):
                yield number, parse_json(line if number == 1 else line.decode())
        except ValueError as error:
            mend = "write one JSON value a line, in UTF-8"
            raise UserError(f"{path}, line {number}: {error}; {mend}") from None


def _lines(path: Path) -> Iterator[bytes]:
    """Lines as bytes: those end at newlines, where text also ends at U+2028, U+0085 and others within a JSON string."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            yield from stream
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name one that is there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a whole file that can") from None
