"""What a results directory holds for Weights & Biases: its runs, each made of files alone.

| kind | one a | holds |
| --- | --- | --- |
| workflow | profile | stage, time left and memory, a point every few seconds (`_logs/progress.jsonl`) |
| train | model | the training curve, a point a step; the checkpoint as an artifact |
| index | index and corpus | what building took; the bank or index as an artifact |
| cell | cell | how it ended and what it took; once scored, its metrics and a table of its predictions |
| latency | system | latency and memory at each context |
| report | profile | the summary, the claims and every figure |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

from msa_base.load import Experiment
from msa_base.paths import SEAL, Paths
from msa_base.seal import Seal, file_digest, value_digest
from msa_base.specs import SystemSpec
from msa_base.stage_records import IndexRecord, LatencyRecord, RunRecord
from msa_base.stages import plain
from msa_base.tables import read_arrow, read_predictions, read_table

Kind = Literal["workflow", "train", "index", "cell", "latency", "report"]
GROWING = "train-*.jsonl"  # of an unfinished training, named by the digest of what it is made from


@dataclass(frozen=True)
class Artifact:
    """Files by their digests: a checkpoint, a bank or another index. ``seal`` says what they hold and are made from."""

    name: str
    kind: str
    path: Path
    seal: Seal


@dataclass(frozen=True)
class Content:
    """What a run shows. ``rows`` are points of its history, in order; ``numbers`` its summary."""

    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    predictions: tuple[list[str], list[list[Any]]] | None = None  # columns and rows
    made: tuple[Artifact, ...] = ()
    used: tuple[Artifact, ...] = ()


@dataclass(frozen=True)
class Source:
    """A run before it is read: its name, the files that it is made of, and how to read them.

    ``version`` tells runs of one name apart that are not the same thing: it is a digest of what the result is made
    from. A run of the same version goes on where it stopped.
    """

    name: str
    kind: Kind
    files: tuple[Path, ...]
    is_complete: bool
    read: Callable[[], Content]
    version: Callable[[], str] = lambda: ""
    tags: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of the content of its files."""
        return value_digest([file_digest(path) for path in self.files])


def sources(experiment: Experiment, paths: Paths) -> Iterator[Source]:
    """The runs that the files of a results directory make today, in the order of the workflow."""
    return Sources(experiment, paths).all()


@dataclass(frozen=True)
class Sources:
    """Finds and reads the runs of one profile."""

    experiment: Experiment
    paths: Paths

    def all(self) -> Iterator[Source]:
        """Every run whose files are there."""
        profile = self.experiment.profile
        progress = self.paths.root / "_logs" / "progress.jsonl"
        if progress.exists():
            yield Source("workflow", "workflow", (progress,), False, partial(self.workflow, progress))
        for model in profile.models:
            yield from self.trainings(model)
        for seal in sorted((self.paths.root / "_indexes").glob("*/*/index.json")):
            index, corpus = seal.parent.parts[-2:]
            if index in self.experiment.indexes:
                read, version = partial(self.index, seal), partial(_version, IndexRecord, seal)
                yield Source(f"index/{index}/{corpus}", "index", (seal,), True, read, version, (index, corpus))
        for system, task in product(profile.systems, profile.tasks):
            if self.paths.task(system, task).is_dir():
                for context, seed in product(profile.contexts, profile.seeds):
                    yield from self.cells(system, task, context, seed)
        for system in profile.systems:
            if (seal := self.paths.latency(system)).exists():
                read, version = (
                    (lambda seal=seal: self.latency(seal)),
                    (lambda seal=seal: _version(LatencyRecord, seal)),
                )
                yield Source(f"latency/{system}", "latency", (seal,), True, read, version, (system,))
        if (seal := self.paths.summary.with_suffix(".json")).exists() and self.paths.summary.exists():
            yield Source("report", "report", (seal, self.paths.summary), True, lambda: Content(self.config()))

    def config(self, **more: Any) -> dict[str, Any]:
        """What every run's configuration names."""
        return {"profile": self.experiment.name, "title": self.experiment.profile.title, **more}

    def workflow(self, path: Path) -> Content:
        """Progress, a point a line; the lists of running jobs become one text."""
        rows = [{**row, "running": "; ".join(row.get("running", []))} for row in _lines(path)]
        return Content(self.config(**plain(self.experiment.profile)), rows)

    def trainings(self, model: str) -> Iterator[Source]:
        """The curve of a model: finished, or as far as it has come."""
        directory = self.paths.model(model)
        seal, log = directory / SEAL, directory / "train.jsonl"
        if log.exists() and seal.exists():
            read, version = partial(self.training, model, log, seal), partial(_version, Seal, seal)
            yield Source(f"train/{model}", "train", (log, seal), True, read, version, (model,))
            return
        for log in sorted(directory.with_name(f".{model}.resume").glob(GROWING)):
            read, version = partial(self.training, model, log), partial(str, log.stem.removeprefix("train-"))
            yield Source(f"train/{model}", "train", (log,), False, read, version, (model,))

    def training(self, model: str, log: Path, seal: Path | None = None) -> Content:
        """The points of a training log, and once it has ended the checkpoint and what it came from."""
        spec = self.experiment.models[model]
        entry = {"model": model, "entry": plain(spec)}
        if seal is None:
            return Content(self.config(**entry), _lines(log))
        made = Seal.open(seal)
        parents = (self.checkpoint(spec.after),) if spec.after else ()
        config = self.config(**entry, parameters=parameters(seal.parent), made_from=made.made_from.model_dump())
        used = tuple(parent for parent in parents if parent)
        return Content(config, _lines(log), made=(self.artifact(model, "checkpoint", seal, made),), used=used)

    def index(self, path: Path) -> Content:
        """An index: what it took, and its files."""
        record = IndexRecord.open(path)
        spec, corpus = self.experiment.indexes[record.index], record.corpus
        config = self.config(index=record.index, corpus=corpus, entry=plain(spec), **self.models([spec.model]))
        numbers = _numbers(record.model_dump(exclude={"files", "made_from", "hardware", "versions"}))
        made = (self.artifact(f"{record.index}-{corpus}", "index", path, record),) if record.status == "ok" else ()
        used = self.checkpoints([spec.model])
        return Content({**config, **_provenance(record)}, numbers=numbers, made=made, used=used)

    def cells(self, system: str, task: str, context: str, seed: int) -> Iterator[Source]:
        """A cell that has ended; it is complete once it is scored, or has nothing to score."""
        cell = self.paths.cell(system, task, context, seed)
        record, scores = cell / "run.json", cell / "scores.parquet"
        if not record.exists():
            return
        is_scored = scores.exists()
        files = (record, scores) if is_scored else (record,)
        is_complete = is_scored or not (cell / "predictions.jsonl").exists()
        yield Source(
            f"{system}/{task}/{context}/seed{seed}",
            "cell",
            files,
            is_complete,
            partial(self.cell, record, scores if is_scored else None),
            partial(_version, RunRecord, record),
            (system, task, context, f"seed{seed}"),
        )

    def cell(self, path: Path, scores: Path | None) -> Content:
        """How a cell ended; its metrics and a table of its answers beside gold, once it is scored."""
        record = RunRecord.open(path)
        spec = self.experiment.systems[record.system]
        config = self.config(
            **{key: getattr(record, key) for key in ("system", "task", "context", "context_tokens", "seed")},
            entry=plain(spec),
            task_entry=plain(self.experiment.tasks[record.task]),
            **({"index_entry": plain(self.experiment.indexes[spec.index])} if spec.index else {}),
            **self.models(self.models_of(spec)),
            **_provenance(record),
        )
        taken = record.model_dump(exclude={"files", "made_from", "hardware", "versions", *config})
        numbers, table = _numbers(taken), None
        if scores is not None:
            values = _scores(scores)
            for metric in sorted({metric for found in values.values() for metric in found}):
                known = [found[metric] for found in values.values() if found.get(metric) is not None]
                if known:
                    numbers[metric] = math.fsum(known) / len(known)
                if len(known) < len(values):
                    numbers[f"missing/{metric}"] = len(values) - len(known)
            table = self.predictions(record, path.with_name("predictions.jsonl"), values)
        return Content(config, [], numbers, table, (), self.inputs(spec, record.task))

    def predictions(
        self, record: RunRecord, path: Path, values: dict[str, dict[str, float | None]]
    ) -> tuple[list[str], list[list[Any]]]:
        """The answers of a cell beside question, gold and metrics: columns and rows."""
        prepared = self.paths.prepared(record.task, record.context)
        asked = {row["question_id"]: row for row in read_table("questions", prepared / "questions.parquet")}
        gold = {row["question_id"]: row for row in read_table("gold", prepared / "gold.parquet")}
        metrics = sorted({metric for found in values.values() for metric in found})
        rows = []
        for answer in read_predictions(path):
            name = answer.question_id
            said = {key: value for key, value in asdict(answer).items() if key not in ("question_id", "prompt")}
            row = {
                "question_id": name,
                "question": asked[name]["text"],
                "answers": gold[name]["answers"],
                **{metric: values.get(name, {}).get(metric) for metric in metrics},
                "gold_doc_ids": gold[name]["gold_doc_ids"],
                **said,
            }
            rows.append(
                {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()}
            )
        columns = list(rows[0]) if rows else ["question_id"]
        return columns, [[row[column] for column in columns] for row in rows]

    def latency(self, path: Path) -> Content:
        """The latency of a system, numbers by context."""
        record = LatencyRecord.open(path)
        entry = plain(self.experiment.systems[record.system])
        numbers = _numbers({name: context.model_dump() for name, context in record.contexts.items()})
        config = self.config(system=record.system, task=record.task, entry=entry, **_provenance(record))
        return Content(config, [], numbers)

    def models_of(self, spec: SystemSpec) -> list[str | None]:
        """The models that a system and its index open."""
        return [spec.model, spec.reranker, self.experiment.indexes[spec.index].model if spec.index else None]

    def models(self, names: list[str | None]) -> dict[str, Any]:
        """Entry and number of parameters of some models, as configuration."""
        known = list(dict.fromkeys(name for name in names if name))
        entries = {
            name: {**plain(self.experiment.models[name]), "parameters": parameters(self.paths.model(name))}
            for name in known
        }
        return {"models": entries} if entries else {}

    def inputs(self, spec: SystemSpec, task: str) -> tuple[Artifact, ...]:
        """The checkpoints and the index that a system reads at a task."""
        found = self.checkpoints(self.models_of(spec))
        if spec.index:
            corpus = self.experiment.tasks[task].corpus
            path = self.paths.index(spec.index, corpus) / "index.json"
            if path.exists() and (record := IndexRecord.read(path)).status == "ok":
                found += (self.artifact(f"{spec.index}-{corpus}", "index", path, record),)
        return found

    def checkpoints(self, names: list[str | None]) -> tuple[Artifact, ...]:
        """The checkpoints of some models, each once."""
        found = [self.checkpoint(name) for name in dict.fromkeys(names) if name]
        return tuple(artifact for artifact in found if artifact)

    def checkpoint(self, model: str) -> Artifact | None:
        """A model's files; None of one that lives elsewhere."""
        path = self.paths.model(model) / SEAL
        seal = Seal.read(path) if path.exists() else None
        has_weights = seal is not None and any(name.endswith(".safetensors") for name in seal.files)
        return self.artifact(model, "checkpoint", path, seal) if seal and has_weights else None

    def artifact(self, name: str, kind: str, path: Path, seal: Seal) -> Artifact:
        return Artifact(f"{self.experiment.name}-{name}", kind, path, seal)


def parameters(directory: Path) -> int | None:
    """The parameters of a checkpoint, by the shapes of its tensors; None where it has no weights here."""
    from safetensors import safe_open

    shards = sorted(directory.glob("*.safetensors"))
    total = 0
    for shard in shards:
        with safe_open(shard, "np") as tensors:
            total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return total if shards else None


def _version(kind: type[Seal], path: Path) -> str:
    return kind.read(path).made_from.digest


def _provenance(record: Any) -> dict[str, Any]:
    """Machine, versions and digests of a computed record, as configuration."""
    return record.model_dump(include={"made_from", "hardware", "versions", "threads"})


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that may be growing; half a line at its end, or left in it by a kill, is no line."""
    rows = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append({key: value for key, value in row.items() if value is not None and value == value})
    return rows


def _numbers(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under one name each, joined by slashes; what is null, or a list, is left out."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= _numbers(item, f"{prefix}{key}/")
        elif isinstance(item, int | float | str):
            found[f"{prefix}{key}"] = item
    return found


def _scores(path: Path) -> dict[str, dict[str, float | None]]:
    """The values of each question by metric."""
    found: dict[str, dict[str, float | None]] = {}
    for row in read_arrow("scores", path).to_pylist():
        found.setdefault(row["question_id"], {})[row["metric"]] = row["value"]
    return found
