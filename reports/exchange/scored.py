"""A scored cell of one seed, with all that other tools want to know of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msa_base.records import Answer
from msa_base.stage_records import RunRecord
from msa_base.tables import read_predictions, read_table
from reports.evidence import CellKey, Evidence
from reports.statistics import Interval, mean_interval
from reports.summarise import POINTS


@dataclass(frozen=True)
class Scored:
    """``questions`` and ``gold`` are rows of the prepared task by question, ``scores`` values by question and metric.

    A cell that failed has no answers; the status of its ``run`` says why.
    """

    cell: CellKey
    run: RunRecord
    answers: list[Answer]
    questions: dict[str, dict[str, Any]]
    gold: dict[str, dict[str, Any]]
    scores: dict[str, dict[str, float | None]]
    intervals: dict[str, Interval]

    @property
    def name(self) -> str:
        """Task, context and seed as one name."""
        return f"{self.cell.task}_{self.cell.context}_seed{self.run.seed}"

    @property
    def metrics(self) -> list[str]:
        """Every metric of the cell, in its order."""
        return list(dict.fromkeys(metric for values in self.scores.values() for metric in values))


def scored_cells(evidence: Evidence) -> Iterator[Scored]:
    """Every cell that is scored, in the profile's order. Raises UserErrors as reading does."""
    for path in evidence.scored():
        system, task, context, seed = path.parent.relative_to(evidence.paths.root).parts
        cell = CellKey(system, task, context)
        run = next(run for run in evidence.runs[cell] if f"seed{run.seed}" == seed)
        answers = read_predictions(path.parent / "predictions.jsonl") if "predictions.jsonl" in run.files else []
        prepared = evidence.paths.prepared(task, context)
        tables = (read_table(name, prepared / f"{name}.parquet") if answers else [] for name in ("questions", "gold"))
        questions, gold = ({row["question_id"]: row for row in rows} for rows in tables)
        scores: dict[str, dict[str, float | None]] = {answer.question_id: {} for answer in answers}
        columns: dict[str, dict[str, float]] = defaultdict(dict)
        for row in read_table("scores", path):
            scores[row["question_id"]][row["metric"]] = row["value"]
            if row["value"] is not None:
                columns[row["metric"]][row["question_id"]] = row["value"]
        intervals = {
            metric: mean_interval(
                list(values.values()), POINTS.get(metric.split("/")[0], 1.0), evidence.heads(task, context, values)
            )
            for metric, values in columns.items()
        }
        yield Scored(cell, run, answers, questions, gold, scores, intervals)
