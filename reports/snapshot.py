"""Keep a report for review: summary, score tables, CSVs and figures of a finished run, as small text files under git.

    python -m reports.snapshot --profile tiny                 writes reports/tiny/
    python -m reports.snapshot --profile tiny --name laptop   writes reports/laptop/

The same results give the same bytes, so that a diff shows what changed. An earlier snapshot of that name is replaced.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from msa_base.command import experiment_parser
from msa_base.errors import UserError, run_command
from msa_base.tables import whole_directory
from reports import headline
from reports.build import Report
from reports.evidence import Evidence
from reports.tables import provenance, scores
from reports.tables.table import markdown_text

REPORTS = Path(__file__).parent
README, RESULTS = "README.md", "RESULTS.md"


def results(report: Report) -> str:
    """The results in Markdown: headline, verdicts, scores at the ends of the contexts, and cost; one number a cell."""
    evidence = report.evidence
    parts = [f"## {markdown_text(table.title)}\n\n{table.markdown()}" for table in report.reviewed]
    parts.append("## Scores with 95 % intervals\n")
    for task in scores.tasks_of_scores(evidence):
        table = scores.scores(evidence, [task], evidence.ends)
        chosen = table.only("system", "context", "value", "n", "failures", "status")
        parts.append(f"### {markdown_text(evidence.title(task))}\n\n{chosen.markdown()}")
    return "\n".join([f"# Results of profile {evidence.experiment.name}\n", *parts])


def readme(report: Report, name: str) -> str:
    """What the snapshot holds and where it comes from."""
    evidence = report.evidence
    profile = evidence.experiment.name
    chosen = "" if name == profile else f" --name {name}"
    facts = [("Commit", commit()), ("Cells", headline.cells_measured(evidence)), *provenance.machine(evidence)]
    rows = "".join(f"| {label} | {markdown_text(str(value))} |\n" for label, value in facts)
    return f"""# Snapshot {name}

{markdown_text(evidence.experiment.profile.title)}. Made by

    make reproduce PROFILE={profile}
    python -m reports.snapshot --profile {profile}{chosen}

summary.txt is one screen, RESULTS.md has the score tables, each CSV one table in six digits, each SVG one figure.

| what | value |
| --- | --- |
{rows}"""


def commit() -> str:
    """The commit of this checkout, and whether anything in it was changed since; unknown outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", REPORTS, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!../reports")
        return git("rev-parse", "--short=12", "HEAD").strip() + (", with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(evidence: Evidence, name: str, root: Path = REPORTS) -> Path:
    """Write the snapshot; its directory. A directory of that name that is no snapshot is a UserError."""
    directory = root / name
    if directory.exists() and not (directory / RESULTS).exists():
        raise UserError(f"--name {name}: {directory} is there and is no snapshot; choose another name")
    report = Report(evidence)
    with whole_directory(directory.with_name(f".{name}")) as temporary:
        (temporary / "summary.txt").write_text(report.summary() + "\n")
        (temporary / RESULTS).write_text(results(report))
        (temporary / README).write_text(readme(report, name))
        for figure, svg in report.figures.items():
            (temporary / f"{figure}.svg").write_text(svg)
        for table in report.tables.values():
            table.frame.to_csv(temporary / f"{table.name}.csv", index=False, float_format="%.6g")
    shutil.rmtree(directory, ignore_errors=True)
    return directory.with_name(f".{name}").rename(directory)


def main() -> None:
    """Keep one profile's report."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--name", help="directory under reports/ (default: the profile's name)")
    arguments = parser.parse_args()
    evidence = Evidence.named(arguments)
    print(write(evidence, arguments.name or arguments.profile))


if __name__ == "__main__":
    run_command(main)
