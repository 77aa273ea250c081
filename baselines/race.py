"""One system at one task: its cells, its questions, and what every number of a cell was computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from baselines.base import Resources, System, load_module
from baselines.provenance import checkpoint_digest, code_digest, file_digest, value_digest
from configs.load import Experiment, IndexSpec, LimitsSpec, SystemSpec, check_known
from configs.paths import Paths
from configs.records import Question
from configs.tables import read_json

BATCH = 128  # questions handed to a system at a time


@dataclass(frozen=True)
class Cell:
    """One context and seed of a race; ``directory`` holds its files."""

    context: str
    seed: int
    directory: Path


@dataclass(frozen=True)
class Race:
    """A system's entry and a task's prepared data, under one profile."""

    experiment: Experiment
    paths: Paths
    system: str
    task: str
    threads: int

    def __post_init__(self) -> None:
        check_known([self.system], self.experiment.systems, "--system", Path("systems.yaml"))
        check_known([self.task], self.experiment.profile.tasks, "--task", Path(f"profiles/{self.experiment.name}.yaml"))

    @property
    def spec(self) -> SystemSpec:
        """The system's entry."""
        return self.experiment.systems[self.system]

    @property
    def index_spec(self) -> IndexSpec | None:
        """The entry of the system's index."""
        return self.experiment.indexes[self.spec.index] if self.spec.index else None

    @property
    def corpus(self) -> Path:
        """corpus.parquet of the task's tail."""
        return self.paths.corpus(self.experiment.tasks[self.task].corpus)

    @property
    def cells(self) -> list[Cell]:
        """All cells, seed by seed, contexts as the profile lists them."""
        profile = self.experiment.profile
        return [
            Cell(context, seed, self.paths.cell(self.system, self.task, context, seed))
            for seed in profile.seeds
            for context in profile.contexts
        ]

    def resources(self, seed: int) -> Resources:
        """What the system may open."""
        index_model = self.index_spec.model if self.index_spec else None
        corpus = self.experiment.tasks[self.task].corpus
        return Resources(
            model=self.paths.model(self.spec.model) if self.spec.model else None,
            index=self.paths.index(self.spec.index, corpus) if self.spec.index else None,
            index_model=self.paths.model(index_model) if index_model else None,
            threads=self.threads,
            seed=seed,
            reranker=self.paths.model(self.spec.reranker) if self.spec.reranker else None,
            cell_limit_s=cell_limit_s(LimitsSpec(**self.experiment.profile.limits)),
        )

    def open(self, seed: int, gold: Mapping[str, list[int]]) -> System:
        """Open the system; only one that ``reads_gold`` gets the gold."""
        module = load_module(self.spec.kind, f"systems.yaml: systems: {self.system}")
        extra = {"gold": gold} if self.spec.reads_gold else {}
        return module.make(self.spec, self.resources(seed), **extra)

    def view(self, cell: Cell) -> dict[str, Any]:
        """view.json of a prepared cell: its size, how its text was cut, and `unavailable` where its data are not here."""
        return read_json(self.paths.prepared(self.task, cell.context) / "view.json")

    def context_tokens(self, cell: Cell) -> int:
        """The size of a cell's memory: its context, or what a set's own memory holds."""
        return self.view(cell).get("context_tokens", self.experiment.contexts[cell.context])

    @property
    def plans_time(self) -> bool:
        """Whether the system's cells depend on the profile's limit."""
        return getattr(load_module(self.spec.kind, f"systems.yaml: systems: {self.system}"), "PLANS_TIME", False)

    @cached_property
    def system_inputs(self) -> dict[str, Any]:
        """Digests of the system's own part: entry, code, weights, index."""
        module = load_module(self.spec.kind, f"systems.yaml: systems: {self.system}")
        own = module.__name__.startswith("baselines.")
        resources = self.resources(seed=0)
        return {
            # a title changes no answer, nor does what tuning tries
            "config": value_digest(
                [asdict(replace(self.spec, title="", search={})), asdict(self.index_spec) if self.index_spec else None]
            ),
            "code": code_digest(None if own else module.__file__),
            "weights": checkpoint_digest(resources.model) if resources.model else None,
            "index": file_digest(resources.index / "index.json") if resources.index else None,
            "index_weights": checkpoint_digest(resources.index_model) if resources.index_model else None,
            "reranker_weights": checkpoint_digest(resources.reranker) if resources.reranker else None,
        }

    def inputs(self, cell: Cell) -> dict[str, Any]:
        """Digests of everything a cell's answers depend on; equal inputs mean that the cell need not run again."""
        prepared = self.paths.prepared(self.task, cell.context)
        names = [
            "questions.parquet",
            "overlays.parquet",
            "view.json",
            *(["gold.parquet"] if self.spec.reads_gold else []),
        ]
        return {
            **self.system_inputs,
            "corpus": file_digest(self.corpus),
            **{name.split(".")[0]: file_digest(prepared / name) for name in names},
            "seed": cell.seed,
            **({"cell_limit_s": self.resources(cell.seed).cell_limit_s} if self.plans_time else {}),
        }


def cell_limit_s(limits: LimitsSpec) -> float | None:
    """Seconds that a cell of sequential calls may take: the lower of the two limits that bind it."""
    hours = [limit for limit in (limits.cell_hours, limits.sequential_hours) if limit is not None]
    return min(hours) * 3600 if hours else None


def spread(questions: list[Question], count: int | None) -> list[Question]:
    """At most ``count`` questions, spread evenly over the overlays and over each overlay's questions, in file order."""
    if count is None or count >= len(questions):
        return questions
    groups: dict[str | None, list[int]] = {}
    for position, question in enumerate(questions):
        groups.setdefault(question.overlay_id, []).append(position)
    members = _evenly(list(groups.values()), min(count, len(groups)))
    shares = [count * (rank + 1) // len(members) - count * rank // len(members) for rank in range(len(members))]
    chosen = {position for group, share in zip(members, shares, strict=True) for position in _evenly(group, share)}
    # groups of unequal size may leave places free: fill them from the front
    spare = (position for position in range(len(questions)) if position not in chosen)
    while len(chosen) < count:
        chosen.add(next(spare))
    return [questions[position] for position in sorted(chosen)]


def _evenly(items: list[Any], count: int) -> list[Any]:
    count = min(count, len(items))
    return [items[rank * len(items) // count] for rank in range(count)]
