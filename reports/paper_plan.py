"""What the paper's tables need: the plan of every profile behind a name, then each table's hours, disk and dollars.

    python -m reports.paper_plan --profile paper
    make plan PROFILE=paper

A name that stands for no others (reports/published/tables.yaml) is planned by itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from msa_base.command import experiment_parser
from msa_base.errors import run_command
from msa_base.load import Experiment, load
from msa_base.paths import Paths
from reports.evidence import Evidence
from reports.paper_cells import systems_of, tasks_of
from reports.published.reference import read_reference
from reports.published.tables import PaperTable, read_tables

PLAN = "baselines.planning.plan"
HEAD = ("table", "profile", "cells", "planned", "device GB", "host GB", "disk GB", "hours", "dollars", "no price")


def main() -> int:
    """Print the plans; 0, or the code of one that failed."""
    chosen = experiment_parser(__doc__).parse_args()
    behind = {name: standing(table, chosen.profile) for name, table in read_tables().items()}
    profiles = list(dict.fromkeys([chosen.profile, *(profile for found in behind.values() for profile in found)]))
    for profile in profiles:
        if code := subprocess.run(_command(chosen, profile)).returncode:
            return code
        print()
    tables = {name: found for name, found in behind.items() if found}
    if tables:
        plans = {profile: _read(chosen, profile) for found in tables.values() for profile in found}
        print("\n".join(lines(chosen, plans, tables)))
    return 0


def standing(table: PaperTable, profile: str) -> list[str]:
    """The profiles that measure a table under a name; none where it would be measured on other tasks."""
    return table.profiles.get(profile, [profile] if profile in table.exact.profiles else [])


def _command(chosen: argparse.Namespace, profile: str) -> list[str]:
    places = ["--profile", profile, "--results", str(chosen.results), "--configs", str(chosen.configs)]
    return [sys.executable, "-m", PLAN, *places, *(["--data", chosen.data] if chosen.data else [])]


def _read(chosen: argparse.Namespace, profile: str) -> dict[str, Any]:
    return json.loads(subprocess.run([*_command(chosen, profile), "--json"], stdout=subprocess.PIPE, check=True).stdout)


def lines(chosen: argparse.Namespace, plans: dict[str, Any], tables: dict[str, list[str]]) -> Iterator[str]:
    """The summary: a line a table and profile. Indexes and models count in each table that needs them."""
    rows = [list(HEAD)]
    for name, profiles in tables.items():
        for profile in profiles:
            experiment = load(profile, chosen.configs, chosen.data)
            paths = Paths.of(profile, chosen.results)
            rows.append([name, profile, *summary(read_tables()[name], experiment, paths, plans[profile])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield "By table, on the profile's machine (bytes: the largest cell's, of each device, and all ranks' of the host)"
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield "  Planned: cells with a row or a status. A cell is costed as if it ran alone, each index and training once."


def summary(table: PaperTable, experiment: Experiment, paths: Paths, plan: dict[str, Any]) -> list[str]:
    """Figures of one table: its cells, how many the plan has, the largest bytes, and all hours and dollars."""
    evidence, profile = Evidence(experiment, paths), experiment.profile
    systems = systems_of(table, evidence, read_reference(systems=evidence.systems))
    tasks = tasks_of(table.measure(experiment.name), evidence)
    cells = len(systems) * len(tasks) * len(profile.contexts) * len(profile.seeds)
    indexes = {index for system in systems if (index := experiment.systems[system].index)}
    at = profile.hardware or "here"
    own = [row for row in plan["rows"] if row["name"] in systems]
    built = [
        row for row in plan["rows"] if row["name"].startswith("index ") and row["name"].split()[1].strip(",") in indexes
    ]
    trained = trainings(experiment, systems)
    learned = [row for row in plan["rows"] if row["name"] in {f"model {name}" for name in trained}]
    planned = len(own) * len(tasks) * len(profile.seeds)
    held = {
        key: max((row["machines"][at][key] for row in [*own, *built, *learned]), default=0)
        for key in ("device_bytes", "host_bytes")
    }
    disk = sum(row["machines"][at]["disk_bytes"] for row in [*built, *learned])
    # a row is of all tasks of its profile; a table that asks some of them takes its share
    share = len(tasks) / len(profile.tasks)
    hours = sum(row["machines"][at]["seconds"] or 0.0 for row in [*own, *built]) * share / 3600
    hours += sum(row["machines"][at]["seconds"] or 0.0 for row in learned) / 3600
    answers = sum(row["questions"] for row in own) * share
    everything = sum(row["questions"] for row in plan["rows"] if row["name"] in profile.systems)
    judged = [judge["dollars"] and judge["dollars"] * answers / everything for judge in plan["judges"] if everything]
    served = [row["dollars"] and row["dollars"] * share for row in own if row["served_tokens"][0]]
    dollars = sum(price for price in [*judged, *served] if price)
    unpriced = {
        experiment.systems[row["name"]].model for row in own if row["served_tokens"][0] and row["dollars"] is None
    }
    sizes = (f"{size / 1e9:,.1f}" for size in (held["device_bytes"], held["host_bytes"], disk))
    return [str(cells), str(planned), *sizes, f"{hours:,.2f}", f"{dollars:,.2f}", ", ".join(sorted(unpriced))]


def trainings(experiment: Experiment, systems: list[str]) -> set[str]:
    """The models that a table's systems open, and those that these are trained after."""
    specs = [experiment.systems[system] for system in systems]
    found = {name for spec in specs for name in (spec.model, spec.reranker) if name}
    found |= {model for spec in specs if spec.index and (model := experiment.indexes[spec.index].model)}
    while parents := {experiment.models[name].after for name in found} - found - {None}:
        found |= parents
    return found


if __name__ == "__main__":
    run_command(main)
