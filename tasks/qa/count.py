"""Count what a profile's question-answering tasks are made of: questions, documents and tokens, as a table.

::

    python -m tasks.qa.count --profile qa
    python -m tasks.qa.count --profile qa --write docs/DATA.md     # in place of the table that is there
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.load import Experiment
from msa_base.options import given_path
from msa_base.paths import Paths
from msa_base.stage_records import ViewRecord
from msa_base.tables import read_table, whole_file
from tasks.qa.table import read_table as read_sets

BEGIN, END = "<!-- begin counts -->", "<!-- end counts -->"
HEADER = ("set", "form, split", "asked", "gold documents", "left out", "documents", "tokens", "in the paper", "cut")


def rows(experiment: Experiment, paths: Paths) -> Iterator[tuple[str, ...]]:
    """A row for each task and context over a set; what the machine lacks says so."""
    sets, contexts = read_sets(), experiment.profile.contexts
    for task in experiment.profile.tasks:
        name = experiment.corpora[experiment.tasks[task].corpus].params.get("set")
        for context in contexts if name else ():
            cell = paths.prepared(task, context)
            view = ViewRecord.open(cell / "view.json")
            title = sets[name].title + ("" if len(contexts) == 1 else f", {context}")
            paper = f"{sets[name].tokens / 1e6:.3g}M" if sets[name].tokens else "-"
            if view.unavailable:
                yield (title, "not here", *["-"] * 5, paper, "-")
            else:
                cut = f"{view.chunking.strategy}, {view.chunking.document_tokens}"
                yield (title, *_counts(cell, view), paper, cut)


def _counts(cell: Path, view: ViewRecord) -> tuple[str, ...]:
    gold = read_table("gold", cell / "gold.parquet")
    heads = {row["doc_id"]: row["num_tokens"] for row in read_table("overlays", cell / "overlays.parquet")}
    return (
        f"{view.source['form']}, {view.source['split']}",
        f"{len(gold):,}",
        f"{sum(len(row['gold_doc_ids']) for row in gold) / len(gold):.2f} each",
        ", ".join(f"{number} {reason}" for reason, number in view.left_out.items()) or "none",
        f"{view.base_documents + len(heads):,}",
        f"{view.base_tokens + sum(heads.values()):,}",
    )


def table_text(lines: list[tuple[str, ...]]) -> str:
    body = [HEADER, ("---",) * len(HEADER), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def replace_table(path: Path, text: str) -> None:
    """Put a table between the marks of a page. Raises UserError: the page, or one of its marks, is missing."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a page with the marks {BEGIN} and {END}")
    page = path.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path}: has no place for the table; put {BEGIN} and {END} there")
    with whole_file(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    options = experiment_parser(__doc__)
    options.set_defaults(profile="qa")
    options.add_argument("--write", type=given_path, help=f"a page with the marks {BEGIN} and {END}")
    arguments = options.parse_args()
    experiment, paths = open_experiment(arguments)
    text = table_text(list(rows(experiment, paths)))
    if arguments.write:
        replace_table(arguments.write, text)
    else:
        print(text)


if __name__ == "__main__":
    run_command(main)
