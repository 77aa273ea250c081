"""The paper's tables by command: cells, verdicts, what is run, and HTML, CSV and LaTeX whose numbers lead to runs."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from msa_base.errors import UserError
from msa_base.paths import DIRECTORY
from msa_base.stage_records import RunRecord
from reports import paper_tables
from reports.check import check
from reports.evidence import Evidence
from reports.paper_tables import MeasuredTable
from reports.published import reference, tables
from reports.published.reference import Measure, read_reference
from reports.published.tables import TABLES, PaperTable, PublishedLine, read_tables
from reports.tables import latex

NUMBER = re.compile(r"\\href\{(\.\./[^{}]+)\}\{([^{}]+)\}")


@pytest.fixture(scope="module")
def made(evidence: Evidence) -> dict[str, MeasuredTable]:
    """Every table over the full tree, written."""
    found = {name: MeasuredTable(name, spec, evidence) for name, spec in read_tables().items()}
    for it in found.values():
        it.write()
    return found


def folder(evidence: Evidence) -> Path:
    return evidence.paths.root / "_tables"


def test_fifty_numbers_of_the_latex_lead_to_their_runs(made: dict, evidence: Evidence) -> None:
    numbers = [
        (name, *found) for name in made for found in NUMBER.findall((folder(evidence) / f"{name}.tex").read_text())
    ]
    assert len(numbers) > 100
    for name, link, text in random.Random(0).sample(numbers, 50):
        record = RunRecord.open(folder(evidence) / link)
        assert link == f"../{record.system}/{record.task}/{record.context}/seed{record.seed}/run.json"
        assert record.system in evidence.systems, name
        words = ("no bound", f"at {record.context}")
        assert text in words or re.fullmatch(r"-?[\d.,]+", text), text


def test_a_number_is_the_mean_of_the_cells_that_it_leads_to(made: dict, evidence: Evidence) -> None:
    for it in made.values():
        for cell, (row, links) in zip(it.cells, rows_of(it), strict=True):
            if cell.measured:
                means = [evidence.values(key, cell.metric).mean() for key in cell.cells]
                assert float(row["Measured"]) == pytest.approx(sum(means) / len(means), abs=6e-4)
                own = {f"../{key.system}/{key.task}/{key.context}/seed0/run.json" for key in cell.cells}
                assert links and links <= own


def rows_of(it: MeasuredTable) -> list[tuple[dict[str, str], set[str]]]:
    """The rows of a table as they are shown, by title, and the links of their measured numbers."""
    (_, rows), *_ = it.linked()
    return [({cell.title: cell.text for cell in row}, {c.link for c in row if c.link.startswith("..")}) for row in rows]


def environments(text: str) -> None:
    """Environments are closed in their order, braces balance."""
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    depth = 0
    for mark in re.sub(r"\\[{}\\]", "", text):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        assert depth >= 0
    assert depth == 0


KNOWN = {"documentclass", "usepackage", "begin", "end", "section", "subsection", "hline", "endhead", "href"}
KNOWN |= {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"}
KNOWN |= {"textsuperscript"}


def strict(text: str) -> None:
    """What would stop LaTeX: unknown commands, bare specials, rows of another width, anything that is no ASCII."""
    assert text.isascii()
    environments(text)
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= KNOWN
    bare = re.sub(r"\\href\{[^{}]*\}", "", re.sub(r"\\[%#&_{}$]", "", text))
    assert not re.search(r"[%#$^~_]", bare)
    for shape, body in re.findall(r"\\begin\{longtable\}\{(l+)\}(.*?)\\end\{longtable\}", text, flags=re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert rows and {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(shape)}
        assert {line for line in body.strip().splitlines() if not line.endswith(r" \\")} <= {r"\hline", r"\endhead"}


def test_latex_holds_nothing_that_would_stop_it(made: dict, evidence: Evidence) -> None:
    for name in made:
        strict((folder(evidence) / f"{name}.tex").read_text())
    for broken in (r"\begin{longtable}{ll} \end{document}", "{", r"\frobnicate", "50 %", "é"):
        with pytest.raises(AssertionError):
            strict(broken)
    strict(latex.document("50 % of_{x} & é", '~^\\<>|"#$', []))


def test_latex_compiles_where_there_is_a_compiler(made: dict, evidence: Evidence, tmp_path: Path) -> None:
    """Elsewhere the test above stands for it."""
    if compiler := shutil.which("pdflatex"):
        for name in ("table-2", "figure-4"):
            source = folder(evidence) / f"{name}.tex"
            command = [compiler, "-interaction=nonstopmode", "-halt-on-error", f"-output-directory={tmp_path}", source]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0 and (tmp_path / f"{name}.pdf").exists(), done.stdout[-800:]


def test_html_and_csv_hold_the_same_numbers(made: dict, evidence: Evidence) -> None:
    for name, it in made.items():
        page, frame = (folder(evidence) / f"{name}.html").read_text(), pd.read_csv(folder(evidence) / f"{name}.csv")
        assert len(frame) == len(it.cells) == page.partition("</table>")[0].count("<tr>") - 1
        for link in re.findall(r'href="(\.\./[^"]+)"', page):
            assert (folder(evidence) / link).exists()
        assert frame["verdict"].notna().all()


def test_what_has_no_number_says_why(made: dict) -> None:
    words = {row["Verdict"] for it in made.values() for row, _ in rows_of(it) if row["Measured"] == "–"}
    assert {"not in this profile", "unsupported context", "not measured"} <= words
    assert all(row["Verdict"] == "not measured" for row, _ in rows_of(made["figure-training-time"]))


def test_verdicts_of_the_papers_own_tasks_stand_on_adjusted_intervals(evidence: Evidence) -> None:
    own = Measure(["toy"], "accuracy", ["scaling_facts"])
    near, far = [0.93, 0.93, 0.93, 0.93], [0.2, 0.99, 0.75, 0.75]
    lines = [
        PublishedLine("MSA", near, "ours"),
        PublishedLine("BM25", far, "rag_bm25"),
        PublishedLine("Unknown", [0.5]),
    ]
    spec = PaperTable("t", "s", "u", "contexts", ["16K", "32K", "64K", "1M"], lines, own, own)
    found = MeasuredTable("t", spec, evidence)
    words = [row["Verdict"] for row, _ in rows_of(found)]
    assert words[:4] == ["as published"] * 4 and words[4:6] == ["above", "below"]
    assert words[8:] == ["not measured"] * 4
    differ = sum(word in ("above", "below") for word in words)
    assert found.level == pytest.approx(1 - 0.05 * differ / 8) and "adjusted" in found.note
    few = replace(read_reference().least, questions=1000)
    found.__dict__["reference"] = replace(found.reference, ledger=replace(found.reference.ledger, least=few))
    assert paper_tables.verdict(found.cells[0], found.reference) == "inconclusive"
    miniature = MeasuredTable("t", replace(spec, exact=Measure()), evidence)
    assert {row["Verdict"] for row, _ in rows_of(miniature)} == {"another task", "not measured"}


def test_only_the_cells_of_the_table_run(new_tree: Callable, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    tree, started = new_tree(), []

    def start(command: list[str]) -> subprocess.CompletedProcess:
        started.append(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", start)
    places = ["--profile", "toy", "--results", str(tree.root), "--configs", str(tree.configs)]
    monkeypatch.setattr(sys, "argv", ["paper_tables", "table-4", *places])
    paper_tables.main()
    assert [command[0] for command in started] == ["baselines.checks.check", "tasks.check", "msa_base.workflow"]
    targets = [word for word in started[-1] if word.endswith("scores.json")]
    cells = [(system, task) for system in ("msa", "msa_no_interleave") for task in ("scaling_facts", "two_hop")]
    assert targets == [str(tree.paths.task(*cell) / "scores.json") for cell in cells]
    assert started[-1][started[-1].index("--systems") + 1] == "msa,msa_no_interleave"
    assert "without Memory Interleave" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["paper_tables", "table-4", "--no-run", *places])
    paper_tables.main()
    assert len(started) == 3
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, 2))
    monkeypatch.setattr(sys, "argv", ["paper_tables", "table-4", *places])
    with pytest.raises(SystemExit) as ended:
        paper_tables.main()
    assert ended.value.code == 2
    monkeypatch.setattr(sys, "argv", ["paper_tables", "table-5", *places])
    with pytest.raises(UserError, match="did you mean 'table-"):
        paper_tables.main()


def test_the_papers_name_stands_for_profiles_that_have_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(
        subprocess, "run", lambda command: started.append(command) or subprocess.CompletedProcess("", 0)
    )
    monkeypatch.setattr(sys, "argv", ["paper_tables", "figure-1", "--profile", "paper", "--results", "/nowhere"])
    monkeypatch.setattr(MeasuredTable, "write", lambda self: [])
    paper_tables.main()
    run = [command for command in started if command[2] == "msa_base.workflow"]
    assert [command[command.index("--profile") + 1] for command in run] == ["paper", "paper_rivals"]
    assert sum("gpt_41" in word for word in run[1]) == 2 and all("msmarco_scaling" in word for word in run[0][3:4])


def test_every_table_has_a_command_and_its_published_numbers() -> None:
    makefile = (DIRECTORY.parent / "Makefile").read_text()
    named = {name for rule in re.findall(r"^([a-z][\w -]*):", makefile, flags=re.MULTILINE) for name in rule.split()}
    assert set(read_tables()) <= named
    found, published = read_tables(), read_reference()
    lines = {line.title: line.values for line in found["table-2"].systems}
    for title, values in published.quality.rows.items():
        names = [f"{title}, R@{k}" for k in (1, 5, 10)] if title != "MSA" else ["MSA"]
        assert [lines[name][-1] for name in names] == values
    for name, curves in (("figure-1", published.scaling), ("figure-4", published.needles)):
        series = {line.title: line.values for line in found[name].systems}
        assert found[name].places == curves.contexts and sorted(series.values()) == sorted(curves.series.values())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("system: rag_dense", "system: rag_dens", "table-2: systems: .*did you mean 'rag_dense'"),
        ("families: [table_3]", "families: [table_33]", "table-3: families: .*did you mean 'table_3'"),
        ("profiles: {paper: [paper_best],", "profiles: {paper: [paper_bst],", "table-3: profiles.*'paper_best'"),
        ("qa_musique, average", "qa_musiqu, average", "table-2: places: .*'qa_musique'"),
        ("unit: ", "unt: ", "did you mean 'unit'"),
        ("[100, 200, 500, 900, 1350]", "[1, 2, 3, 4, 5, 6]", "more values than there are places"),
    ],
)
def test_a_wrong_name_in_a_table_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    text = TABLES.read_text()
    assert old in text
    path = tmp_path / "tables.yaml"
    path.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(tables, "TABLES", path)
    monkeypatch.setattr(reference, "LEDGER", TABLES.with_name("ledger.yaml"))
    with pytest.raises(UserError, match=message):
        check(DIRECTORY)


def test_help_has_an_example() -> None:
    done = subprocess.run([sys.executable, "-m", "reports.paper_tables", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "reports.paper_tables table-2 --profile tiny" in done.stdout
