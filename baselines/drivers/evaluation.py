"""One system at one task: its cells, its questions, and what every number of a cell was computed from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from baselines.base import Plugin, Resources, System, load_plugin
from baselines.drivers.index import index_over
from baselines.drivers.provenance import computed_with, model_digests
from msa_base.load import Experiment
from msa_base.paths import Paths
from msa_base.records import Document
from msa_base.seal import MadeFrom, digest_if_there
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.stage_records import IndexRecord, ViewRecord
from msa_base.stages import Stages
from msa_base.validate import check_known


@dataclass(frozen=True)
class Cell:
    """One context and seed of an evaluation; ``directory`` holds its files."""

    context: str
    seed: int
    directory: Path


@dataclass(frozen=True)
class Evaluation:
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
        return self.experiment.systems[self.system]

    @property
    def index_spec(self) -> IndexSpec | None:
        return self.experiment.indexes[self.spec.index] if self.spec.index else None

    @property
    def corpus(self) -> Path:
        """corpus.parquet of the task's tail."""
        return self.paths.corpus(self.experiment.tasks[self.task].corpus)

    @property
    def cells(self) -> list[Cell]:
        """All cells, seed by seed, contexts as the profile lists them."""
        found = itertools.product(self.experiment.profile.seeds, self.experiment.profile.contexts)
        return [Cell(name, seed, self.paths.cell(self.system, self.task, name, seed)) for seed, name in found]

    def resources(self, seed: int) -> Resources:
        """What the system may open."""
        index_model = self.index_spec.model if self.index_spec else None
        corpus, limits = self.experiment.tasks[self.task].corpus, self.experiment.profile.limits
        hours = [limit for limit in (limits.cell_hours, limits.sequential_hours) if limit is not None]
        return Resources(
            model=self.paths.model(self.spec.model) if self.spec.model else None,
            index=self.paths.index(self.spec.index, corpus) if self.spec.index else None,
            index_model=self.paths.model(index_model) if index_model else None,
            threads=self.threads,
            seed=seed,
            reranker=self.paths.model(self.spec.reranker) if self.spec.reranker else None,
            cell_limit_s=min(hours) * 3600 if hours else None,
        )

    @contextmanager
    def resources_over(self, documents: Sequence[Document], seed: int) -> Iterator[Resources]:
        """What the system may open, its index built over ``documents`` for the time of the block."""
        resources, spec = self.resources(seed), self.index_spec
        if spec is None:
            yield resources
        else:
            with index_over(documents, spec, resources.index_model, self.threads) as index:
                yield replace(resources, index=index)

    def open(self, seed: int, gold: Mapping[str, list[int]]) -> System:
        """Open the system; only one that ``reads_gold`` gets the gold."""
        return self.plugin.open(self.spec, self.resources(seed), gold)

    def view(self, cell: Cell) -> ViewRecord:
        """view.json of a prepared cell: its size, how its text was cut, and why its data are not here, if so."""
        return ViewRecord.open(self.paths.prepared(self.task, cell.context) / "view.json")

    @cached_property
    def index_record(self) -> IndexRecord | None:
        """index.json of the system's index, or None."""
        directory = self.resources(seed=0).index
        return IndexRecord.open(directory / "index.json") if directory else None

    @property
    def described(self) -> dict[str, Any]:
        """What the record of a cell or of its latency says of the evaluation."""
        named = {"profile": self.experiment.name, "system": self.system, "task": self.task, "threads": self.threads}
        return named | computed_with()

    @cached_property
    def plugin(self) -> Plugin:
        return load_plugin(self.spec.kind, f"systems.yaml: systems: {self.system}")

    def refused_contexts(self, questions: int | None = None) -> dict[str, tuple[str, str]]:
        """Status and reason by context of the cells that the plan says cannot run here (baselines.planning.cost).

        Drivers ask in a process of its own: what planning imports and reads is no system's memory or time.
        """
        from baselines.planning.cost import refused_contexts

        return refused_contexts(self.experiment, self.paths, self.system, self.task, questions)

    @cached_property
    def _opened(self) -> dict[str, Any]:
        """Digests of the models and the index that the system opens; of an index its files, not its timings."""
        found: dict[str, Any] = model_digests(self.resources(seed=0))
        if self.index_record is not None:
            files = {name: file.sha256 for name, file in self.index_record.files.items()}
            found[f"_indexes/{self.spec.index}"] = [self.index_record.status, files]
        return found

    def made_from(self, cell: Cell) -> MadeFrom:
        """All that a cell's answers depend on; while it stays, the cell is not run again."""
        prepared = self.paths.prepared(self.task, cell.context)
        names = ["questions", "overlays", *(["gold"] if self.spec.reads_gold else [])]
        files = [self.corpus, *(prepared / f"{name}.parquet" for name in names)]
        view = self.view(cell).model_dump(mode="json", exclude={"made_from", "files"})
        values = {**self._opened, f"{prepared.relative_to(self.paths.root)}/view.json": view, "seed": cell.seed}
        if elsewhere := self.spec.predictions(self.task, cell.context, cell.seed):
            values[str(elsewhere)] = digest_if_there(elsewhere)
        if self.plugin.PLANS_TIME:
            values["cell_limit_s"] = self.resources(cell.seed).cell_limit_s
        return Stages(self.experiment).system(self.system).of(self.paths.root, *files, **values)
