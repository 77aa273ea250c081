"""Everything a profile's results tree holds so far, read once: scores, runs, latency, training logs, predictions.

A cell is one (system, task, context); its seeds are pooled: a question's value is its mean over them, so that questions
stay the unit of every interval.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from configs.errors import UserError
from configs.load import Experiment, load
from configs.paths import Paths
from configs.records import Answer
from configs.tables import read_arrow, read_json, read_predictions, read_table

NOT_MEASURED = "not measured"
NEEDLE_MEAN = "niah_prose_mean"
NEEDLE_KIND = "ruler"
NEEDLE_TASKS = 8

Cell = tuple[str, str, str]


@dataclass
class Evidence:
    """The measured side of a report. Whatever a stage has not written yet is simply absent."""

    experiment: Experiment
    paths: Paths
    runs: dict[Cell, list[dict[str, Any]]] = field(default_factory=dict)
    latency: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, pd.DataFrame] = field(default_factory=dict)
    tuning: dict[str, dict[str, Any]] = field(default_factory=dict)  # a search's record, by system
    _scores: dict[tuple[str, str, str, str], pd.Series] = field(default_factory=dict)

    @classmethod
    def read(cls, profile: str, results: Path | str = "results", configs: Path | str = "configs") -> Evidence:
        """Read the tree of a profile.

        Raises:
            UserError: a configuration error, or a file that is there and broken.
        """
        experiment = load(profile, configs)
        evidence = cls(experiment, Paths.of(profile, results))
        tables = []
        for cell in evidence.cells():
            for seed in experiment.profile.seeds:
                folder = evidence.paths.cell(*cell, seed)
                if (folder / "run.json").exists():
                    evidence.runs.setdefault(cell, []).append(read_json(folder / "run.json"))
                if (folder / "scores.parquet").exists():
                    tables.append(read_arrow("scores", folder / "scores.parquet"))
        evidence._scores = _pooled(tables)
        for system in experiment.profile.systems:
            if evidence.paths.latency(system).exists():
                evidence.latency[system] = read_json(evidence.paths.latency(system))
            if evidence.paths.tuning(system).exists():
                evidence.tuning[system] = read_json(evidence.paths.tuning(system))
        for model in experiment.profile.models:
            log = evidence.paths.model(model) / "train.jsonl"
            if log.exists():
                evidence.training[model] = read_training(log)
        return evidence

    def cells(self) -> list[Cell]:
        """Every cell of the profile, run or not, in the profile's order."""
        profile = self.experiment.profile
        return [
            (system, task, context)
            for system in profile.systems
            for task in profile.tasks
            for context in profile.contexts
        ]

    def build_s(self, system: str) -> float | None:
        """Seconds that the system's indexes took, over the corpora of its tasks; None where it has none."""
        profile, spec = self.experiment.profile, self.experiment.systems[system]
        corpora = {self.experiment.tasks[task].corpus for task in profile.tasks} if spec.index else set()
        records = [self.paths.index(spec.index, corpus) / "index.json" for corpus in sorted(corpora)]
        known = [read_json(path)["build_s"] for path in records if path.exists()]
        return sum(seconds or 0.0 for seconds in known) if known else None

    def questions(self, cell: Cell) -> int:
        """How many questions a cell asks: the task's, or the system's cap."""
        system, task, _ = cell
        cap = self.experiment.systems[system].max_questions
        asked = self.experiment.profile.tasks[task]
        return asked if cap is None else min(cap, asked)

    def tasks_of_kind(self, kind: str) -> list[str]:
        """The profile's tasks of one kind, in the profile's order."""
        return [task for task in self.experiment.profile.tasks if self.experiment.tasks[task].kind == kind]

    @cached_property
    def needle_tasks(self) -> list[str]:
        """The needle tasks when all eight are in the profile, else none: fewer have no mean that compares to the paper's."""
        found = self.tasks_of_kind(NEEDLE_KIND)
        return found if len(found) == NEEDLE_TASKS else []

    def members(self, task: str) -> list[str]:
        """The tasks that a name stands for: the eight needle tasks for their mean, itself otherwise."""
        return self.needle_tasks if task == NEEDLE_MEAN else [task]

    def values(self, system: str, task: str, context: str, metric: str) -> pd.Series:
        """Value of each question (index: question_id); empty where nothing was measured, nan where a value is missing."""
        return self._scores.get((system, task, context, metric), pd.Series(dtype=float))

    def metrics(self, cell: Cell) -> list[str]:
        """The metrics scored in a cell."""
        return sorted(key[3] for key in self._scores if key[:3] == cell)

    def status(self, cell: Cell) -> str:
        """``ok``, an expected failure, or ``not measured``; of several seeds the first that is not ok."""
        statuses = [run["status"] for run in self.runs.get(cell, [])]
        if len(statuses) < len(self.experiment.profile.seeds):
            statuses.append(NOT_MEASURED)
        status = next((status for status in statuses if status != "ok"), "ok")
        # between the stages run and score a cell has answers and no numbers yet
        return NOT_MEASURED if status == "ok" and not self.values(*cell, "accuracy").size else status

    def paired(self, task: str, first: tuple[str, str], second: tuple[str, str], metric: str) -> pd.DataFrame | None:
        """Values of the same questions on two sides, one column each (index: question_id); None where a side has none.

        Args:
            task: the task.
            first: (system, context) of the first column.
            second: (system, context) of the second column.
            metric: the metric of both.

        Raises:
            UserError: both sides have values but share no question.
        """
        sides = [self.values(system, task, context, metric).dropna() for system, context in (first, second)]
        if not all(side.size for side in sides):
            return None
        both = pd.concat(sides, axis=1, join="inner", keys=["first", "second"])
        if both.empty:
            names = " and ".join(str(self.paths.root / system / task / context) for system, context in (first, second))
            raise UserError(f"{names}: no question_id in common; prepare and score the task again")
        return both

    def pairs(
        self, tasks: list[str], first: tuple[str, str], second: tuple[str, str], metric: str
    ) -> list[np.ndarray] | None:
        """:meth:`paired` of several tasks, an array [questions, 2] each; None where a side lacks a task."""
        found = [self.paired(task, first, second, metric) for task in tasks]
        return None if any(frame is None for frame in found) else [frame.to_numpy() for frame in found]

    @cached_property
    def summary(self) -> dict[tuple[str, str, str, str], dict[str, Any]]:
        """Rows of summary.parquet by (system, task, context, metric).

        Raises:
            UserError: the table is not there yet, or broken.
        """
        keys = ("system", "task", "context", "metric")
        return {tuple(row[key] for key in keys): row for row in read_table("summary", self.paths.summary)}

    def point(self, system: str, task: str, context: str, metric: str = "accuracy") -> dict[str, Any] | None:
        """The summary's row when it holds a value, else None."""
        row = self.summary.get((system, task, context, metric))
        return row if row and row["value"] is not None else None

    def recalls(self, system: str, task: str) -> list[str]:
        """The summary's ``recall@16/{stage}`` metrics of a system at a task: first rounds, then ``round2/...`` and later.

        A later round has values for the questions that came to it, and only those.
        """
        found = {key[3] for key in self.summary if key[:2] == (system, task) and key[3].startswith("recall@16/")}
        return sorted(found, key=lambda metric: (metric.count("/"), metric))

    def title(self, name: str) -> str:
        """The title of a system or a task."""
        if name == NEEDLE_MEAN:
            return "Needles, mean of eight"
        experiment = self.experiment
        return experiment.systems[name].title if name in experiment.systems else experiment.tasks[name].title

    def predictions(self, cell: Cell) -> list[Answer]:
        """All answers of a cell, over its seeds; empty where it was not run."""
        paths = [self.paths.cell(*cell, seed) / "predictions.jsonl" for seed in self.experiment.profile.seeds]
        return [answer for path in paths if path.exists() for answer in read_predictions(path)]

    def gold(self, task: str, context: str) -> dict[str, list[int]]:
        """Ids of the documents that hold the answer to each question; empty where the task is not prepared."""
        path = self.paths.prepared(task, context) / "gold.parquet"
        return {row["question_id"]: row["gold_doc_ids"] for row in read_table("gold", path)} if path.exists() else {}

    def heads(self, task: str, context: str) -> dict[str, str]:
        """The head (overlay) that each question belongs to; empty where the task is not prepared."""
        path = self.paths.prepared(task, context) / "questions.parquet"
        rows = read_table("questions", path) if path.exists() else []
        return {row["question_id"]: row["overlay_id"] or "" for row in rows}


def _pooled(tables: list[pa.Table]) -> dict[tuple[str, str, str, str], pd.Series]:
    """One series a (system, task, context, metric), the mean over the seeds of each question."""
    if not tables:
        return {}
    frame = pa.concat_tables(tables).to_pandas()
    keys = ["system", "task", "context", "metric"]
    pooled = frame.groupby([*keys, "question_id"], sort=False, observed=True)["value"].mean()
    return {key: series.droplevel(keys) for key, series in pooled.groupby(level=keys, sort=False)}


def read_training(path: Path) -> pd.DataFrame:
    """A training log: one row a logged step, columns as the log's keys (``seconds`` since the start, losses in nats).

    Raises:
        UserError: a line is not a JSON object with ``step``, ``phase`` and ``seconds``.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["step"], rows[-1]["phase"], rows[-1]["seconds"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: line {number} is not a training record ({error!r}); delete the model and train again"
            ) from None
    return pd.DataFrame(rows)
