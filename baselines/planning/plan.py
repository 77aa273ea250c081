"""What a profile needs before anything starts: parameters, FLOPs, bytes by tier and hours, on named hardware and here.

    python -m baselines.planning.plan --profile paper
    python -m baselines.planning.plan --profile tiny --hardware H200 --json
    python -m baselines.planning.plan --profile tiny --measured           # every row that ran here, beside its plan

Hours are a roofline over data sheets (configs/hardware.yaml) or, on this machine, over the rates that stages reached in
what ran here. Where planned seconds stand beside measured ones, the rates are those of all other rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
from operator import attrgetter, eq
from statistics import median
from typing import Any

from baselines.base import Estimate, load_plugin
from baselines.planning.cost import Planner, Ran, Verdict, fit, what_ran
from baselines.planning.hardware import HERE, Hardware, matmul_tflops, read_hardware, this_machine
from baselines.planning.judges import PlannedJudge, judging, price
from msa.model import cost
from msa.model.cost import Documents, Storage
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import run_command
from msa_base.load import describe, load
from msa_base.paths import Paths
from msa_base.tables import read_json
from msa_base.validate import check_known

BYTES = ("device_bytes", "host_bytes", "disk_bytes", "resident_bytes")
TOLERANCE = 0.15  # of a planned figure, beside the measured one
NAMED = 4  # comparisons beyond the tolerance that are named, of each kind
BY_KIND = attrgetter("what")  # comparisons are sorted and grouped by it


@dataclass(frozen=True)
class PlanRow:
    """One line: a model, an index over its corpora, or a system at a context with all tasks and seeds.

    ``size`` is a context, or what a model has and reads; bytes are the largest cell's, those of ``parts`` at the
    precision of the first machine.
    """

    name: str
    size: str
    questions: int
    flops: float | None
    parts: dict[str, float]
    machines: dict[str, Verdict]
    source: str
    served_tokens: tuple[float, float] = (0.0, 0.0)  # read and written elsewhere
    dollars: float | None = None  # for them; None where the entry names no price


@dataclass(frozen=True)
class Comparison:
    """One figure of a row, planned and measured; ``what`` says of which kind of thing, ``row`` of which."""

    what: str
    row: str
    planned: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.planned / self.measured

    @property
    def within(self) -> bool:
        return abs(self.ratio - 1) <= TOLERANCE


@dataclass(frozen=True)
class Plan:
    title: str
    machines: dict[str, Hardware]
    rates: int  # how many stages' rates were measured here
    rows: list[PlanRow]
    published: list[dict[str, Any]]
    measured: list[Comparison]
    judges: list[PlannedJudge]


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("--hardware", help="machine whose bytes by tier are shown (default: the profile's, else here)")
    parser.add_argument("--measured", action="store_true", help="print every row that ran here beside its plan")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with every machine's bytes")
    chosen = parser.parse_args()
    experiment, paths = open_experiment(chosen)
    machines = read_hardware(chosen.configs)
    shown = chosen.hardware or experiment.profile.hardware or HERE
    check_known([shown], [*machines, HERE], "--hardware", chosen.configs / "hardware.yaml")
    made = make_plan(Planner(experiment, paths), machines)
    if chosen.json:
        compared = [vars(item) | {"ratio": item.ratio} for item in made.measured]
        print(json.dumps(asdict(made) | {"measured": compared}, indent=1))
    else:
        print("\n".join(comparison_lines(made.measured) if chosen.measured else lines(made, shown)))


def make_plan(planner: Planner, machines: dict[str, Hardware]) -> Plan:
    ran = list(what_ran(planner))
    others = [item for other in related(planner) for item in what_ran(other)]
    planner = replace(planner, rates=fit([*ran, *others]))
    here = this_machine(planner.paths.root)
    # what the profile's indexes take already is theirs
    standing = sum(path.stat().st_size for path in (planner.paths.root / "_indexes").rglob("*") if path.is_file())
    here = replace(here, disk_gb=here.disk_gb + standing / 1e9, matmul_tflops=here.matmul_tflops or matmul_tflops())
    machines = machines | {HERE: here}
    return Plan(
        describe(planner.experiment),
        machines,
        len(planner.rates),
        list(rows(planner, machines)),
        published(planner, machines),
        compare(planner, here, ran),
        [judging(planner, judge) for judge in planner.experiment.profile.judges],
    )


def related(planner: Planner) -> Iterator[Planner]:
    """The other profiles that have results here and share a model with this one; it computes at the same rates."""
    experiment, results = planner.experiment, planner.paths.root.parent
    models = {name: experiment.models[name] for name in experiment.profile.models}
    for path in sorted(experiment.file.parent.glob("*.yaml")):
        if path.stem != experiment.name and (results / path.stem).is_dir():
            other = load(path.stem, experiment.configs)
            if any(other.models[name] == models.get(name) for name in other.profile.models):
                yield Planner(other, Paths.of(path.stem, results))


def rows(planner: Planner, machines: dict[str, Hardware]) -> Iterator[PlanRow]:
    """Models, indexes, then systems by context; where its index cannot be built, a system cannot run."""
    experiment, profile = planner.experiment, planner.experiment.profile
    dtypes = list(dict.fromkeys(machine.dtype for machine in machines.values()))
    for name in profile.models:
        (tokens, source), config = planner.training_tokens(name), planner.config(name)
        size = "unknown" if config is None else f"{sum(cost.parameters(config).values()):,} parameters"
        size += "" if tokens is None else f", {number(tokens)} tokens"
        made = {dtype: [planner.training(name)] for dtype in dtypes}
        yield row(machines, planner, f"model {name}", size, 0, made, source)
    largest, indexes = max(profile.contexts, key=experiment.contexts.__getitem__), {}
    for index, corpora in planner.indexes().items():
        made = {dtype: [planner.index(index, corpora, dtype)] for dtype in dtypes}
        source = "prepared" if all(planner.paths.corpus(corpus).exists() for corpus in corpora) else "assumed"
        indexes[index] = row(machines, planner, f"index {index}, {len(corpora)} corpora", largest, 0, made, source)
        yield indexes[index]
    seeds = len(profile.seeds)
    for system in profile.systems:
        index = indexes.get(experiment.systems[system].index)
        for context in profile.contexts:
            asked = [planner.workload(system, task, context) for task in profile.tasks]
            made = {dtype: [planner.cell(system, work, dtype) for work in asked] * seeds for dtype in dtypes}
            questions, source = sum(work.questions for work in asked), ", ".join(sorted({w.source for w in asked}))
            found = row(machines, planner, system, context, questions * seeds, made, source)
            if model := experiment.systems[system].model:
                found = replace(found, dollars=price(experiment.models[model].params, *found.served_tokens))
            for name, built in index.machines.items() if index else ():
                if built.status != "ok" and found.machines[name].status == "ok":
                    refused = {"status": built.status, "reason": f"{index.name}: {built.reason}", "seconds": None}
                    found.machines[name] = replace(found.machines[name], **refused)
            yield found


def row(
    machines: dict[str, Hardware], planner: Planner, name: str, size: str, questions: int,
    made: dict[str, list[Estimate]], source: str,
) -> PlanRow:  # fmt: skip
    """A line from its cells' estimates by precision."""
    cells, parts = next(iter(made.values())), {}
    for part in (part for cell in cells for part in cell.parts):
        parts[part.name] = max(parts.get(part.name, 0), part.bytes)
    flops = None if any(cell.flops is None for cell in cells) else sum(cell.flops for cell in cells)
    judged = {key: joint([planner.judge(cell, at) for cell in made[at.dtype]]) for key, at in machines.items()}
    served = sum(cell.served_tokens[0] for cell in cells), sum(cell.served_tokens[1] for cell in cells)
    return PlanRow(name, size, questions, flops, parts, judged, source, served)


def joint(each: list[Verdict]) -> Verdict:
    """One verdict on all cells of a line: the largest bytes, all seconds, the first refusal."""
    bad = [item for item in each if item.status != "ok"]
    first = (bad or each)[0]
    few = f"{len(bad)} of {len(each)} cells: " if 0 < len(bad) < len(each) else ""
    seconds = [item.seconds for item in each if item.status == "ok"]
    largest = {key: max(getattr(item, key) for item in each) for key in BYTES}
    total = sum(seconds) if seconds and None not in seconds else None
    return Verdict(first.status, few + first.reason, **largest, seconds=total)


def published(planner: Planner, machines: dict[str, Hardware]) -> list[dict[str, Any]]:
    """The published figures of a profile beside the formula's: chunks of P tokens without partial tails."""
    if planner.experiment.profile.published is None:
        return []
    given = planner.experiment.profile.published
    config, tokens = planner.config(given.model), planner.experiment.contexts[given.context]
    documents = Documents.even(tokens, config.pool_tokens)
    bank = cost.bank_bytes(config, documents, Storage(given.dtype, given.dtype))
    keys, content = bank["routing keys"] / 1e9, bank["content"] / 1e9
    layer = f"{config.kv_heads} x {config.head_dim} x {cost.ELEMENT_BYTES[given.dtype]} bytes"
    chunks = f"{tokens:,} / {config.pool_tokens} = {documents.chunks(config.pool_tokens):,} chunks"
    training = Estimate(stages={"train": cost.training_cost(config, given.training_tokens)})
    took = {name: planner.seconds(training, at) / 3600 for name, at in machines.items() if at.devices}
    read = f"6 N x {given.training_tokens:,.0f} tokens"
    found = [
        ("routing keys", keys, "GB", given.routing_keys_gb, f"{chunks} x {len(config.routed_layers)} layers x {layer}"),
        ("content K and V", content, "GB", None, "twice that"),
        ("together", keys + content, "GB", given.memory_gb, given.source),
        *[(f"pre-training {name}", hours_taken, "hours", None, read) for name, hours_taken in took.items()],
    ]
    return [dict(zip(("what", "value", "unit", "published", "formula"), line, strict=True)) for line in found]


def compare(planner: Planner, here: Hardware, ran: list[Ran]) -> list[Comparison]:
    """Bytes, memory and seconds of every row that ran here, at the rates of all other rows; weights of checkpoints."""
    found: list[Comparison] = []
    for row in dict.fromkeys(item.row for item in ran):
        items = [item for item in ran if item.row == row and item.made.stages is not None]
        if items:
            others = replace(planner, rates=fit([item for item in ran if item.row != row]))
            found += _compare_row(others, here, items)
    for name in planner.experiment.profile.models:
        files, config = list(planner.paths.model(name).glob("*.safetensors")), planner.config(name)
        if files and config is not None:
            size = sum(path.stat().st_size for path in files)
            stated = planner.paths.model(name) / "config.json"
            stored = read_json(stated).get("torch_dtype", "float32") if stated.exists() else "float32"
            found.append(Comparison("weights, bytes on disk", name, cost.weight_bytes(config, stored), size))
    return sorted(found, key=BY_KIND)


def _compare_row(planner: Planner, here: Hardware, items: list[Ran]) -> Iterator[Comparison]:
    first, experiment = items[0], planner.experiment
    kind, row = first.kind, first.row
    verdicts, is_index = [planner.judge(item.made, here) for item in items], kind.endswith("index")
    if is_index:
        yield Comparison(f"{kind}, bytes on disk", row, verdicts[0].disk_bytes, first.record.index_bytes)
        plugin = load_plugin(experiment.indexes[first.name].kind, f"systems.yaml: indexes: {first.name}")
        for name, size in plugin.index_parts(planner.paths.index(first.name, first.record.corpus)).items():
            planned = sum(part.bytes for part in first.made.parts if part.name == name)
            yield Comparison(f"{kind}, {name}", row, planned, size)
    elif all(item.made.view_bytes is not None for item in items):
        index, planned = experiment.systems[first.name].index, sum(item.made.view_bytes for item in items)
        for item in items if index else ():
            made = planner.index(index, [experiment.tasks[item.record.task].corpus], "float32")
            planned += sum(part.bytes for part in made.parts if part.tier == "disk")
        measured = sum(item.record.index_bytes for item in items)
        yield Comparison(f"{kind}, bytes of index and view", row, planned, measured)
    if memory := max(item.record.peak_host_bytes if item.record else item.held_bytes for item in items):
        shared = sum(part.bytes for part in first.made.parts if part.sharded)
        resident = max(verdict.resident_bytes for verdict in verdicts) - shared
        yield Comparison(f"{kind}, peak memory", row, first.processes * resident + shared, memory)
    if any(any(item.made.served_tokens) for item in items):
        return
    planned = sum(planner.seconds(item.made, here) for item in items)
    unit = "seconds of a thread" if is_index else "seconds"
    yield Comparison(f"{kind}, {unit}", row, planned, sum(item.seconds for item in items))


def lines(made: Plan, shown: str) -> Iterator[str]:
    """The screen; bytes by tier are those on the machine ``shown``."""
    yield made.title
    for name, at in made.machines.items():
        size = f"{at.devices} x {at.device_gb:g} GB, " if at.devices else ""
        rate = f"{at.matmul_tflops:.3g} TFLOP/s {at.dtype} x {at.matmul_share:g}"
        rate = f"measured rates of {made.rates} stages, else {rate}" if name == HERE and made.rates else rate
        held = f"{size}host {at.host_gb:,.0f} GB, disk {at.disk_gb:,.0f} GB"
        yield f"  {name:14s} {at.title}: {held}; {rate} ({at.source})"
    size = ["what", "memory or size", "questions", "device GB", "host GB", "disk GB", "FLOPs"]
    head = [*size, *(f"h {name}" for name in made.machines), "served", "dollars", "source"]
    body = [row_cells(run, shown) for run in merged(made.rows, shown)]
    # what is refused or not estimated on a machine counts nothing there
    sums = {name: sum(row.machines[name].seconds or 0.0 for row in made.rows) for name in made.machines}
    total = [
        "in all that fits",
        *[""] * 6,
        *(hours(seconds / 3600) for seconds in sums.values()),
        *asked(made.rows),
        "",
    ]
    yield from ("", *table([head, *body, total]))
    yield from (f"  {line}" for line in refusals(made.rows))
    yield f"  Bytes: the largest cell's on {shown}, of each device. Source: own runs, prepared data or assumed tokens."
    yield from (f"  {judge.words}" for judge in made.judges)
    yield from ["", "Published figures, by formula"] if made.published else []
    for line in made.published:
        beside = "" if line["published"] is None else f"published: {line['published']:g} {line['unit']}"
        yield f"  {line['what']:28s} {line['value']:9,.1f} {line['unit']:6s} {beside:18s} {line['formula']}"
    yield from ["", *summary_lines(made.measured)] if made.measured else []


def table(cells: list[list[str]]) -> Iterator[str]:
    """Columns as wide as they have to be; all but the first two to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = map(str.ljust, line[:2], widths), map(str.rjust, line[2:], widths[2:])
        yield "  ".join(chain(*padded)).rstrip()


def merged(found: list[PlanRow], shown: str) -> list[list[PlanRow]]:
    """Rows by line; neighbouring contexts of a system that differ little from the first share its line."""
    runs: list[list[PlanRow]] = []
    for row in found:
        if runs and alike(runs[-1][0], row, shown):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def alike(one: PlanRow, other: PlanRow, shown: str) -> bool:
    """Whether two rows are of one system with equal statuses, no figure off by more than a third."""
    names = ((row.name, row.source, row.questions, [v.status for v in row.machines.values()]) for row in (one, other))
    figures = (
        [row.flops, *row.served_tokens, *(getattr(row.machines[shown], key) for key in BYTES)] for row in (one, other)
    )
    pairs = zip(*figures, strict=True)
    return eq(*names) and all(a == b if None in (a, b) else abs(a - b) <= max(a, b) / 3 for a, b in pairs)


def row_cells(run: list[PlanRow], shown: str) -> list[str]:
    first, last = run[0], run[-1]
    size = first.size if first is last else f"{first.size}-{last.size}"
    held = [f"{getattr(last.machines[shown], key) / 1e9:,.2f}" if last.parts else "-" for key in BYTES[:3]]
    flops = "not estimated" if last.flops is None else number(last.flops)
    verdicts = last.machines.values()
    took = [item.status if item.status != "ok" else hours(item.seconds and item.seconds / 3600) for item in verdicts]
    return [last.name, size, str(last.questions or ""), *held, flops, *took, *asked(run), last.source]


def asked(found: Iterable[PlanRow]) -> list[str]:
    """Tokens that are served for some lines, and their dollars; of the lines with a price alone."""
    found = [row for row in found if row.served_tokens[0]]
    if not found:
        return ["", ""]
    prices = [row.dollars for row in found if row.dollars is not None]
    return [number(sum(sum(row.served_tokens) for row in found)), f"{sum(prices):,.2f}" if prices else "no price"]


def refusals(found: Iterable[PlanRow]) -> Iterator[str]:
    """Why cells are refused: each system's first refused line, by machine; what no machine mends is said once."""
    for name, same in groupby(found, key=lambda row: row.name):
        said = set()
        for row in same:
            for machine, verdict in row.machines.items():
                where = f" on {machine}" if verdict.status in ("out_of_memory", "timeout") else ""
                if verdict.status != "ok" and (where, verdict.status) not in said:
                    said.add((where, verdict.status))
                    yield f"{name}, {row.size}{where}: {verdict.status}: {verdict.reason}"


def summary_lines(found: list[Comparison]) -> Iterator[str]:
    """Planned over measured by kind of thing, with what is off by more than the tolerance."""
    heading = f"Planned / measured, of what ran here: median, range, rows within {TOLERANCE:.0%}"
    yield f"{heading} (`--measured` lists them; seconds of a row at the others' rates)"
    for what, items in ((what, list(items)) for what, items in groupby(found, BY_KIND)):
        ratios = sorted(item.ratio for item in items)
        beyond = sorted((item for item in items if not item.within), key=lambda item: -abs(item.ratio - 1))
        named = ", ".join(f"{item.row} {item.ratio:.2f}" for item in beyond[:NAMED])
        named += ", ..." if len(beyond) > NAMED else ""
        spread = f"{median(ratios):.2f}  {ratios[0]:.2f} to {ratios[-1]:.2f}"
        yield f"  {what:42s} {spread:20s} {len(items) - len(beyond):3d} of {len(items):3d}  {named}".rstrip()


def comparison_lines(found: list[Comparison]) -> Iterator[str]:
    if not found:
        yield "nothing of this profile has run on this machine"
        return
    cells = [["what", "row", "planned", "measured", "ratio", ""]]
    for item in found:
        digits, beyond = int(item.what.endswith("seconds")), "" if item.within else f"beyond {TOLERANCE:.0%}"
        figures = (f"{value:,.{digits}f}" for value in (item.planned, item.measured))
        cells.append([item.what, item.row, *figures, f"{item.ratio:.3f}", beyond])
    yield from table(cells)


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def hours(value: float | None) -> str:
    return number(value) if not value or value >= 0.001 else "<0.001"


if __name__ == "__main__":
    run_command(main)
