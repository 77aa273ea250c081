"""What a profile needs before anything starts: parameters, FLOPs, bytes by tier and hours, on named hardware and here.

    python -m baselines.plan --profile paper
    python -m baselines.plan --profile tiny --hardware H200 --json
    python -m baselines.plan --profile tiny --measured           # planned beside measured, for every row that ran here

Bytes and FLOPs are formulas over shapes (msa.plan); hours are a roofline over data sheets (configs/hardware.yaml) or, on
this machine, over the rates that stages reached in what ran here (baselines.measured).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from baselines.estimate import Estimate
from baselines.measured import TOLERANCE, Comparison, compare, fit, kin, what_ran
from baselines.planner import Planner, Verdict
from configs.errors import run_command
from configs.hardware import HERE, Hardware, read_hardware
from configs.load import DIRECTORY, PublishedSpec, check_known, describe, load
from configs.paths import Paths
from msa import plan
from msa.plan import Documents, Storage

BYTES = ("device_bytes", "host_bytes", "disk_bytes", "resident_bytes")
NAMED = 4  # comparisons beyond the tolerance that are named, of each kind


@dataclass(frozen=True)
class Row:
    """One line: a model, an index over its corpora, or a system at a context with all tasks and seeds.

    ``size`` is a context, or what a model has and reads; bytes are the largest cell's.
    """

    name: str
    size: str
    questions: int
    flops: float | None
    parts: dict[str, float]
    machines: dict[str, Verdict]
    source: str


@dataclass(frozen=True)
class Plan:
    """Everything that a plan says."""

    title: str
    machines: dict[str, Hardware]
    rates: int  # stages whose rate was measured here
    rows: list[Row]
    published: list[dict[str, Any]]
    measured: list[Comparison]


def main() -> None:
    """Print the plan of a profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--hardware", help="machine whose bytes by tier are shown (default: the profile's, else here)")
    parser.add_argument("--measured", action="store_true", help="print planned beside measured, of every row that ran here")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with every machine's bytes")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results stand (default: results)")
    chosen = parser.parse_args()
    experiment = load(chosen.profile, chosen.configs)
    machines = read_hardware(chosen.configs)
    shown = chosen.hardware or experiment.profile.hardware or HERE
    check_known([shown], [*machines, HERE], "--hardware", chosen.configs / "hardware.yaml")
    made = make_plan(Planner(experiment, Paths.of(chosen.profile, chosen.results)), machines, chosen.configs)
    if chosen.json:
        print(json.dumps(asdict(made) | {"measured": [vars(item) | {"ratio": item.ratio} for item in made.measured]}, indent=1))
    else:
        print("\n".join(comparison_lines(made.measured) if chosen.measured else lines(made, shown)))


def make_plan(planner: Planner, machines: dict[str, Hardware], configs: Path) -> Plan:
    """The plan of a profile on some machines and on this one."""
    ran = list(what_ran(planner))
    related = [item for other in kin(planner.experiment, planner.paths, configs) for item in what_ran(other)]
    planner = replace(planner, rates=fit([*ran, *related]))
    here = planner.here()
    # what the profile's indexes take already is theirs
    standing = sum(path.stat().st_size for path in (planner.paths.root / "_indexes").rglob("*") if path.is_file())
    machines = machines | {HERE: replace(here, disk_gb=here.disk_gb + standing / 1e9)}
    return Plan(
        describe(planner.experiment),
        machines,
        len(planner.rates),
        list(rows(planner, machines)),
        published(planner, machines),
        compare(planner, machines[HERE], ran),
    )


def rows(planner: Planner, machines: dict[str, Hardware]) -> Iterator[Row]:
    """Models, indexes, then systems by context; where its index cannot be built, a system cannot run."""
    experiment, profile = planner.experiment, planner.experiment.profile
    dtypes = {machine.dtype for machine in machines.values()}
    for name in profile.models:
        (tokens, source), config = planner.training_tokens(name), planner.config(name)
        size = "unknown" if config is None else f"{sum(plan.parameters(config).values()):,} parameters"
        size += "" if tokens is None else f", {number(tokens)} tokens"
        yield row(machines, planner, f"model {name}", size, 0, {dtype: [planner.training(name)] for dtype in dtypes}, source)
    largest, indexes = max(profile.contexts, key=experiment.contexts.__getitem__), {}
    for index, corpora in planner.indexes().items():
        made = {dtype: [planner.index(index, corpora, dtype)] for dtype in dtypes}
        prepared = all(planner.paths.corpus(corpus).exists() for corpus in corpora)
        title, source = f"index {index}, {len(corpora)} corpora", "prepared" if prepared else "assumed"
        indexes[index] = row(machines, planner, title, largest, 0, made, source)
        yield indexes[index]
    for system in profile.systems:
        for context in profile.contexts:
            asked = [planner.workload(system, task, context) for task in profile.tasks]
            made = {dtype: [planner.cell(system, work, dtype) for work in asked] * len(profile.seeds) for dtype in dtypes}
            questions, source = sum(work.questions for work in asked), ", ".join(sorted({work.source for work in asked}))
            found = row(machines, planner, system, context, questions * len(profile.seeds), made, source)
            if index := indexes.get(experiment.systems[system].index):
                for name, built in index.machines.items():
                    if built.status != "ok" and found.machines[name].status == "ok":
                        refused = {"status": built.status, "reason": f"{index.name}: {built.reason}", "seconds": None}
                        found.machines[name] = replace(found.machines[name], **refused)
            yield found


def row(
    machines: dict[str, Hardware], planner: Planner, name: str, size: str, questions: int,
    made: dict[str, list[Estimate]], source: str,
) -> Row:  # fmt: skip
    """A line from its cells' estimates by precision."""
    cells, parts = next(iter(made.values())), {}
    for part in (part for cell in cells for part in cell.parts):
        parts[part.name] = max(parts.get(part.name, 0), part.bytes)
    flops = None if any(cell.flops is None for cell in cells) else sum(cell.flops for cell in cells)
    judged = {key: joint([planner.judge(cell, at) for cell in made[at.dtype]]) for key, at in machines.items()}
    return Row(name, size, questions, flops, parts, judged, source)


def joint(each: list[Verdict]) -> Verdict:
    """One verdict on all cells of a line: the largest bytes, all seconds, the first refusal."""
    bad = [item for item in each if item.status != "ok"]
    first = bad[0] if bad else each[0]
    few = f"{len(bad)} of {len(each)} cells: " if 0 < len(bad) < len(each) else ""
    seconds = [item.seconds for item in each if item.status == "ok"]
    largest = {key: max(getattr(item, key) for item in each) for key in BYTES}
    total = sum(seconds) if seconds and None not in seconds else None
    return Verdict(first.status, few + first.reason, **largest, seconds=total)


def published(planner: Planner, machines: dict[str, Hardware]) -> list[dict[str, Any]]:
    """The published figures of a profile beside the formula's: chunks of P tokens without partial tails."""
    if not planner.experiment.profile.published:
        return []
    given = PublishedSpec(**planner.experiment.profile.published)
    config, tokens = planner.config(given.model), planner.experiment.contexts[given.context]
    documents = Documents.even(tokens, config.pool_tokens)
    bank = plan.bank_bytes(config, documents, Storage(given.dtype, given.dtype))
    keys, content = bank["routing keys"] / 1e9, bank["content"] / 1e9
    row_bytes = f"{len(config.routed_layers)} layers x {config.kv_heads} x {config.head_dim} x {plan.ELEMENT_BYTES[given.dtype]} bytes"
    chunks = f"{tokens:,} / {config.pool_tokens} = {documents.chunks(config.pool_tokens):,} chunks"
    training = Estimate(stages={"train": plan.training_cost(config, given.training_tokens)})
    took = {name: planner.seconds(training, at) / 3600 for name, at in machines.items() if at.devices}
    names = ("what", "value", "unit", "published", "formula")
    found = [
        ("routing keys", keys, "GB", given.routing_keys_gb, f"{chunks} x {row_bytes}"),
        ("content K and V", content, "GB", None, "twice that"),
        ("together", keys + content, "GB", given.memory_gb, given.source),
        *[(f"pre-training {at}", h, "hours", None, f"6 N x {given.training_tokens:,.0f} tokens") for at, h in took.items()],
    ]
    return [dict(zip(names, line, strict=True)) for line in found]


# --- as text


def lines(made: Plan, shown: str) -> Iterator[str]:
    """The screen; bytes by tier are those on the machine ``shown``."""
    yield made.title
    for name, at in made.machines.items():
        size = f"{at.devices} x {at.device_gb:g} GB, " if at.devices else ""
        rate = f"{at.matmul_tflops:.3g} TFLOP/s {at.dtype} x {at.matmul_share:g}"
        if name == HERE and made.rates:
            rate = f"measured rates of {made.rates} stages, else {rate}"
        yield f"  {name:14s} {at.title}: {size}host {at.host_gb:,.0f} GB, disk {at.disk_gb:,.0f} GB; {rate} ({at.source})"
    head = ["what", "memory or size", "questions", "device GB", "host GB", "disk GB", "FLOPs", *(f"h {name}" for name in made.machines), "source"]
    body = [row_cells(run, shown) for run in merged(made.rows, shown)]
    total = ["in all that fits", *[""] * 6, *(hours(total_hours(made, name)) for name in made.machines), ""]
    yield from ("", *table([head, *body, total]))
    yield from (f"  {line}" for line in refusals(made.rows))
    yield f"  Bytes are the largest cell's on {shown}, of each device. Source: the profile's own runs, prepared data, or assumed tokens."
    if made.published:
        yield from ("", "Published figures, by formula")
    for line in made.published:
        beside = "" if line["published"] is None else f"published: {line['published']:g} {line['unit']}"
        yield f"  {line['what']:28s} {line['value']:9,.1f} {line['unit']:6s} {beside:18s} {line['formula']}"
    if made.measured:
        yield from ("", *summary_lines(made.measured))


def table(cells: list[list[str]]) -> Iterator[str]:
    """Columns as wide as they have to be; all but the first two to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        pairs = enumerate(zip(line, widths, strict=True))
        yield "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in pairs).rstrip()


def merged(found: list[Row], shown: str) -> Iterator[list[Row]]:
    """Lines; neighbouring contexts that differ little share one, which shows the last."""
    run: list[Row] = []
    for row in found:
        if run and not alike(run[0], row, shown):
            yield run
            run = []
        run.append(row)
    yield run


def alike(one: Row, other: Row, shown: str) -> bool:
    """Whether two contexts of a system may share a line: equal statuses, no figure off by more than a third."""
    if (one.name, one.source, one.questions) != (other.name, other.source, other.questions):
        return False
    pairs = [(one.flops, other.flops), *((getattr(one.machines[shown], key), getattr(other.machines[shown], key)) for key in BYTES)]
    same = all(one.machines[name].status == other.machines[name].status for name in one.machines)
    return same and all(a == b if None in (a, b) else abs(a - b) <= max(a, b) / 3 for a, b in pairs)


def row_cells(run: list[Row], shown: str) -> list[str]:
    """A line of one or more contexts."""
    first, last = run[0], run[-1]
    size = first.size if first is last else f"{first.size}-{last.size}"
    held = [f"{getattr(last.machines[shown], key) / 1e9:,.2f}" if last.parts else "-" for key in BYTES[:3]]
    flops = "not estimated" if last.flops is None else number(last.flops)
    took = [v.status if v.status != "ok" else hours(None if v.seconds is None else v.seconds / 3600) for v in last.machines.values()]
    return [last.name, size, str(last.questions or ""), *held, flops, *took, last.source]


def total_hours(made: Plan, name: str) -> float:
    """Hours of training, indexes and cells on a machine, without what is refused or not estimated there."""
    return sum((row.machines[name].seconds or 0.0) / 3600 for row in made.rows)


def refusals(found: Iterable[Row]) -> Iterator[str]:
    """Why cells are refused: each system's first refused line, by machine; what no machine mends is said once."""
    for name, same in groupby(found, key=lambda row: row.name):
        told = set()
        for row in same:
            for machine, verdict in row.machines.items():
                where = f" on {machine}" if verdict.status in ("out_of_memory", "timeout") else ""
                if verdict.status != "ok" and (where, verdict.status) not in told:
                    told.add((where, verdict.status))
                    yield f"{name}, {row.size}{where}: {verdict.status}: {verdict.reason}"


def summary_lines(found: list[Comparison]) -> Iterator[str]:
    """Planned over measured by kind of thing, with what is off by more than the tolerance."""
    yield f"Planned / measured, of what ran here: median, range, rows within {TOLERANCE:.0%} (`--measured` lists them; seconds of a row at the others' rates)"
    for what, items in by_kind(found):
        ratios = sorted(item.ratio for item in items)
        beyond = sorted((item for item in items if not item.within), key=lambda item: -abs(item.ratio - 1))
        named = ", ".join(f"{item.row} {item.ratio:.2f}" for item in beyond[:NAMED]) + (", ..." if len(beyond) > NAMED else "")
        spread = f"{median(ratios):.2f}  {ratios[0]:.2f} to {ratios[-1]:.2f}"
        yield f"  {what:42s} {spread:20s} {len(items) - len(beyond):3d} of {len(items):3d}  {named}".rstrip()


def comparison_lines(found: list[Comparison]) -> Iterator[str]:
    """Every planned figure beside the measured one."""
    if not found:
        yield "nothing of this profile has run on this machine"
        return
    cells = [["what", "row", "planned", "measured", "ratio", ""]]
    for what, items in by_kind(found):
        for item in items:
            figures = (f"{value:,.1f}" if what.endswith("seconds") else f"{value:,.0f}" for value in (item.planned, item.measured))
            cells.append([what, item.row, *figures, f"{item.ratio:.3f}", "" if item.within else f"beyond {TOLERANCE:.0%}"])
    yield from table(cells)


def by_kind(found: list[Comparison]) -> Iterator[tuple[str, list[Comparison]]]:
    """Comparisons grouped by what they are of."""
    for what, items in groupby(sorted(found, key=lambda item: item.what), key=lambda item: item.what):
        yield what, list(items)


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def hours(value: float | None) -> str:
    """Hours to three digits, down to seconds."""
    if value is None:
        return "-"
    return number(value) if value >= 0.001 or not value else "<0.001"


if __name__ == "__main__":
    run_command(main)
