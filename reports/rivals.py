"""Who stands beside MSA: the ceiling (gold documents given), the floor (no memory), and the best of the others."""

from __future__ import annotations

from dataclasses import dataclass

from reports.evidence import ACCURACY, Evidence


@dataclass(frozen=True)
class Contenders:
    """The systems that MSA is read against at one task; None where there is none.

    ``rival`` is neither ceiling nor floor nor a variant of MSA, and has the highest score at ``context``, the largest
    at which MSA has one: the choice of the best among many favours the rival, never MSA.
    """

    context: str | None = None
    rival: str | None = None
    ceiling: str | None = None
    floor: str | None = None
    rival_title: str = ""

    @classmethod
    def of(cls, evidence: Evidence, ours: str, task: str, metric: str = ACCURACY) -> Contenders:
        """The field of a task, by one metric."""
        specs, systems = evidence.experiment.systems, evidence.systems
        ceiling = next((name for name in systems if specs[name].reads_gold), None)
        floor = next((name for name in systems if specs[name].kind == "closed_book"), None)
        kind = specs[ours].kind if ours in specs else None
        others = [name for name in systems if name not in (ours, ceiling, floor) and specs[name].kind != kind]
        own = evidence.points(ours, task, metric) if ours in systems else []
        measured = own or [row for name in others for row in evidence.points(name, task, metric)]
        if not measured:
            return cls(None, None, ceiling, floor)
        context = max(measured, key=lambda row: row.context_tokens).context
        scores = {
            name: row.value
            for name in others
            if not specs[name].reads_gold
            for row in evidence.points(name, task, metric)
            if row.context == context
        }
        rival = max(scores, key=scores.__getitem__, default=None)
        return cls(context, rival, ceiling, floor, evidence.title(rival) if rival else "")


def in_order(evidence: Evidence, ours: str) -> list[str]:
    """The profile's systems as figures name them: MSA, its variants, the others, ceiling and floor."""
    specs = evidence.experiment.systems
    kind = specs[ours].kind if ours in specs else None

    def place(name: str) -> int:
        outside = specs[name].reads_gold or specs[name].kind == "closed_book"
        return 0 if name == ours else 3 if outside else 1 if specs[name].kind == kind else 2

    return sorted(evidence.systems, key=place)
