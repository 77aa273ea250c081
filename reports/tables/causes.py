"""Why MSA's wrong answers are wrong: each is charged to the first step of the method that failed.

In order: ``malformed`` (the answer's status is not ok), ``retrieval`` (some gold document was routed to by no layer in
any round), ``citation`` (routed, but its id was not generated), ``reading`` (all gold documents cited, the answer still
wrong). An answer is wrong when it misses any part of the reference: accuracy below 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from msa_base.records import Answer
from reports.evidence import CellKey, Evidence
from reports.statistics import Interval, mean_interval
from reports.tables.table import Column, Table, cell_columns, plain, words

CAUSES = ("retrieval", "citation", "reading", "malformed")


@dataclass
class Diagnosis:
    """Counts of answers of one cell; ``right`` and the causes sum to ``n``, ``statuses`` splits the malformed ones."""

    n: int
    right: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def main_cause(self) -> str:
        """The most frequent cause, or an empty string where all is right."""
        return max(CAUSES, key=self.causes.__getitem__) if self.n > self.right else ""


def cause(answer: Answer, gold: list[int]) -> str:
    """The step that a wrong answer is charged to."""
    if answer.status != "ok":
        return "malformed"
    if not set(gold) <= _routed(answer):
        return "retrieval"
    return "reading" if set(gold) <= set(answer.cited_doc_ids) else "citation"


def _routed(answer: Answer) -> set[int]:
    return {doc_id for ids in answer.routed_doc_ids.values() for doc_id in ids}


def routed_share(evidence: Evidence, cell: CellKey) -> Interval | None:
    """Interval of the share of gold documents that any layer of any round routed to; None without answers or gold."""
    gold = {question: set(ids) for question, ids in evidence.gold(cell.task, cell.context).items() if ids}
    answers = [answer for answer in evidence.predictions(cell) if answer.question_id in gold]
    found = [len(_routed(answer) & gold[answer.question_id]) / len(gold[answer.question_id]) for answer in answers]
    heads = evidence.heads(cell.task, cell.context, (answer.question_id for answer in answers))
    return mean_interval(found, groups=heads) if found else None


def diagnose(evidence: Evidence, cell: CellKey) -> Diagnosis | None:
    """Charge the wrong answers of a cell to their causes; None where it has no scored answers or no gold."""
    values, answers = evidence.values(cell), evidence.predictions(cell)
    gold = evidence.gold(cell.task, cell.context)
    if not len(values) or not answers or not gold:
        return None
    found = Diagnosis(len(answers))
    for answer in answers:
        if values.get(answer.question_id, 0.0) >= 1:
            found.right += 1
            continue
        found.causes[cause(answer, gold.get(answer.question_id, []))] += 1
        if answer.status != "ok":
            found.statuses[answer.status] += 1
    return found


def failures(evidence: Evidence, ours: str) -> Table:
    """What MSA's wrong answers failed at, by task and context."""
    rows = []
    for cell in (cell for cell in evidence.cells() if cell.system == ours):
        if found := diagnose(evidence, cell):
            counts = [*(found.causes[name] for name in CAUSES), found.main_cause]
            statuses = ", ".join(f"{count} {words(status)}" for status, count in found.statuses.items())
            rows.append((cell.task, cell.context, found.n, found.right, *counts, statuses))
    columns = [*cell_columns(evidence, "task", "context"), *plain(answers="Answers", right="Right")]
    columns += [Column(name, f"{name.capitalize()} failed") for name in CAUSES[:3]]
    columns += plain(malformed="Malformed", main_cause="Main cause", statuses="Statuses")
    return Table("failures", "Which tasks fail, and at which step", columns, rows)
