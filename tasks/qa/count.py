"""Count what a profile's question-answering tasks are made of: questions, documents and tokens, as a table.

::

    python -m tasks.qa.count --profile qa
    python -m tasks.qa.count --profile qa --write docs/DATA.md     # in place of the table that is there
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import UserError, run_command
from configs.load import Experiment
from configs.paths import Paths
from configs.tables import read_json, read_questions, read_table, whole_file
from tasks.command import opened, parser
from tasks.qa.table import read_table as read_sets

BEGIN, END = "<!-- begin counts -->", "<!-- end counts -->"
HEADER = ("set", "form, split", "asked", "gold documents", "left out", "documents", "tokens", "in the paper", "cut")


def rows(experiment: Experiment, paths: Paths) -> Iterator[tuple[str, ...]]:
    """A row for each task and context over a set; what the machine lacks says so."""
    sets = read_sets()
    for task in experiment.profile.tasks:
        name = experiment.corpora[experiment.tasks[task].corpus].params.get("set")
        if name is None:
            continue
        spec = sets[name]
        paper = f"{spec.tokens / 1e6:.3g}M" if spec.tokens else "-"
        for context in experiment.profile.contexts:
            cell = paths.prepared(task, context)
            view = read_json(cell / "view.json")
            title = spec.title if len(experiment.profile.contexts) == 1 else f"{spec.title}, {context}"
            if "unavailable" in view:
                yield (title, "not here", *["-"] * 5, paper, "-")
                continue
            yield (title, *_counts(cell, view), paper, f"{view['chunking']['strategy']}, {view['chunking']['document_tokens']}")


def _counts(cell: Path, view: dict[str, Any]) -> tuple[str, ...]:
    questions = read_questions(cell / "questions.parquet")
    gold = read_table("gold", cell / "gold.parquet")
    heads = {row["doc_id"]: row["num_tokens"] for row in read_table("overlays", cell / "overlays.parquet")}
    source = view["source"]
    left_out = ", ".join(f"{number} {reason}" for reason, number in view["left_out"].items()) or "none"
    return (
        f"{source['form']}, {source['split']}",
        f"{len(questions):,}",
        f"{sum(len(row['gold_doc_ids']) for row in gold) / len(gold):.2f} each",
        left_out,
        f"{view['base_documents'] + len(heads):,}",
        f"{view['base_tokens'] + sum(heads.values()):,}",
    )


def table_text(lines: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    body = [HEADER, ("---",) * len(HEADER), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def replace_table(path: Path, text: str) -> None:
    """Put a table between the marks of a page.

    Raises:
        UserError: the page, or one of its marks, is missing.
    """
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
    """Print the table, or write it."""
    options = parser(__doc__)
    options.set_defaults(profile="qa")
    options.add_argument("--write", type=Path, help=f"a page with the marks {BEGIN} and {END}")
    arguments = options.parse_args()
    experiment, paths, _ = opened(arguments)
    text = table_text(list(rows(experiment, paths)))
    if arguments.write:
        replace_table(arguments.write, text)
    else:
        print(text)


if __name__ == "__main__":
    run_command(main)
