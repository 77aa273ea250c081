"""What ran on this machine: rates of its stages for the plan, and every planned figure beside the measured one.

Seconds of a cell, an index or a training run are the sum over its stages of FLOPs over a rate, the same for all of them:
non-negative least squares finds the rates. Where planned seconds stand beside measured ones, the
rates are those of all other rows, so that no row is planned by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np

from baselines.estimate import Estimate
from baselines.planner import Planner
from baselines.provenance import hardware
from baselines.workload import answers_of
from configs.hardware import Hardware
from configs.load import Experiment, load
from configs.paths import Paths
from msa import plan

TOLERANCE = 0.15
LEAST_SHARE = 0.25  # of some row's FLOPs; a stage that is nowhere more cannot be told from the others


@dataclass(frozen=True)
class Ran:
    """One index, cell or training run that ended well here: ``row`` is the line of the plan that it belongs to."""

    kind: str
    row: str
    made: Estimate
    seconds: float
    record: dict[str, Any]
    name: str


@dataclass(frozen=True)
class Comparison:
    """One figure of a row, planned and measured; ``what`` says of which kind of thing, ``row`` of which."""

    what: str
    row: str
    planned: float
    measured: float

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.planned / self.measured

    @property
    def within(self) -> bool:
        """Whether the plan is off by :data:`TOLERANCE` at most."""
        return abs(self.ratio - 1) <= TOLERANCE


def fit(ran: list[Ran]) -> dict[str, float]:
    """Seconds a FLOP by stage; nothing where nothing ran."""
    from scipy.optimize import nnls

    known = [item for item in ran if item.made.stages and item.seconds > 0]
    flops = {stage: [] for item in known for stage, cost in item.made.stages.items() if cost.flops}
    for stage, column in flops.items():
        column += [item.made.stages[stage].flops if stage in item.made.stages else 0.0 for item in known]
    work = [item.made.flops for item in known]
    flops = {s: column for s, column in flops.items() if max(map(truediv, column, work)) >= LEAST_SHARE}
    if not flops:
        return {}
    # noise grows with the root of the seconds: short rows count, and long ones more
    weights = np.array([item.seconds for item in known]) ** -0.5
    matrix = np.array(list(flops.values())).T * weights[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    found, _ = nnls(matrix / scale, weights * [item.seconds for item in known])
    return dict(zip(flops, (found / scale).tolist(), strict=True))


def profile_rates(experiment: Experiment, paths: Paths) -> dict[str, float]:
    """Rates of what a profile has run here so far."""
    return fit(list(what_ran(Planner(experiment, paths))))


def kin(experiment: Experiment, paths: Paths, configs: Path) -> Iterator[Planner]:
    """Planners of the other profiles with results beside this one's that share a model with it, and so its rates."""
    models = {name: experiment.models[name] for name in experiment.profile.models}
    for path in sorted((configs / "profiles").glob("*.yaml")):
        if path.stem != experiment.name and (paths.root.parent / path.stem).is_dir():
            other = load(path.stem, configs)
            if any(other.models[name] == models.get(name) for name in other.profile.models):
                yield Planner(other, Paths.of(path.stem, paths.root.parent))


def what_ran(planner: Planner) -> Iterator[Ran]:
    """Everything of a profile that ended well on this machine."""
    yield from _indexes(planner)
    yield from _cells(planner)
    for name in planner.experiment.profile.models:
        if log := planner.training_log(name):
            yield Ran("training", name, planner.training(name), log[-1]["seconds"], {}, name)


def _record(path: Path) -> dict[str, Any] | None:
    """A record that ended well on this machine."""
    from configs.tables import read_json

    if not path.exists():
        return None
    record, mine = read_json(path), _machine()
    found = record.get("hardware", {})
    same = all(found.get(key) == mine[key] for key in ("cpu", "cores"))
    return record if same and record.get("status", "ok") == "ok" else None


@cache
def _machine() -> dict[str, Any]:
    return hardware()


def _indexes(planner: Planner) -> Iterator[Ran]:
    for index, corpora in planner.indexes().items():
        for corpus in corpora:
            if record := _record(planner.paths.index(index, corpus) / "index.json"):
                made, kind = planner.index(index, [corpus], "float32"), planner.experiment.indexes[index].kind
                # rates are those of one thread
                yield Ran(f"{kind} index", f"{index} {corpus}", made, record["build_s"] * record["threads"], record, index)


def _cells(planner: Planner) -> Iterator[Ran]:
    profile = planner.experiment.profile
    for system in profile.systems:
        for context, task in ((context, task) for context in profile.contexts for task in profile.tasks):
            directory = planner.paths.cell(system, task, context, profile.seeds[0])
            if record := _record(directory / "run.json"):
                made = planner.cell(system, planner.workload(system, task, context), "float32")
                # a prompt that an earlier context's was is not read again, but has the times of its reading
                answered = sum(answer.total_s for answer in answers_of(directory / "predictions.jsonl"))
                seconds, kind = max(record["wall_s"], answered), planner.experiment.systems[system].kind
                yield Ran(f"{kind} cells", f"{system} {context}", made, seconds, record, system)


def compare(planner: Planner, here: Hardware, ran: list[Ran]) -> list[Comparison]:
    """Bytes, memory and seconds of every row that ran here; weights of every checkpoint."""
    found = []
    for row in dict.fromkeys(item.row for item in ran):
        items = [item for item in ran if item.row == row and item.made.stages is not None]
        others = fit([item for item in ran if item.row != row])
        if items:
            found += _compare_row(planner, here, items, others)
    return [*found, *_weights(planner)]


def _compare_row(planner: Planner, here: Hardware, items: list[Ran], rates: dict[str, float]) -> Iterator[Comparison]:
    kind, row = items[0].kind, items[0].row
    verdicts = [planner.judge(item.made, here) for item in items]
    if kind.endswith("index"):
        yield Comparison(f"{kind}, bytes on disk", row, verdicts[0].disk_bytes, items[0].record["index_bytes"])
    if kind == "msa_system index":
        planned = sum(part.bytes for part in items[0].made.parts if part.name == "routing keys")
        record = items[0].record
        measured = routing_key_bytes(planner.paths.index(record["index"], record["corpus"]))
        yield Comparison(f"{kind}, routing keys", row, planned, measured)
    if kind == "msa_system cells":
        yield Comparison(f"{kind}, bytes of index and view", row, *_bank_bytes(planner, items))
    if kind != "training":
        memory = max(item.record["peak_host_bytes"] for item in items)
        yield Comparison(f"{kind}, peak memory", row, max(verdict.resident_bytes for verdict in verdicts), memory)
    unit = "seconds of a thread" if kind.endswith("index") else "seconds"
    planned = sum(planner.seconds(item.made, here, rates) for item in items)
    yield Comparison(f"{kind}, {unit}", row, planned, sum(item.seconds for item in items))


def routing_key_bytes(bank: Path) -> int:
    """Bytes of a bank's routing keys, scales included, by the headers of its segments."""
    from safetensors import safe_open

    total = 0
    for path in bank.glob("segment-*.safetensors"):
        with safe_open(path, "pt") as content:
            keys = [name for name in content.keys() if ".routing" in name]  # noqa: SIM118
            total += sum(content.get_tensor(name).nbytes for name in keys)
    return total


def _bank_bytes(planner: Planner, items: list[Ran]) -> tuple[float, float]:
    """Bytes of the index directory and of the view's part of the bank, of all cells of a row."""
    bank = ("routing keys", "content", "tables")
    planned = sum(part.bytes for item in items for part in item.made.parts if part.name in bank)
    index = planner.experiment.systems[items[0].name].index
    for item in items:
        corpus = planner.experiment.tasks[item.record["task"]].corpus
        parts = planner.index(index, [corpus], "float32").parts
        planned += sum(part.bytes for part in parts if part.tier == "disk")
    return planned, sum(item.record["index_bytes"] for item in items)


def _weights(planner: Planner) -> Iterator[Comparison]:
    for name in planner.experiment.profile.models:
        files, config = list(planner.paths.model(name).glob("*.safetensors")), planner.config(name)
        if files and config is not None:
            size = sum(path.stat().st_size for path in files)
            yield Comparison("weights, bytes on disk", name, plan.weight_bytes(config, "float32"), size)
