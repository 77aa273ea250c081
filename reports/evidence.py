"""Everything that a profile's results tree holds so far: scores, records of runs, training logs, predictions.

A cell is a system at a task and a context. Its seeds are pooled: the value of a question is its mean over them, so that
questions stay the unit of every interval, in the heads that they share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from msa_base.errors import UserError
from msa_base.load import Experiment, load
from msa_base.paths import SEAL, Paths
from msa_base.records import Answer
from msa_base.seal import MEND, Seal, value_digest
from msa_base.specs import Role
from msa_base.stage_records import Floor, IndexRecord, LatencyRecord, RunRecord, TuningRecord, ViewRecord
from msa_base.tables import read_arrow, read_predictions, read_table

NOT_MEASURED = "not measured"
ACCURACY = "accuracy"  # the metric of every task, under whatever name it is computed
RECALL = "recall@16"  # of the gold documents, `{RECALL}/{stage}` for a layer or a retriever
LATENCY = "latency"  # `{LATENCY}/{cost}`: what was measured in a process of its own
NEEDLE_MEAN = "niah_prose_mean"
NEEDLE_TASKS = 8

Side = tuple[str, str]  # a system at a context


class Paired(NamedTuple):
    """Values of the same questions on two sides, an array [questions, 2] a task, and the head of each question."""

    tables: list[np.ndarray]
    heads: list[list[str]]


class CellKey(NamedTuple):
    """A system at a task and a context."""

    system: str
    task: str
    context: str


@dataclass(frozen=True)
class SummaryRow:
    """A row of summary.parquet: one metric of one cell. What was not measured is None, and ``status`` says why."""

    system: str
    task: str
    context: str
    context_tokens: int
    metric: str
    unit: str
    n: int
    failures: int | None
    value: float | None
    low: float | None
    high: float | None
    status: str


@dataclass
class Evidence:
    """The measured side of a report. What a stage has not written yet is absent."""

    experiment: Experiment
    paths: Paths
    runs: dict[CellKey, list[RunRecord]] = field(default_factory=dict)
    latency: dict[str, LatencyRecord] = field(default_factory=dict)
    training: dict[str, pd.DataFrame] = field(default_factory=dict)
    tuning: dict[str, TuningRecord] = field(default_factory=dict)
    _scores: dict[tuple[CellKey, str], pd.Series] = field(default_factory=dict)
    _heads: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    @classmethod
    def named(cls, chosen: argparse.Namespace) -> Evidence:
        """The tree that a command's options name; a UserError where there is no such directory of results."""
        if not chosen.results.is_dir():
            mend = f"name another --results, or run: make reproduce PROFILE={chosen.profile}"
            raise UserError(f"--results {chosen.results}: no such directory; {mend}")
        return cls.read(chosen.profile, chosen.results, chosen.configs)

    @classmethod
    def read(cls, profile: str, results: Path | str = "results", configs: Path | str = "configs") -> Evidence:
        """Read the tree of a profile; a UserError names a file that is wrong or not as its stage left it."""
        experiment = load(profile, configs)
        evidence = cls(experiment, Paths.of(profile, results))
        for cell, seed in product(evidence.cells(), experiment.profile.seeds):
            if (path := evidence.paths.cell(*cell, seed) / "run.json").exists():
                evidence.runs.setdefault(cell, []).append(RunRecord.open(path))
        evidence._scores = _pooled([read_arrow("scores", path) for path in evidence.scored()])
        for system in experiment.profile.systems:
            if (path := evidence.paths.latency(system)).exists():
                evidence.latency[system] = LatencyRecord.open(path)
            if (path := evidence.paths.tuning(system)).exists():
                evidence.tuning[system] = TuningRecord.open(path)
        for model in experiment.profile.models:
            if (path := evidence.paths.model(model) / "train.jsonl").exists():
                Seal.open(path.with_name(SEAL))
                evidence.training[model] = read_training(path)
        return evidence

    def scored(self) -> Iterator[Path]:
        """The scores that there are; a UserError for scores that changed or are of other answers than those beside."""
        for system, task in product(self.experiment.profile.systems, self.experiment.profile.tasks):
            directory = self.paths.task(system, task)
            if not (directory / "scores.json").exists():
                continue
            seal = Seal.open(directory / "scores.json")
            for context, seed in product(self.experiment.profile.contexts, self.experiment.profile.seeds):
                cell = self.paths.cell(system, task, context, seed)
                if f"{context}/seed{seed}/scores.parquet" in seal.files:
                    answers = value_digest(RunRecord.open(cell / "run.json").answers)
                    if seal.made_from.data.get(str(cell.relative_to(self.paths.root))) != answers:
                        raise UserError(f"{cell / 'scores.parquet'}: is of other answers than those beside it; {MEND}")
                    yield cell / "scores.parquet"

    def cells(self) -> list[CellKey]:
        """Every cell of the profile, run or not, in the profile's order."""
        profile = self.experiment.profile
        return [CellKey(*parts) for parts in product(profile.systems, profile.tasks, profile.contexts)]

    def runs_of_systems(self) -> dict[str, list[RunRecord]]:
        """The runs of each system that has any, over its cells."""
        found: dict[str, list[RunRecord]] = {}
        for cell, runs in self.runs.items():
            found.setdefault(cell.system, []).extend(runs)
        return found

    @property
    def contexts(self) -> list[str]:
        """The profile's contexts, as it orders them."""
        return self.experiment.profile.contexts

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the profile's contexts."""
        return {name: self.experiment.contexts[name] for name in self.contexts}

    @property
    def ends(self) -> list[str]:
        """The first and the last context of the profile; one where it has one."""
        return list(dict.fromkeys((self.contexts[0], self.contexts[-1])))

    @property
    def systems(self) -> list[str]:
        """The profile's systems, as it orders them."""
        return self.experiment.profile.systems

    def build_s(self, system: str) -> float | None:
        """Seconds that the system's indexes took, over the corpora of its tasks; None where it has none."""
        known = [record.build_s for record in self.indexes([system], self.experiment.profile.tasks)]
        return sum(seconds or 0.0 for seconds in known) if known else None

    def indexes(self, systems: Iterable[str], tasks: Iterable[str]) -> list[IndexRecord]:
        """The indexes that some systems search at some tasks, each once; those that were not built yet are absent."""
        used = {self.experiment.systems[system].index for system in systems} - {None}
        corpora = {self.experiment.tasks[task].corpus for task in tasks}
        return [self._built[pair] for pair in product(sorted(used), sorted(corpora)) if pair in self._built]

    @cached_property
    def _built(self) -> dict[tuple[str, str], IndexRecord]:
        """Every index that is there, by its name and corpus."""
        pairs = product(self.experiment.indexes, self.experiment.corpora)
        paths = {pair: self.paths.index(*pair) / "index.json" for pair in pairs}
        return {pair: IndexRecord.open(path) for pair, path in paths.items() if path.exists()}

    def questions(self, cell: CellKey) -> int:
        """How many questions a cell asks: the task's, or the system's cap."""
        cap = self.experiment.systems[cell.system].max_questions
        asked = self.experiment.profile.tasks[cell.task]
        return asked if cap is None else min(cap, asked)

    def tasks_of_role(self, role: Role) -> list[str]:
        """The profile's tasks of one role, in the profile's order."""
        return [task for task in self.experiment.profile.tasks if self.experiment.tasks[task].role == role]

    @cached_property
    def needle_tasks(self) -> list[str]:
        """The needle tasks if the profile has all eight, else none: fewer have no mean that compares to the paper's."""
        found = self.tasks_of_role("needles")
        return found if len(found) == NEEDLE_TASKS else []

    def members(self, task: str) -> list[str]:
        """The tasks that a name stands for: the eight needle tasks for their mean, else itself."""
        return self.needle_tasks if task == NEEDLE_MEAN else [task]

    @property
    def compared_tasks(self) -> list[str]:
        """The tasks of the short tables: the mean of the needle tasks in place of the eight, then the others."""
        mean = [NEEDLE_MEAN] if self.needle_tasks else []
        return [*mean, *(task for task in self.experiment.profile.tasks if task not in self.needle_tasks)]

    def values(self, cell: CellKey, metric: str = ACCURACY) -> pd.Series:
        """Value of each question (index: question_id), nan where it is missing; empty where nothing was measured."""
        return self._scores.get((cell, metric), pd.Series(dtype=float))

    def metrics(self, cell: CellKey) -> list[str]:
        """The metrics scored in a cell."""
        return sorted(metric for scored, metric in self._scores if scored == cell)

    def status(self, cell: CellKey) -> str:
        """``ok``, an expected failure, or ``not measured``; of several seeds the first that is not ok."""
        statuses: list[str] = [run.status for run in self.runs.get(cell, [])]
        if len(statuses) < len(self.experiment.profile.seeds):
            statuses.append(NOT_MEASURED)
        status = next((status for status in statuses if status != "ok"), "ok")
        # between the stages run and score a cell has answers and no numbers yet
        return NOT_MEASURED if status == "ok" and not self.values(cell).size else status

    def paired(self, task: str, first: Side, second: Side, metric: str = ACCURACY) -> pd.DataFrame | None:
        """Values of the same questions on two sides, one column each (index: question_id); None where a side has none.

        Two sides with values that share no question are a UserError.
        """
        sides = [self.values(CellKey(system, task, context), metric).dropna() for system, context in (first, second)]
        if not all(side.size for side in sides):
            return None
        both = pd.concat(sides, axis=1, join="inner", keys=["first", "second"])
        if both.empty:
            names = " and ".join(str(self.paths.root / system / task / context) for system, context in (first, second))
            raise UserError(f"{names}: no question_id in common; prepare and score the task again")
        return both

    def pairs(self, tasks: list[str], first: Side, second: Side, metric: str = ACCURACY) -> Paired | None:
        """:meth:`paired` of several tasks with their heads; None where a side lacks a task, or there are no tasks."""
        found = {task: self.paired(task, first, second, metric) for task in tasks}
        if not found or any(frame is None for frame in found.values()):
            return None
        heads = [self.heads(task, first[1], frame.index) for task, frame in found.items()]
        return Paired([frame.to_numpy() for frame in found.values()], heads)

    @cached_property
    def summary(self) -> dict[tuple[CellKey, str], SummaryRow]:
        """Rows of summary.parquet by cell and metric; a UserError where it is not there yet, or broken."""
        rows = [SummaryRow(**row) for row in read_table("summary", self.paths.summary)]
        Seal.open(self.paths.summary.with_suffix(".json"))
        return {(CellKey(row.system, row.task, row.context), row.metric): row for row in rows}

    def row(self, cell: CellKey, metric: str = ACCURACY) -> SummaryRow | None:
        """The summary's row of a cell and metric; None where it has none."""
        return self.summary.get((cell, metric))

    def point(self, cell: CellKey, metric: str = ACCURACY) -> SummaryRow | None:
        """The summary's row if it holds a value, else None."""
        row = self.row(cell, metric)
        return row if row and row.value is not None else None

    def points(self, system: str, task: str, metric: str = ACCURACY) -> list[SummaryRow]:
        """The summary's rows with a value, over the profile's contexts."""
        found = [self.point(CellKey(system, task, context), metric) for context in self.contexts]
        return [row for row in found if row]

    def recalls(self, system: str, task: str) -> list[str]:
        """The summary's recall@16 metrics of a system at a task: ``recall@16/{stage}``, then ``.../round2/{stage}``.

        A later round has values for the questions that came to it, and only those.
        """
        metrics = {metric for cell, metric in self.summary if cell[:2] == (system, task)}
        found = [metric for metric in metrics if metric.startswith(f"{RECALL}/")]
        return sorted(found, key=lambda metric: (metric.count("/"), metric))

    def title(self, name: str) -> str:
        """The title of a system or a task."""
        if name == NEEDLE_MEAN:
            return "Needles, mean of eight"
        systems, tasks = self.experiment.systems, self.experiment.tasks
        return systems[name].title if name in systems else tasks[name].title

    def predictions(self, cell: CellKey) -> list[Answer]:
        """All answers of a cell, over its seeds; empty where it was not run."""
        paths = [self.paths.cell(*cell, seed) / "predictions.jsonl" for seed in self.experiment.profile.seeds]
        return [answer for path in paths if path.exists() for answer in read_predictions(path)]

    def gold(self, task: str, context: str) -> dict[str, list[int]]:
        """Ids of the documents that hold the answer to each question; empty where the task is not prepared."""
        path = self.paths.prepared(task, context) / "gold.parquet"
        return {row["question_id"]: row["gold_doc_ids"] for row in read_table("gold", path)} if path.exists() else {}

    def heads(self, task: str, context: str, questions: Iterable[str]) -> list[str]:
        """The head (overlay) of each question; the question itself where it shares none, or none is known."""
        if (task, context) not in self._heads:
            path = self.paths.prepared(task, context) / "questions.parquet"
            rows = read_table("questions", path) if path.exists() else []
            self._heads[task, context] = {row["question_id"]: row["overlay_id"] for row in rows if row["overlay_id"]}
        known = self._heads[task, context]
        return [known.get(question, f"question {question}") for question in questions]

    def floor(self, task: str, context: str) -> Floor | None:
        """What guessing scores at a task; None where the task names no floor, or is not prepared."""
        path = self.paths.prepared(task, context) / "view.json"
        return ViewRecord.open(path).floor if path.exists() else None


def _pooled(tables: list[pa.Table]) -> dict[tuple[CellKey, str], pd.Series]:
    """One series a cell and metric: the mean of each question over the seeds."""
    if not tables:
        return {}
    frame = pa.concat_tables(tables).to_pandas()
    keys = [*CellKey._fields, "metric"]
    pooled = frame.groupby([*keys, "question_id"], sort=False, observed=True)["value"].mean()
    found = pooled.groupby(level=keys, sort=False)
    return {(CellKey(*key[:3]), key[3]): series.droplevel(keys) for key, series in found}


def read_training(path: Path) -> pd.DataFrame:
    """A training log: a row a logged step, columns as the log's keys (``seconds`` since the start, losses in nats).

    A line that is not a JSON object with ``step``, ``phase`` and ``seconds`` is a UserError.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["step"], rows[-1]["phase"], rows[-1]["seconds"]
        except (ValueError, TypeError, KeyError) as error:
            problem = f"line {number} is not a training record ({error!r})"
            raise UserError(f"{path}: {problem}; delete the model and train again") from None
    return pd.DataFrame(rows)
