"""Build the HTML report of a profile: one self-contained page, and a CSV of each table beside it.

Works on partial results: what has not run yet is shown as not measured. Examples::

    python -m reports.build --profile tiny
    python -m reports.build --profile tiny --print
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.errors import run_command
from configs.tables import whole_file
from reports import bench, cells, claims, expected, headline, judging, plotting, provenance, scenarios, tables
from reports.evidence import NOT_MEASURED, Evidence
from reports.figures import FIGURES
from reports.statistics import loss

TEMPLATES = Path(__file__).parent / "templates"


def figures(evidence: Evidence, reference: dict[str, Any]) -> dict[str, str | None]:
    """Every figure as a data URI; None where nothing is measured yet."""
    drawn = {name: draw(evidence, reference) for name, draw in FIGURES.items()}
    routing = bench.read(benchmark(evidence))
    if routing is not None:
        drawn["roofline"] = bench.roofline(routing)
    return {
        name: figure and f"data:image/svg+xml;base64,{base64.b64encode(plotting.svg(figure)).decode()}"
        for name, figure in drawn.items()
    }


def all_tables(
    evidence: Evidence, reference: dict[str, Any], findings: list[claims.Finding]
) -> dict[str, tables.Table]:
    """Every table by its name."""
    roles, contexts = reference["roles"], evidence.experiment.profile.contexts
    made = [
        tables.claims(findings),
        *(tables.scores(evidence, context) for context in dict.fromkeys((contexts[0], contexts[-1]))),
        tables.all_scores(evidence),
        tables.comparisons(evidence, roles["ours"]),
        tables.interleave(evidence, roles),
        tables.free_ids(evidence, roles),
        tables.recall(evidence, roles["ours"]),
        tables.failures(evidence, roles["ours"]),
        tables.cost(evidence),
        tables.stages(evidence),
        tables.time(evidence),
        tables.tuning(evidence),
        provenance.inputs(evidence),
        *scenarios.tables(evidence),
        *judging.tables(evidence),
    ]
    routing = bench.read(benchmark(evidence))
    if routing is not None:
        made.append(bench.table(routing))
    return {table.name: table for table in made}


def benchmark(evidence: Evidence) -> Path:
    """Where `make bench` leaves its rows: beside the profiles, since it measures the machine."""
    return evidence.paths.root.parent / "bench"


def scaling_by_heads(evidence: Evidence, ours: str) -> str:
    """The loss over the whole range of memory with the replicate heads, not the questions, as the unit; empty without data."""
    contexts = evidence.experiment.profile.contexts
    for task in evidence.tasks_of_kind("scaling"):
        paired = evidence.paired(task, (ours, contexts[-1]), (ours, contexts[0]), "accuracy")
        heads = evidence.heads(task, contexts[0])
        if paired is None or not set(paired.index) <= set(heads):
            continue
        groups = [heads[question_id] for question_id in paired.index]
        found = loss(paired.to_numpy(), groups)
        if found.method == "paired bootstrap" and len(set(groups)) > 1:
            return f"{claims.show(found.scaled(100), ' %')} with the {len(set(groups))} replicate heads as the unit of resampling"
    return ""


def render(
    evidence: Evidence,
    reference: dict[str, Any],
    findings: list[claims.Finding],
    outcomes: list[expected.Outcome],
    made: dict[str, tables.Table],
) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    profile = evidence.experiment.profile
    return environment.get_template("index.html.j2").render(
        profile=profile,
        name=evidence.experiment.name,
        reference=reference,
        tiles=headline.tiles(evidence, reference),
        tables=made,
        score_tables=[
            made[f"scores_{context}"] for context in dict.fromkeys((profile.contexts[0], profile.contexts[-1]))
        ],
        outcomes=outcomes,
        show=claims.show,
        figures=figures(evidence, reference),
        grid=cells.grid(evidence),
        task_titles=[evidence.title(task) for task in profile.tasks],
        status_letters={**cells.LETTERS, "ok": "✓"},
        short={status: word for status, word in tables.SHORT.items() if status != NOT_MEASURED},
        failed=cells.failed(evidence),
        prompts=cells.prompts(evidence),
        machine=provenance.machine(evidence),
        by_heads=scaling_by_heads(evidence, reference["roles"]["ours"]),
    )


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV, whole or not at all."""
    text = io.StringIO()
    frame.to_csv(text, index=False)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue())


def build(evidence: Evidence) -> str:
    """Write the report's files, the page last; the one-screen summary as text.

    Raises:
        UserError: summary.parquet is missing, or a file of the tree is broken.
    """
    reference = claims.read_reference(systems=evidence.experiment.profile.systems)
    findings, outcomes = claims.find(evidence, reference), expected.check(evidence)
    made = all_tables(evidence, reference, findings)
    page = evidence.paths.report / "index.html"
    html = render(evidence, reference, findings, outcomes, made)
    for table in made.values():
        write_csv(table.frame, evidence.paths.report / f"{table.name}.csv")
    write_csv(cells.frame(evidence), evidence.paths.report / "status.csv")
    with whole_file(page) as temporary:
        temporary.write_text(html)
    return headline.text(evidence, reference, findings, outcomes, page)


def main() -> None:
    """Build one profile's report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--results", default="results", type=Path, help="the results directory (default: results)")
    parser.add_argument(
        "--configs", default="configs", type=Path, help="the configuration directory (default: configs)"
    )
    parser.add_argument("--print", action="store_true", dest="printed", help="print the one-screen summary as well")
    arguments = parser.parse_args()
    evidence = Evidence.read(arguments.profile, arguments.results, arguments.configs)
    summary = build(evidence)
    print(summary if arguments.printed else evidence.paths.report / "index.html")


if __name__ == "__main__":
    run_command(main)
