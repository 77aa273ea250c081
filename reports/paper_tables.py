"""One of the paper's tables or figures: run its cells alone, then print published, measured, interval, n and verdict.

    python -m reports.paper_tables table-2 --profile tiny
    make table-2 PROFILE=paper

The same stands in results/{profile}/_tables as HTML, CSV and LaTeX; reports/published/tables.yaml says what each table
needs, and which profiles a name such as `paper` stands for. Cells that are there are not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from msa_base.command import experiment_parser
from msa_base.errors import run_command
from msa_base.load import load
from msa_base.paths import Paths
from msa_base.tables import whole_file
from msa_base.validate import check_known
from reports import claims, sources, training_time
from reports.build import environment
from reports.evidence import Evidence
from reports.figures import look
from reports.paper_cells import WORDS, TableCell, cells, level_of, systems_of, tasks_of, verdict
from reports.published.reference import Reference, read_reference
from reports.published.tables import TABLES, PaperTable, read_tables
from reports.tables import judges, latex
from reports.tables.linked import LinkedCell, fields
from reports.tables.linked import linked as linked_rows
from reports.tables.table import Column, IntervalColumn, Table, figure, plain, words

CHECKS = "baselines.checks.check", "tasks.check"
TONES = dict(zip(WORDS, ("good", "bad", "good", "unsure"), strict=True))


@dataclass
class MeasuredTable:
    """A table with the evidence of one profile."""

    name: str
    spec: PaperTable
    evidence: Evidence

    @cached_property
    def reference(self) -> Reference:
        """The published numbers and the ledger, roles played by the profile's systems."""
        return read_reference(systems=self.evidence.systems)

    @cached_property
    def level(self) -> float:
        """Of the intervals."""
        return level_of(self.spec, self.evidence, self.reference)

    @cached_property
    def cells(self) -> list[TableCell]:
        """Every number."""
        return cells(self.spec, self.evidence, self.reference, self.level)

    @cached_property
    def table(self) -> Table:
        """A row a number."""
        columns = [
            *plain(title="System", place="Where", tasks="", metric=""),
            Column("published", f"Published ({self.spec.unit})", "g"),
            IntervalColumn("measured", "Measured", figure),
            *plain(n="n"),
            Column("verdict", "Verdict", words, lambda word: TONES.get(word, "none")),
        ]
        rows = [
            (
                cell.title,
                self._place(cell.place),
                " ".join(key.task for key in cell.cells),
                cell.metric,
                cell.published,
                cell.measured,
                cell.measured and cell.measured.n,
                verdict(cell, self.reference),
            )
            for cell in self.cells
        ]
        return Table(self.name, self.spec.title, columns, rows)

    @cached_property
    def claims(self) -> Table:
        """The ledger's claims of the table."""
        found = claims.find(self.evidence, self.reference, self.spec.families)
        names = "claim", "title", "published", "measured", "unit", "n", "level", "verdict", "needed", "where"
        return claims.table(found).only(*names)

    @cached_property
    def beside(self) -> list[Table]:
        """What was timed here, where the table is of timings; what its judges give to answers that are known."""
        frame = training_time.read(timings(self.evidence.paths)) if self.spec.timings else None
        is_judged = self.spec.measure(self.evidence.experiment.name).metric == "judge"
        probed = judges.probe_tables(self.evidence) if is_judged else []
        return probed if frame is None else [*probed, training_time.table(frame)]

    def _place(self, place: str) -> str:
        return self.evidence.title(place) if place in self.evidence.experiment.tasks else place

    @property
    def note(self) -> str:
        """What the numbers are."""
        exact = self.evidence.experiment.name in self.spec.exact.profiles
        adjusted = f"intervals of {claims.percent(self.level)}, adjusted for the cells that differ"
        means = adjusted if exact else "other tasks stand in for the paper's, so that only the claims have verdicts"
        means = "a rehearsal, whose numbers mean nothing" if self.evidence.experiment.profile.rehearsal else means
        return f"Published: {self.spec.source}. Profile {self.evidence.experiment.name}: {means}."

    def linked(self) -> list[tuple[Table, list[list[LinkedCell]]]]:
        """Both tables with the cells that are shown, each number with the record it came from."""
        paper = [f"https://arxiv.org/abs/{self.reference.paper.arxiv}"]
        own = []
        for cell, values in zip(self.cells, self.table.rows, strict=True):
            links = sources.runs(self.evidence, cell.cells)
            shown = [(it, value) for it, value in zip(self.table.columns, values, strict=True) if it.title]
            row = [fields(it, value, paper if it.name == "published" else links) for it, value in shown]
            own.append([field for part in row for field in part])
        found = [(self.table, own)]
        if self.claims.rows:
            found.append((self.claims, [row.fields for row in linked_rows(self.claims, self.evidence, self.reference)]))
        for table in self.beside:
            rows = [zip(table.columns, values, strict=True) for values in table.rows]
            found.append((table, [[cell for it, value in row for cell in fields(it, value, [])] for row in rows]))
        return found

    def write(self) -> list[Path]:
        """HTML, CSV and LaTeX below the profile's results."""
        folder, parts = self.evidence.paths.root / "_tables", self.linked()
        light, dark = look.variables()
        page = environment().get_template("paper_table.html.j2")
        head = {"title": self.spec.title, "note": self.note, "light": light, "dark": dark}
        texts = {
            ".html": page.render(parts=parts, **head),
            ".csv": self.table.frame.to_csv(index=False),
            ".tex": latex.document(self.spec.title, self.note, parts),
        }
        if self.claims.rows:
            texts["-claims.csv"] = self.claims.frame.to_csv(index=False)
        paths = [folder / f"{self.name}{ending}" for ending in texts]
        for path, content in zip(paths, texts.values(), strict=True):
            with whole_file(path) as temporary:
                temporary.write_text(content)
        return paths

    def printed(self) -> str:
        """The table and its claims as text."""
        lines = [self.spec.title, self.note, "", *self.table.text()]
        if self.claims.rows:
            lines += ["", "Claims of the ledger", *self.claims.only(*claim_columns(self.claims)).text()]
        for table in self.beside:
            lines += ["", table.title, *table.text()]
        return "\n".join(lines)


def claim_columns(table: Table) -> list[str]:
    """The columns that fit a terminal."""
    return [column.name for column in table.columns if column.name not in ("claim", "where")]


def run(chosen: argparse.Namespace, spec: PaperTable, profile: str) -> None:
    """Run the table's cells of a profile; a failure ends with its code."""
    experiment = load(profile, chosen.configs, chosen.data)
    evidence = Evidence(experiment, Paths.of(profile, chosen.results))
    systems = systems_of(spec, evidence, read_reference(systems=evidence.systems))
    tasks = tasks_of(spec.measure(profile), evidence)
    targets = [str(evidence.paths.task(system, task) / "scores.json") for system in systems for task in tasks]
    if spec.measure(profile).metric == "judge" and experiment.judges:
        targets += [str(evidence.paths.probes(task)) for task in tasks if targets]
    if spec.timings:
        _start([spec.timings, "--out", str(timings(evidence.paths))])
    if not targets:
        return
    places = ["--profile", profile, "--results", str(chosen.results), "--configs", str(chosen.configs)]
    places += ["--data", chosen.data] if chosen.data else []
    workflow = ["msa_base.workflow", *targets, "--systems", ",".join(systems)]
    for command in ([check] for check in CHECKS):
        _start([*command, *places])
    _start([*workflow, *places])


def timings(paths: Paths) -> Path:
    """Where a table's timings are kept."""
    return paths.root / "_tables" / "training-time.csv"


def _start(command: Sequence[str]) -> None:
    if code := subprocess.run([sys.executable, "-m", *command]).returncode:
        sys.exit(code)


def main() -> None:
    """Run and print one table."""
    parser = experiment_parser(__doc__)
    parser.add_argument("table", help="a table of reports/published/tables.yaml, such as table-2")
    parser.add_argument("--no-run", action="store_true", help="run nothing: show what there is")
    chosen = parser.parse_args()
    tables = read_tables()
    check_known([chosen.table], tables, "table", TABLES)
    spec = tables[chosen.table]
    for profile in spec.profiles.get(chosen.profile, [chosen.profile]):
        if not chosen.no_run:
            run(chosen, spec, profile)
        found = MeasuredTable(chosen.table, spec, Evidence.read(profile, chosen.results, chosen.configs))
        print(found.printed())
        print("\n".join(["", *map(str, found.write())]))


if __name__ == "__main__":
    run_command(main)
