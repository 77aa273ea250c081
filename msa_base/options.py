"""Numbers on a command line, each with its range: one outside it is refused before anything runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from msa_base.errors import UserError

LARGE = 2**31 - 1  # of what has no bound of its own


def add_number(
    parser: argparse.ArgumentParser,
    name: str,
    default: float | None,
    told: str,
    least: float = 1,
    most: float = LARGE,
    kind: type[int] | type[float] = int,
) -> None:
    """Add an option that takes one number from ``least`` to ``most``; another value is a UserError that names it."""

    def number(text: str) -> float:
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            value = None
        if value is None or not least <= value <= most:  # nan is in no range
            noun = "whole number" if kind is int else "number"
            raise UserError(f"{name} {text[:40]}: must be a {noun} from {least:,} to {most:,}")
        return value

    parser.add_argument(name, type=number, default=default, help=told)


def add_threads(parser: argparse.ArgumentParser, default: int | None, told: str, least: int = 1) -> None:
    add_number(parser, "--threads", default, told, least, most=1024)


def given_path(text: str) -> Path:
    """The type of an option that names a file or a directory: an empty one would silently mean the current directory.

    Raises:
        UserError: it is empty, as an unset variable of a shell leaves it.
    """
    if not text.strip():
        raise UserError("an option or argument names an empty path (is a variable of the shell unset?); name a path")
    return Path(text)
