"""Compare two results directories, cell by cell and question by question, with paired 95 % intervals.

    python -m reports.compare results other/results --profile tiny
    python -m reports.compare results other/results --profile tiny --identical

Both are read by today's configuration. A question is compared where both sides asked the same text and have the same
right answers. A change is the second side less the first. ``--output`` gets one page, its text and a CSV of each table.
With ``--identical`` the exit code is 1 where any answer differs: the check that a run can be repeated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from msa_base.command import experiment_parser
from msa_base.errors import UserError, run_command
from msa_base.options import given_path
from msa_base.records import Answer, without_costs
from msa_base.seal import MadeFrom
from msa_base.stage_records import RunRecord
from msa_base.tables import read_predictions, read_table, whole_file
from reports.evidence import ACCURACY, NOT_MEASURED, CellKey, Evidence
from reports.statistics import compare, mcnemar
from reports.summarise import POINTS
from reports.tables.table import Column, IntervalColumn, Table, cell_columns, plain, words

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 40  # questions of a cell on the page; questions.csv has all
SHOWN_CHARACTERS = 300  # of an answer on the page
CHANGE = IntervalColumn("change", "Change, points", "+.1f", 0.0)
Asked = tuple[str, str, tuple[str, ...]]  # a question's text, what its answer continues, and the right answers


@dataclass(frozen=True)
class Pair:
    """A cell on both sides. ``answers`` are by seed and question, a side that has none is empty."""

    cell: CellKey
    statuses: tuple[str, str]
    answers: tuple[dict[tuple[int, str], Answer], dict[tuple[int, str], Answer]]
    strangers: frozenset[str]  # questions of both sides that share an id and nothing else

    @cached_property
    def differing(self) -> list[str]:
        """Questions of both sides that are answered differently, times and costs aside."""
        first, second = self.answers
        shared = [key for key in first if key in second and key[1] not in self.strangers]
        said = (without_costs([side[key] for key in shared]) for side in self.answers)
        return list(dict.fromkeys(key[1] for key, one, other in zip(shared, *said, strict=True) if one != other))

    @property
    def alone(self) -> tuple[int, int]:
        """How many answers one side alone has."""
        first, second = self.answers
        return len(first.keys() - second.keys()), len(second.keys() - first.keys())

    @property
    def identical(self) -> bool:
        """Whether both sides ended alike and say the same."""
        return self.statuses[0] == self.statuses[1] and not (self.differing or any(self.alone) or self.strangers)


@dataclass(frozen=True)
class TwoRuns:
    """Two sides of one profile."""

    first: Evidence
    second: Evidence

    @classmethod
    def read(cls, first: Path, second: Path, profile: str, configs: Path) -> TwoRuns:
        """Read both directories. Raises UserErrors as :class:`Evidence`, and for one without results of the profile."""
        for results in (first, second):
            if not (results / profile).is_dir():
                raise UserError(f"{results}: has no results of profile '{profile}'; name one with {profile}/ in it")
        return cls(*(Evidence.read(profile, results, configs) for results in (first, second)))

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every cell that a side has run, in the profile's order."""
        return [self._pair(cell) for cell in self.first.cells() if cell in self.first.runs or cell in self.second.runs]

    def _pair(self, cell: CellKey) -> Pair:
        sides = (self.first, self.second)
        answers = tuple(_answers(side, cell) for side in sides)
        shared = {name for _, name in answers[0]} & {name for _, name in answers[1]}
        asked = [_asked(side, cell.task, cell.context) for side in sides]
        if None not in asked:
            strangers = {name for name in shared if asked[0].get(name) != asked[1].get(name)}
        else:  # the prepared task is not there: its digest says whether the questions are the same
            place = f"_data/{cell.task}/{cell.context}/questions.parquet"
            digests = [{run.made_from.data.get(place) for run in side.runs.get(cell, [])} for side in sides]
            strangers = set() if digests[0] == digests[1] and None not in digests[0] else shared
        return Pair(cell, tuple(side.status(cell) for side in sides), answers, frozenset(strangers))

    def values(self, pair: Pair, metric: str = ACCURACY) -> pd.DataFrame:
        """Values of the questions that both sides have, columns ``first`` and ``second``."""
        sides = [side.values(pair.cell, metric).dropna() for side in (self.first, self.second)]
        both = pd.concat(sides, axis=1, join="inner", keys=["first", "second"])
        return both[~both.index.isin(pair.strangers)]

    def _row(self, pair: Pair, metric: str) -> tuple | None:
        """n, both means, the change with its interval, McNemar's p, and the questions that one side alone has right."""
        both = self.values(pair, metric)
        if both.empty:
            return None
        end = POINTS.get(metric.split("/")[0], 1.0)
        table = both[["second", "first"]].to_numpy()
        change = compare("difference", table / end, self._heads(pair.cell, both.index))
        lost, won = (int(np.sum(table[:, one] > table[:, other])) for one, other in ((1, 0), (0, 1)))
        return len(both), *both.mean()[["first", "second"]], change, mcnemar(table / end), lost, won

    def _heads(self, cell: CellKey, questions: pd.Index) -> list[str]:
        return self.second.heads(cell.task, cell.context, questions)

    @cached_property
    def cells(self) -> Table:
        """A row a cell: scores, their change, and how many answers differ."""
        rows = []
        for pair in self.pairs:
            found = self._row(pair, ACCURACY) or (0, None, None, None, None, None, None)
            rows.append((pair.cell.task, pair.cell.system, pair.cell.context, *found, len(pair.differing), _note(pair)))
        numbers = [Column("differ", "Answers differ"), Column("note", "Note")]
        return Table("cells", "Cells", [*cell_columns(self.first, *KEYS), *_columns(), *numbers], rows)

    @cached_property
    def metrics(self) -> Table:
        """The same of every other metric that both sides have."""
        rows = []
        for pair in self.pairs:
            cell, shared = pair.cell, set(self.first.metrics(pair.cell)) & set(self.second.metrics(pair.cell))
            for metric in sorted(shared - {ACCURACY}):
                if found := self._row(pair, metric):
                    rows.append((cell.task, cell.system, cell.context, metric, *found))
        columns = [*cell_columns(self.first, *KEYS), *plain(metric="Metric"), *_columns()]
        return Table("metrics", "Other metrics", columns, rows)

    @cached_property
    def means(self) -> Table:
        """The change of each system at each memory size, over its tasks, which count equally."""
        tasks: dict[tuple[str, str], list[tuple[pd.DataFrame, list[str]]]] = defaultdict(list)
        for pair in self.pairs:
            if not (both := self.values(pair)).empty:
                heads = self._heads(pair.cell, both.index)
                tasks[pair.cell.system, pair.cell.context].append((both[["second", "first"]].to_numpy(), heads))
        rows = []
        for key, found in tasks.items():
            tables, heads = ([item[part] for item in found] for part in (0, 1))
            second, first = np.mean([table.mean(axis=0) for table in tables], axis=0)
            change = compare("difference", tables, heads)
            rows.append((*key, len(tables), sum(map(len, tables)), first, second, change))
        columns = [*cell_columns(self.first, "system", "context"), *plain(tasks="Tasks", n="n"), *SCORES, CHANGE]
        return Table("means", "Means over tasks", columns, rows)

    @cached_property
    def provenance(self) -> Table:
        """What the cells of both sides were not made from alike: code, configuration, data, machine."""
        found: dict[tuple[str, str], list[CellKey]] = defaultdict(list)
        for pair in self.pairs:
            runs = [{run.seed: run for run in side.runs.get(pair.cell, [])} for side in (self.first, self.second)]
            names = {item for seed in runs[0].keys() & runs[1].keys() for item in _made(runs[0][seed], runs[1][seed])}
            for item in names:
                found[item].append(pair.cell)
        alike: dict[tuple[str, tuple[CellKey, ...]], list[str]] = defaultdict(list)
        for (part, name), cells in sorted(found.items()):
            alike[part, tuple(cells)].append(name)
        rows = [
            (part, len(cells), ", ".join(dict.fromkeys(cell.system for cell in cells)), ", ".join(names))
            for (part, cells), names in alike.items()
        ]
        columns = plain(part="Part", cells="Cells", systems="Of systems", names="What differs")
        return Table("provenance", "What the two sides were made from", columns, rows)

    def questions(self, pair: Pair) -> Iterator[dict[str, Any]]:
        """A row a question of a cell: what was asked, and what both sides say."""
        asked = _asked(self.second, pair.cell.task, pair.cell.context) or {}
        values = self.values(pair)
        changed = set(pair.differing)
        shared = {name: None for _, name in pair.answers[0]}.keys() & {name for _, name in pair.answers[1]}
        for name in sorted(shared - pair.strangers):
            text, _, answers = asked.get(name, ("", "", ()))
            row = {**pair.cell._asdict(), "question_id": name, "question": text, "right": " | ".join(answers)}
            for side, known in zip(("first", "second"), pair.answers, strict=True):
                said = [answer for (_, question), answer in sorted(known.items()) if question == name]
                row |= {
                    side: " | ".join(dict.fromkeys(answer.text for answer in said)),
                    f"{side}_value": float(values[side][name]) if name in values.index else None,
                    f"{side}_cited": " ".join(str(doc_id) for answer in said for doc_id in answer.cited_doc_ids),
                }
            yield row | {"differs": name in changed}

    @property
    def outside(self) -> list[str]:
        """Cells of either side that the profile does not name."""
        own = {self.first.paths.cell(*cell, seed).relative_to(self.first.paths.root) for cell, seed in self._profile()}
        roots = (self.first.paths.root, self.second.paths.root)
        there = {path.parent.relative_to(root) for root in roots for path in root.glob("[!_]*/*/*/seed*/run.json")}
        return sorted(map(str, there - own))

    def _profile(self) -> Iterator[tuple[CellKey, int]]:
        return product(self.first.cells(), self.first.experiment.profile.seeds)

    @property
    def outcome(self) -> str:
        """The comparison in a line."""
        both = sum(bool(pair.answers[0]) and bool(pair.answers[1]) for pair in self.pairs)
        differ = sum(not pair.identical for pair in self.pairs)
        tail = f"; {len(self.outside)} cells are outside the profile" if self.outside else ""
        return f"{both} cells have answers on both sides, {differ} of {len(self.pairs)} cells differ{tail}"

    @property
    def identical(self) -> bool:
        """Whether there is something to compare and all of it is the same."""
        return any(pair.answers[0] for pair in self.pairs) and all(pair.identical for pair in self.pairs)

    @property
    def heading(self) -> list[str]:
        """Which side is which."""
        return [f"first: {self.first.paths.root}", f"second: {self.second.paths.root}"]

    def text(self) -> str:
        """Sides, outcome, provenance, means, and the cells that differ."""
        lines = [f"Profile {self.first.experiment.name}", *self.heading, self.outcome]
        same = {pair.cell for pair in self.pairs if pair.identical}
        rows = [row for row in self.cells.rows if not (CellKey(row[1], row[0], row[2]) in same and _unchanged(row))]
        cells = Table("cells", "", self.cells.columns, rows)
        for title, table in (
            ("Made from different things", self.provenance),
            ("Means over tasks, with paired 95 % intervals of the change", self.means),
            ("Cells that differ, with paired 95 % intervals of the change", cells),
        ):
            lines += ["", title, *(f"  {line}" for line in table.text())] if table.rows else []
        return "\n".join(lines)

    def page(self) -> str:
        """The HTML page."""
        rules = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
        environment = Environment(loader=FileSystemLoader(TEMPLATES), **rules)
        differing = {
            pair.cell: [row for row in self.questions(pair) if row["differs"]] for pair in self.pairs if pair.differing
        }
        return environment.get_template("compare.html.j2").render(
            name=self.first.experiment.name,
            heading=self.heading,
            outcome=self.outcome,
            outside=self.outside,
            tables=[self.means, self.cells, self.provenance, self.metrics],
            intervals=sum(row[3] > 0 for row in self.cells.rows),
            differing={" at ".join(self._titles(cell)): rows for cell, rows in differing.items()},
            most=SHOWN,
            characters=SHOWN_CHARACTERS,
        )

    def _titles(self, cell: CellKey) -> tuple[str, str]:
        return f"{self.first.title(cell.system)}, {self.first.title(cell.task)}", cell.context

    def write(self, folder: Path) -> None:
        """Write the page, its text and the tables."""
        questions = pd.DataFrame([row for pair in self.pairs for row in self.questions(pair)])
        frames = {table.name: table.frame for table in (self.provenance, self.means, self.cells, self.metrics)}
        for name, frame in {**frames, "questions": questions}.items():
            with whole_file(folder / f"{name}.csv") as temporary:
                frame.to_csv(temporary, index=False)
        for name, text in (("summary.txt", f"{self.text()}\n"), ("index.html", self.page())):
            with whole_file(folder / name) as temporary:
                temporary.write_text(text)


KEYS = ("task", "system", "context")
SCORES = [Column("first", "First", ".3f"), Column("second", "Second", ".3f")]


def _columns() -> list[Column | IntervalColumn]:
    """The columns of :meth:`TwoRuns._row`."""
    tests = [Column("mcnemar", "McNemar's p", ".3g"), *plain(lost="First alone better", won="Second alone better")]
    return [*plain(n="n"), *SCORES, CHANGE, *tests]


def _unchanged(row: tuple) -> bool:
    return row[4] == row[5]


def _note(pair: Pair) -> str:
    """Why a cell is not compared, or not wholly."""
    statuses = [words(status) for status in pair.statuses]
    found = [] if statuses == ["ok", "ok"] else [statuses[0] if statuses[0] == statuses[1] else " / ".join(statuses)]
    if pair.strangers:
        found.append(f"{len(pair.strangers)} questions are others under the same id")
    if NOT_MEASURED not in pair.statuses and any(pair.alone):
        found.append("{} answers of the first alone, {} of the second".format(*pair.alone))
    return "; ".join(found)


def _answers(side: Evidence, cell: CellKey) -> dict[tuple[int, str], Answer]:
    """The answers of a cell by seed and question."""
    runs = [run.seed for run in side.runs.get(cell, []) if "predictions.jsonl" in run.files]
    files = {seed: side.paths.cell(*cell, seed) / "predictions.jsonl" for seed in runs}
    return {(seed, answer.question_id): answer for seed, path in files.items() for answer in read_predictions(path)}


def _asked(side: Evidence, task: str, context: str) -> dict[str, Asked] | None:
    """The questions of a prepared task with their right answers; None where it is not there."""
    folder = side.paths.prepared(task, context)
    if not ((folder / "questions.parquet").exists() and (folder / "gold.parquet").exists()):
        return None
    right = {row["question_id"]: tuple(row["answers"]) for row in read_table("gold", folder / "gold.parquet")}
    rows = read_table("questions", folder / "questions.parquet")
    return {row["question_id"]: (row["text"], row["answer_prefix"], right.get(row["question_id"], ())) for row in rows}


def _made(first: RunRecord, second: RunRecord) -> Iterator[tuple[str, str]]:
    """(part, what differs) of two records of a cell."""
    for part in MadeFrom.model_fields:
        one, other = getattr(first.made_from, part), getattr(second.made_from, part)
        yield from ((part, name) for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    machines = [
        {
            **{f"version of {name}": version for name, version in run.versions.items()},
            **run.hardware.model_dump(),
            "threads": run.threads,
        }
        for run in (first, second)
    ]
    for name in machines[0].keys() | machines[1].keys():
        one, other = (machine.get(name) for machine in machines)
        if one != other:
            yield "machine", f"{name.replace('_', ' ')}: {one} / {other}"


def main() -> int:
    """Print the comparison and write its page; with ``--identical`` 1 where the sides differ or nothing is there."""
    parser = experiment_parser(__doc__)
    parser.add_argument("first", type=given_path, help="a results directory")
    parser.add_argument("second", type=given_path, help="another one")
    parser.add_argument("--output", type=given_path, help="folder of the page (default: RESULTS/comparison)")
    parser.add_argument("--identical", action="store_true", help="exit 1 where any answer differs; write nothing")
    chosen = parser.parse_args()
    found = TwoRuns.read(chosen.first, chosen.second, chosen.profile, chosen.configs)
    print(found.text())
    if chosen.identical:
        return 0 if found.identical else 1
    folder = chosen.output or chosen.results / "comparison"
    found.write(folder)
    print(f"\nPage: {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    run_command(main)
