"""Planned time: a system of many sequential calls says beforehand that a cell would take longer than the profile allows."""

from __future__ import annotations

from time import perf_counter

from baselines.base import CellStatus


class TimeLimit:
    """The profile's limit for a cell, and the time that a cell has had.

    Args:
        limit_s: None refuses nothing.
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self.restart()

    def restart(self) -> None:
        """A new cell's time starts."""
        self._started_s = perf_counter()

    def check(self, calls_left: int, call_s: float) -> None:
        """Refuse the cell where ``calls_left`` calls of ``call_s`` seconds end behind the limit.

        Raises:
            CellStatus: `timeout`, with the estimate.
        """
        if self.limit_s is None:
            return
        planned_s = perf_counter() - self._started_s + calls_left * call_s
        if planned_s > self.limit_s:
            raise CellStatus(
                "timeout",
                f"{calls_left:,} more calls at {call_s:.3g} s each: about {planned_s:,.0f} s in all,"
                f" beyond the profile's limit of {self.limit_s:,.0f}",
            )
