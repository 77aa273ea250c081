"""Build the HTML report of a profile: one self-contained page, and a CSV of each table beside it.

Works on partial results: what has not run yet is shown as not measured. Examples::

    python -m reports.build --profile tiny
    python -m reports.build --profile tiny --print
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from msa_base.command import experiment_parser
from msa_base.errors import run_command
from msa_base.paths import SEAL
from msa_base.seal import write_seal
from msa_base.stages import Stages
from msa_base.tables import whole_file
from reports import bench, claims, expected, headline, predictions, sources, tiles
from reports.evidence import NOT_MEASURED, Evidence
from reports.figures import cost, heat, look, pareto, quality
from reports.figures.panel import Panel, Swatch, panels
from reports.published.reference import Reference, read_reference
from reports.tables import causes, cells, costs, effective, judges, leaderboard, ledger, pdf, provenance, scores
from reports.tables.linked import linked
from reports.tables.table import SHORT, Table, words

PDF = "tables.pdf"
TEMPLATES = Path(__file__).parent / "templates"
ACCURACY = quality.overview, quality.scaling, heat.needles, heat.needle_depths, heat.needle_subtasks
METHOD = quality.recall, quality.interleave
COST = pareto.pareto, cost.cost, cost.latency_split, cost.time_share, cost.training
SECTIONS = {
    "top": "Summary",
    "claims": "Claims",
    "ledger": "Ledger",
    "leaderboards": "Leaderboards",
    "scaling": "Memory size",
    "needles": "Needles",
    "two-hop": "Two-hop",
    "routing": "Routing",
    "cost": "Cost",
    "training": "Training",
    "scores": "Scores",
    "cells": "Cells",
    "provenance": "Provenance",
}.items()
# tables that index.html.j2 shows where they belong; any other comes after the scores
PLACED = {
    "claims",
    "ledger",
    "expected",
    "comparisons",
    "interleave",
    "free_ids",
    "recall",
    "failures",
    "provenance",
    "status",
}
PLACED |= {"cost", "growth", "stages", "time", "tuning", "routing"}
PLACED |= {"scores", "by_memory", "scenarios", "judgments", "agreement"}
Draw = Callable[[Evidence, Reference], Figure | None]
FIGURES: dict[str, Draw] = {draw.__name__: draw for draw in (*ACCURACY, *METHOD, *COST)}


@dataclass
class Report:
    """What a report says of the evidence: findings, tables, figures, and the summary of one screen."""

    evidence: Evidence

    @cached_property
    def reference(self) -> Reference:
        """The published numbers."""
        return read_reference(systems=self.evidence.systems)

    @cached_property
    def headline(self) -> Table:
        """The headline numbers."""
        return headline.headline(self.evidence, self.reference)

    @cached_property
    def findings(self) -> list[claims.Finding]:
        """The verdict on each published claim."""
        return claims.find(self.evidence, self.reference)

    @property
    def headlines(self) -> list[claims.Finding]:
        """The verdicts that the first screen shows."""
        return [finding for finding in self.findings if finding.claim.headline]

    @cached_property
    def outcomes(self) -> list[expected.ExpectationResult]:
        """The scores that the profile should reach."""
        return expected.check(self.evidence)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Every table by its name."""
        evidence, roles = self.evidence, self.reference.played_by
        made = [
            claims.table(self.headlines),
            ledger.ledger(self.findings, self.reference.ledger),
            expected.table(self.outcomes),
            *(scores.overview(evidence, context) for context in evidence.ends),
            *leaderboard.leaderboards(evidence),
            scores.by_memory(evidence),
            scores.scores(evidence, scores.tasks_of_scores(evidence), evidence.contexts),
            scores.comparisons(evidence, roles["ours"]),
            scores.interleave(evidence, roles),
            scores.free_ids(evidence, roles),
            effective.effective_length(evidence, self.reference),
            scores.recall(evidence, roles["ours"]),
            *scores.scenarios(evidence),
            *judges.tables(evidence),
            causes.failures(evidence, roles["ours"]),
            costs.cost(evidence),
            costs.growth(evidence),
            costs.stages(evidence),
            costs.time(evidence),
            costs.tuning(evidence),
            provenance.made_from(evidence),
            cells.statuses(evidence),
            *([] if self.routing is None else [bench.table(self.routing)]),
        ]
        return {table.name: table for table in made}

    @cached_property
    def routing(self) -> bench.Rows | None:
        """What `make bench` measured on this machine, beside the profiles; None where it was not run."""
        return bench.read(self.evidence.paths.root.parent / "bench")

    @property
    def drawn(self) -> dict[str, Figure]:
        """Every figure that has something to show, drawn anew: its layout is done once."""
        drawn = {name: draw(self.evidence, self.reference) for name, draw in FIGURES.items()}
        drawn["roofline"] = None if self.routing is None else bench.roofline(self.routing)
        return {name: figure for name, figure in drawn.items() if figure}

    @property
    def reviewed(self) -> list[Table]:
        """The tables that a review needs: headline, verdicts, scores at the ends of the contexts, comparisons, cost."""
        tables = self.tables
        claims = tables["claims"].only("title", "published", "measured", "unit", "where", "verdict")
        names = [f"scores_{context}" for context in self.evidence.ends]
        names += ["interleave", "comparisons", "cost", "growth"]
        return [table for table in (self.headline, claims, *(tables[name] for name in names)) if table.rows]

    @property
    def figures(self) -> dict[str, str]:
        """Every figure as an SVG file."""
        return {name: look.svg(figure) for name, figure in self.drawn.items()}

    def summary(self, page: Path | None = None) -> str:
        """One screen: headline numbers, verdicts, expectations missed, failed cells, and where the report is."""
        evidence = self.evidence
        title, systems = evidence.experiment.profile.title, len(evidence.systems)
        lines = [title, "", f"Cells of {systems} systems: {headline.cells_measured(evidence)}"]

        def add(title: str, body: Table | list[str]) -> None:
            text = (body.text() if body.rows else []) if isinstance(body, Table) else body
            lines.extend(["", title, *(f"  {line}" for line in text)] if text else [])

        add("Headline numbers, with 95 % intervals", self.headline)
        if not any(evidence.tasks_of_role(role) for role in headline.HEADLINED):
            add("Scores at the largest memory, with 95 % intervals", headline.largest(evidence))
        own = [finding for finding in self.headlines if not finding.elsewhere]
        absent = len(self.headlines) - len(own)
        without = f"; {absent} of {len(self.headlines)} are for other profiles" if absent else ""
        verdicts = claims.table(own).only("title", "verdict", "published", "measured", "unit", "where")
        body = [*verdicts.text(), *claims.notes(own)] if own else ["none for this profile"]
        title = f"Published claims, intervals of 95 % adjusted for each family's number{without}"
        add(title, [*body, f"All {len(self.tables['ledger'].rows)} claims: ledger.csv"])
        counts = Counter(outcome.verdict for outcome in self.outcomes)
        add("Expected of this profile", [f"{count:>4} {word}" for word, count in counts.items()])
        add("Missed", expected.table(outcome for outcome in self.outcomes if outcome.verdict == expected.MISSED))
        failed = [f"{count:>4} {words(status)}: {', '.join(names)}" for status, count, names in cells.failed(evidence)]
        add("Cells without a score", failed)
        add("What models read", cells.prompts(evidence))
        return "\n".join([*lines, *(["", f"Report: {page}"] if page else [])])

    def page(self) -> str:
        """The HTML page."""
        evidence, profile = self.evidence, self.evidence.experiment.profile
        boards = [table for name, table in self.tables.items() if name.startswith("leaderboard_")]
        placed = {*PLACED, *(board.name for board in boards), *(f"scores_{context}" for context in evidence.ends)}
        light, dark = look.variables()
        return (
            environment()
            .get_template("index.html.j2")
            .render(
                profile=profile,
                name=evidence.experiment.name,
                reference=self.reference,
                light=light,
                dark=dark,
                sections=SECTIONS,
                tiles=list(tiles.tiles(evidence, self.reference)),
                headline=self.headline,
                cells=f"Cells: {headline.cells_measured(evidence)}",
                tables=self.tables,
                further=[self.tables[name] for name in self.tables if name not in placed],
                boards=boards,
                linked=lambda table: linked(table, evidence, self.reference),
                runs=lambda cells: sources.runs(evidence, cells),
                counts=Counter(row[3] for row in self.tables["ledger"].rows),
                ends=evidence.ends,
                met=sum(outcome.verdict == expected.MET for outcome in self.outcomes),
                figures={name: shown(name, figure) for name, figure in self.drawn.items()},
                grid=cells.grid(evidence),
                task_titles=[evidence.title(task) for task in profile.tasks],
                status_letters={**cells.LETTERS, "ok": "✓"},
                short={status: word for status, word in SHORT.items() if status != NOT_MEASURED},
                failed=cells.failed(evidence),
                prompts=cells.prompts(evidence),
                machine=provenance.machine(evidence),
            )
        )


class Placed(NamedTuple):
    """A figure on the page: its panels, and the legend that they share, if they do."""

    panels: list[Panel]
    legend: tuple[Swatch, ...]


def shown(name: str, figure: Figure) -> Placed:
    """A figure as the page shows it."""
    found = panels(figure, name, name.replace("_", " "))
    legends = {panel.legend for panel in found}
    return Placed(found, found[0].legend if len(found) > 1 and len(legends) == 1 else ())


def environment() -> Environment:
    """The templates, which escape whatever a results tree holds."""
    rules = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    found = Environment(loader=FileSystemLoader(TEMPLATES), **rules)
    found.tests["several"] = lambda links: len(links) > 1
    return found


def answers(evidence: Evidence) -> str:
    """The HTML page of predictions."""
    choices, blocks = predictions.blocks(evidence)
    name = evidence.experiment.name
    template = environment().get_template("predictions.html.j2")
    return template.render(name=name, choices=choices, blocks=blocks, most=predictions.MOST)


def build(evidence: Evidence) -> str:
    """Write the report's files, the page last; the one-screen summary as text. UserErrors as :class:`Evidence`'s."""
    report, folder = Report(evidence), evidence.paths.report
    page = report.page()
    for table in report.tables.values():
        with whole_file(folder / f"{table.name}.csv") as temporary:
            table.frame.to_csv(temporary, index=False)
    with whole_file(folder / PDF) as temporary:
        pdf.write(temporary, report.reviewed, f"MSA, profile {evidence.experiment.name}")
    summary = report.summary(folder / "index.html")
    pages = {"summary.txt": f"{summary}\n", "predictions.html": answers(evidence), "index.html": page}
    for name, text in pages.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(text)
    names = [*pages, PDF, *(f"{table}.csv" for table in report.tables)]
    write_seal(folder / SEAL, Stages(evidence.experiment).report(), names)
    return summary


def main() -> None:
    """Build one profile's report."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--print", action="store_true", dest="printed", help="print the one-screen summary as well")
    arguments = parser.parse_args()
    evidence = Evidence.named(arguments)
    summary = build(evidence)
    print(summary if arguments.printed else evidence.paths.report / "index.html")


if __name__ == "__main__":
    run_command(main)
