"""The level of intervals that are asked together: a longer list of claims decides no more of them by chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.statistics import LEVEL


def adjusted_level(decided: Sequence[Callable[[float], bool]]) -> float:
    """The level for the intervals of a family, each with a test whether its interval of a level decides something.

    With R of m chosen because they decide, intervals of 1 - (1 - ``LEVEL``) R / m keep the share of wrong ones among
    them (the false coverage rate) below 1 - ``LEVEL``, if the m are independent or positively dependent (Benjamini and
    Yekutieli 2005). R is the largest number of which as many decide at its own level; at least one.
    """
    chosen = family = len(decided)
    while chosen > 1:
        count = sum(decides(1 - (1 - LEVEL) * chosen / family) for decides in decided)
        if count >= chosen:
            break
        chosen = count
    return 1 - (1 - LEVEL) * max(chosen, 1) / max(family, 1)
