"""Why MSA's wrong answers are wrong: each is charged to the first step of the method that failed.

In order: ``malformed`` (the answer's status is not ok), ``retrieval`` (a gold document was routed to by no layer in any
round), ``citation`` (routed, but its id was not generated), ``reading`` (all gold documents cited, the answer still
wrong). An answer is wrong when it misses any part of the reference: accuracy below 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.records import Answer
from reports.evidence import Evidence
from reports.statistics import Interval, mean_interval

CAUSES = ("retrieval", "citation", "reading", "malformed")


@dataclass(frozen=True)
class Diagnosis:
    """Counts of answers of one cell; ``right`` and the causes sum to ``n``, ``statuses`` splits the malformed ones."""

    task: str
    context: str
    n: int
    right: int
    causes: dict[str, int]
    statuses: dict[str, int]

    @property
    def main_cause(self) -> str:
        """The most frequent cause, or an empty string where all is right."""
        return max(CAUSES, key=lambda cause: self.causes[cause]) if self.n > self.right else ""


def cause(answer: Answer, gold: list[int]) -> str:
    """The step that a wrong answer is charged to."""
    if answer.status != "ok":
        return "malformed"
    if not set(gold) <= _routed(answer):
        return "retrieval"
    return "reading" if set(gold) <= set(answer.cited_doc_ids) else "citation"


def _routed(answer: Answer) -> set[int]:
    return {doc_id for ids in answer.routed_doc_ids.values() for doc_id in ids}


def routed_share(evidence: Evidence, system: str, task: str, context: str) -> Interval | None:
    """Interval of the share of gold documents that any layer of any round routed to; None without answers or gold."""
    gold = evidence.gold(task, context)
    answers = [answer for answer in evidence.predictions((system, task, context)) if gold.get(answer.question_id)]
    shares = [
        len(_routed(answer) & set(gold[answer.question_id])) / len(set(gold[answer.question_id])) for answer in answers
    ]
    return mean_interval(shares) if shares else None


def diagnose(evidence: Evidence, system: str, task: str, context: str) -> Diagnosis | None:
    """Charge the wrong answers of a cell to their causes; None where it has no scored answers or no gold."""
    values = evidence.values(system, task, context, "accuracy")
    answers = evidence.predictions((system, task, context))
    gold = evidence.gold(task, context)
    if not len(values) or not answers or not gold:
        return None
    causes, statuses, right = dict.fromkeys(CAUSES, 0), {}, 0
    for answer in answers:
        if values.get(answer.question_id, 0.0) >= 1:
            right += 1
            continue
        causes[cause(answer, gold.get(answer.question_id, []))] += 1
        if answer.status != "ok":
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
    return Diagnosis(task, context, len(answers), right, causes, statuses)
