"""Checked numbers of a JSON object that somebody else wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError


@dataclass(frozen=True)
class Fields:
    """Reads numbers by key; null counts as absent.

    Every method raises UserError, which starts with ``where``, for a missing key without default and a senseless value.
    """

    values: dict[str, Any]
    where: str

    def _value(self, key: str, default: Any) -> Any:
        value = default if self.values.get(key) is None else self.values[key]
        if value is None:
            raise UserError(f"{self.where}: key {key!r} is missing")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.where}: {key} is {value!r}; it must be a whole number above 0")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._value(key, default)
        if not is_positive(value):
            raise UserError(f"{self.where}: {key} is {value!r}; it must be a number above 0")
        return float(value)


def is_positive(value: Any) -> bool:
    """Whether a JSON value is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
