"""What each stage's result is made of: the code that it starts from and its configuration entries.

The Snakefile (as params of its rules) and the commands (in their seals, with the data that they read) ask the same
functions, so that both run the same things again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from msa_base import closure
from msa_base.kinds import PRETRAINED, holds_checkpoint, module_name
from msa_base.load import DATA_KEYS, Experiment
from msa_base.seal import DIGITS, MadeFrom, digest_if_there, value_digest
from msa_base.specs import ModelSpec

UNREAD = ("title", "search")  # of an entry: they change no cell
# how a model of ours is opened, by what a system uses it for; a served model needs none of that code
OPENS = "baselines.parts.models"
OPENED = {"model": "msa.generation.reader", "reranker": "msa.generation.likelihood", "index": "msa.generation.embed"}


@dataclass(frozen=True)
class Stages:
    """The stages of an experiment; each method gives code and configuration of one of them."""

    experiment: Experiment

    def prose(self) -> MadeFrom:
        return made("tasks.stages.sources:main")

    def tokenizer(self) -> MadeFrom:
        return made("tasks.stages.vocabulary:main", tokenizer=self.experiment.profile.tokenizer)

    def corpus(self, name: str) -> MadeFrom:
        spec = self.experiment.corpora[name]
        starts = ("tasks.stages.prepare:prepare_corpus", module_name(spec.kind, "tasks"))
        return made(*starts, corpus=spec, tokens=max(self._contexts().values()))

    def task(self, name: str) -> MadeFrom:
        """A prepared task, all contexts. How it is scored changes nothing here."""
        spec, asked = self.experiment.tasks[name], self.experiment.profile.tasks[name]
        corpus = plain(self.experiment.corpora[spec.corpus])
        entry = {"kind": spec.kind, "params": spec.params, "questions": asked, "corpus": corpus}
        starts = ("tasks.stages.prepare:prepare_task", module_name(spec.kind, "tasks"))
        return made(*starts, task=entry, contexts=self._contexts())

    def samples(self, name: str) -> MadeFrom:
        return made("tasks.stages.samples:main", samples=self.experiment.profile.samples[name])

    def model(self, name: str) -> MadeFrom:
        """A model: trained, taken, or a reference."""
        return model(self.experiment.models[name])

    def index(self, name: str) -> MadeFrom:
        spec = self.experiment.indexes[name]
        starts = (self._builder(name), *self._model_modules(spec.model))
        return made(*starts, cut=self._not_opened(index=spec.model), index=spec)

    def system(self, name: str, *own: str, **entries: Any) -> MadeFrom:
        """A system's answers: its own modules and those that its parameters name, the questions' loop, the audit.

        Its latency and its search start from more code (``own``) and depend on more ``entries``.
        """
        spec = self.experiment.systems[name]
        index = self.experiment.indexes[spec.index] if spec.index else None
        models = {"model": spec.model, "reranker": spec.reranker, "index": index.model if index else None}
        starts = [*own, f"{module_name(spec.kind, 'baselines')}:make"]
        starts += ["baselines.drivers.questions", "baselines.drivers.audit"]
        starts += closure.modules_named(spec.params, "baselines")
        starts += self._model_modules(*models.values())
        return made(*starts, cut=self._not_opened(**models), system=spec, index=index, **entries)

    def elsewhere(self, name: str, task: str) -> dict[str, str | None]:
        """Digests of the files of a system's cells at a task that were answered elsewhere; None of one to come."""
        cells = product(self.experiment.profile.contexts, self.experiment.profile.seeds)
        files = [self.experiment.systems[name].predictions(task, *cell) for cell in cells]
        return {str(path): digest_if_there(path) for path in files if path}

    def latency(self, name: str) -> MadeFrom:
        return self.system(name, "baselines.drivers.measure:measure", latency=self.experiment.profile.latency)

    def tuning(self, name: str) -> MadeFrom:
        """A system's search on the tuning split, whose index is built anew."""
        spec = self.experiment.systems[name]
        built = [self._builder(spec.index)] if spec.index else []
        return self.system(name, "baselines.drivers.tune:tune", *built, search=spec.search)

    def judgments(self) -> MadeFrom:
        return made("tasks.stages.judge:judge_cell", judges=dict(self.experiment.judges))

    def probes(self, task: str) -> MadeFrom:
        metric = self.experiment.tasks[task].metric
        return made("tasks.stages.probe:probe_task", judges=dict(self.experiment.judges), metric=metric)

    def scores(self, task: str) -> MadeFrom:
        spec = self.experiment.tasks[task]
        metrics = [spec.metric, *spec.metrics]
        return made("tasks.stages.score:score_cell", metrics=metrics, judges=list(self.experiment.judges))

    def summary(self) -> MadeFrom:
        profile = self.experiment.profile
        asked = [self._contexts(), profile.seeds, profile.tasks, profile.systems]
        return made("reports.summarise:main", profile=asked)

    def report(self) -> MadeFrom:
        """The report; every title is in it."""
        return made("reports.build:main", experiment=[{**plain(self.experiment), "configs": None}])

    def data(self, params: dict[str, Any]) -> list[Path]:
        """Files of the profile's data directory, for what is made of question-answering sets and novels."""
        place = self.experiment.profile.data
        return sorted(Path(place).glob("*/*")) if place and DATA_KEYS & params.keys() else []

    def _contexts(self) -> dict[str, int]:
        return {context: self.experiment.contexts[context] for context in self.experiment.profile.contexts}

    def _builder(self, index: str) -> str:
        return f"{module_name(self.experiment.indexes[index].kind, 'baselines')}:build_index"

    def _model_modules(self, *models: str | None) -> list[str]:
        """Modules of baselines.parts that open referred models."""
        kinds = [self.experiment.models[model].kind for model in models if model]
        return [module_name(kind, "baselines.parts") for kind in kinds if not holds_checkpoint(kind)]

    def _not_opened(self, **models: str | None) -> tuple[tuple[str, str], ...]:
        """Ways to open a model of ours that no model of a system takes."""
        own = {use for use, model in models.items() if model and holds_checkpoint(self.experiment.models[model].kind)}
        return tuple((OPENS, module) for use, module in OPENED.items() if use not in own)


def model(spec: ModelSpec) -> MadeFrom:
    """A model by its entry."""
    if spec.kind == PRETRAINED:
        return made("msa.checkpoints.pretrained:adopt", model=spec)
    place = spec.params.get("name")  # of a model that is a directory here, and may be another one tomorrow
    files = state(sorted(Path(place).rglob("*"))) if isinstance(place, str) and Path(place).is_dir() else None
    return made(spec.kind if "." in spec.kind else "baselines.parts.models:main", model=spec, files=files)


def state(files: Iterable[Path]) -> dict[str, list[int]]:
    """Files that somebody else keeps, and that are too large to be read over and over: size and time of change."""
    found = {str(path): path.stat() for path in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


def made(*starts: str, cut: tuple[tuple[str, str], ...] = (), **entries: Any) -> MadeFrom:
    """Code from some starts (:func:`msa_base.closure.code`), and configuration entries by name, if any.

    What changes no result is left out of an entry.
    """
    config = {}
    for name, entry in entries.items():
        if entry is not None:
            value = plain(entry)
            if isinstance(value, dict):
                value = {key: item for key, item in value.items() if key not in UNREAD}
            config[name] = value_digest(value)[:DIGITS]
    return MadeFrom(code=closure.code(*dict.fromkeys(starts), cut=cut), config=config)


def plain(value: Any) -> Any:
    """Configuration as a JSON value."""
    if isinstance(value, Path):
        return str(value)
    value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(value, default=plain))
