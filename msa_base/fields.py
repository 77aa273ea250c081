"""Checked numbers of a JSON object that somebody else wrote."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from msa_base.errors import UserError, shown

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Fields:
    """Reads numbers by key; null counts as absent.

    Every method raises UserError, which starts with ``where``, for a missing key without default and a senseless value.
    """

    values: dict[str, Any]
    where: str

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0, of 31 bits at most."""
        return self._checked(key, default, int, LARGEST, "whole number")

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        return float(self._checked(key, default, int | float, sys.float_info.max, "number"))

    def _checked(self, key: str, default: Any, kind: Any, most: float, noun: str) -> Any:
        value = default if self.values.get(key) is None else self.values[key]
        if value is None:
            raise UserError(f"{self.where}: key {key!r} is missing")
        if not (isinstance(value, kind) and is_positive(value, most)):
            raise UserError(f"{self.where}: {key} is {shown(value)}; it must be a {noun} above 0")
        return value


def is_positive(value: Any, most: float = sys.float_info.max) -> bool:
    """Whether a JSON value is a finite number above 0, at most ``most``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
