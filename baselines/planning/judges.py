"""What judging a profile's answers takes: tokens that judges read, and the dollars of endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from baselines.planning.cost import Planner

JUDGE_TOKENS = 260  # of a judge's rubric and marks (tasks.stages.judge)
JUDGMENT_TOKENS = 2


@dataclass(frozen=True)
class PlannedJudge:
    """What a judge reads of a profile's answers, in tokens, and its dollars (None: no price)."""

    name: str
    model: str
    answers: int
    tokens: float
    dollars: float | None

    @property
    def words(self) -> str:
        """On a line."""
        dollars = "no price" if self.dollars is None else f"${self.dollars:,.2f}"
        return f"Judge {self.name} ({self.model}): {self.answers:,} answers, {self.tokens:,.0f} tokens, {dollars}"


def judging(planner: Planner, judge: str) -> PlannedJudge:
    """All answers of a profile, put to a judge once."""
    experiment, profile = planner.experiment, planner.experiment.profile
    cells = product(profile.systems, profile.tasks, profile.contexts, profile.seeds)
    each = [planner.workload(system, task, context) for system, task, context, _ in cells]
    answers = sum(work.questions for work in each)
    read = sum(work.questions * (JUDGE_TOKENS + work.question_tokens + 2 * work.answer_tokens) for work in each)
    entry = experiment.judges[judge]
    return PlannedJudge(judge, entry.model, answers, read, price(vars(entry), read, JUDGMENT_TOKENS * answers))


def price(entry: dict[str, Any], read: float, written: float) -> float | None:
    """Dollars of tokens at an endpoint; None where its entry names no price."""
    if entry.get("input_usd") is None:
        return None
    return (read * entry["input_usd"] + written * (entry.get("output_usd") or 0.0)) / 1e6
