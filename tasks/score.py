"""Score what a system answered: scores.parquet beside the predictions of each context and seed.

::

    python -m tasks.score --profile tiny --system rag_bm25 --task two_hop

Metrics of a question: ``accuracy`` (the task's metric), ``recall@1/{stage}`` and ``recall@16/{stage}`` for each routing
stage, ``citation_recall`` for systems that cite. An answer counts by its text whatever its status, so a failed question
without text stays in the denominator with 0; a question that ``max_questions`` left out has no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs.errors import UserError, run_command
from configs.records import Answer
from configs.tables import read_json, read_predictions, read_table, write_table
from tasks.command import opened, parser
from tasks.metrics import METRICS, recall_at_k

RECALL_AT = (1, 16)


def question_scores(answer: Answer, gold: dict, metric: str, cites: bool) -> Iterator[tuple[str, float]]:
    """(metric, value) of one answer against its gold row."""
    yield "accuracy", METRICS[metric](answer.text, gold["answers"])
    if not gold["gold_doc_ids"]:
        return
    for stage, ranked in answer.routed_doc_ids.items():
        for k in RECALL_AT:
            yield f"recall@{k}/{stage}", recall_at_k(ranked, gold["gold_doc_ids"], k)
    if cites:
        yield "citation_recall", recall_at_k(answer.cited_doc_ids, gold["gold_doc_ids"], len(answer.cited_doc_ids))


def cell_scores(
    answers: list[Answer], gold: dict[str, dict], metric: str, where: Path | str
) -> Iterator[tuple[str, str, float]]:
    """(question, metric, value) for all answers of a cell.

    Raises:
        UserError: an answer to a question that gold does not know, or two answers to one question.
    """
    seen: set[str] = set()
    cites = any(answer.cited_doc_ids for answer in answers)
    for answer in answers:
        if answer.question_id not in gold or answer.question_id in seen:
            raise UserError(
                f"{where}: question '{answer.question_id}' is unknown or answered twice; delete the cell and run it again"
            )
        seen.add(answer.question_id)
        for name, value in question_scores(answer, gold[answer.question_id], metric, cites):
            yield answer.question_id, name, value


def score_cell(cell: Path, prepared: Path, metric: str, identity: dict) -> int:
    """Write the scores of one cell; returns its questions. A cell whose run did not end well has none."""
    rows: list[dict] = []
    questions = 0
    if read_json(cell / "run.json").get("status") == "ok":
        gold = {row["question_id"]: row for row in read_table("gold", prepared / "gold.parquet")}
        path = cell / "predictions.jsonl"
        answers = read_predictions(path)
        questions = len(answers)
        for question_id, name, value in cell_scores(answers, gold, metric, path):
            rows.append({**identity, "question_id": question_id, "metric": name, "value": value})
    write_table("scores", rows, cell / "scores.parquet")
    return questions


def main() -> None:
    """Score every context and seed of one system at one task."""
    options = parser(__doc__)
    options.add_argument("--system", required=True, help="an entry of the profile's systems")
    options.add_argument("--task", required=True, help="an entry of the profile's tasks")
    arguments = options.parse_args()
    experiment, paths, where = opened(arguments)
    profile = experiment.profile
    for key, name, known in (("systems", arguments.system, profile.systems), ("tasks", arguments.task, profile.tasks)):
        if name not in known:
            raise UserError(f"{where}: {key}: no entry '{name}' (known: {', '.join(known)})")
    metric = experiment.tasks[arguments.task].metric
    if metric not in METRICS:
        raise UserError(
            f"{arguments.configs / 'tasks.yaml'}: tasks: {arguments.task}: metric: unknown '{metric}' (known: {', '.join(METRICS)})"
        )
    for context in profile.contexts:
        for seed in profile.seeds:
            identity = {"system": arguments.system, "task": arguments.task, "context": context, "seed": seed}
            cell = paths.cell(arguments.system, arguments.task, context, seed)
            questions = score_cell(cell, paths.prepared(arguments.task, context), metric, identity)
            print(f"{cell / 'scores.parquet'}: {questions} questions")


if __name__ == "__main__":
    run_command(main)
