"""Score what a system answered: scores.parquet beside the predictions of each context and seed.

::

    python -m tasks.score --profile tiny --system rag_bm25 --task two_hop

Metrics of a question: ``accuracy`` (the task's metric), ``recall@1/{stage}`` and ``recall@16/{stage}`` for each routing
stage, ``citation_recall`` for systems that cite, and the further metrics of the task's entry. An answer counts by its text
whatever its status, so a failed question without text stays in the denominator with 0; a question that ``max_questions``
left out has no rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.errors import UserError, run_command
from configs.records import Answer
from configs.tables import read_json, read_predictions, read_table, write_table
from tasks.command import opened, parser
from tasks.metrics import METRICS, recall_at_k, retrieval_metric

RECALL_AT = (1, 16)


def relevance(metric: str, gold: dict) -> dict[int, float]:
    """Grades by document for a retrieval metric: nDCG takes people's where there are any, all others the gold documents."""
    graded = gold.get("grades") if metric.startswith("ndcg") else None
    return graded or dict.fromkeys(gold["gold_doc_ids"], 1.0)


def question_scores(
    answer: Answer, gold: dict, metric: str, cites: bool, further: Sequence[str] = ()
) -> Iterator[tuple[str, float]]:
    """(metric, value) of one answer against its gold row; ``further`` metrics under their own names.

    A retrieval metric is of the ranking: each routing stage's where it is a further one; where it is the task's own, the
    last stage's, or the citations of a system that ranks nothing.
    """
    if ranking_metric := retrieval_metric(metric):
        ranked = list(answer.routed_doc_ids.values())[-1] if answer.routed_doc_ids else answer.cited_doc_ids
        yield "accuracy", ranking_metric(ranked, relevance(metric, gold))
    else:
        yield "accuracy", METRICS[metric](answer.text, gold["answers"])
    for name in further:
        if stage_metric := retrieval_metric(name):
            for stage, ranked in answer.routed_doc_ids.items():
                yield f"{name}/{stage}", stage_metric(ranked, relevance(name, gold))
        else:
            yield name, METRICS[name](answer.text, gold["answers"])
    if not gold["gold_doc_ids"]:
        return
    for stage, ranked in answer.routed_doc_ids.items():
        for k in RECALL_AT:
            yield f"recall@{k}/{stage}", recall_at_k(ranked, gold["gold_doc_ids"], k)
    if cites:
        yield "citation_recall", recall_at_k(answer.cited_doc_ids, gold["gold_doc_ids"], len(answer.cited_doc_ids))


def cell_scores(
    answers: list[Answer], gold: dict[str, dict], metric: str, where: Path | str, further: Sequence[str] = ()
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
        if not gold[answer.question_id]["answers"] and not all(map(retrieval_metric, (metric, *further))):
            raise UserError(f"{where}: question '{answer.question_id}' has no answers; give its task retrieval metrics alone")
        for name, value in question_scores(answer, gold[answer.question_id], metric, cites, further):
            yield answer.question_id, name, value


def read_gold(prepared: Path) -> dict[str, dict]:
    """Gold rows by question; those of judges who gave grades have ``grades`` by document."""
    gold = {row["question_id"]: row for row in read_table("gold", prepared / "gold.parquet")}
    if (prepared / "grades.parquet").exists():
        for row in read_table("grades", prepared / "grades.parquet"):
            gold[row["question_id"]].setdefault("grades", {})[row["doc_id"]] = row["grade"]
    return gold


def score_cell(cell: Path, prepared: Path, metric: str, identity: dict, further: Sequence[str] = ()) -> int:
    """Write the scores of one cell; returns its questions. A cell whose run did not end well has none."""
    rows: list[dict] = []
    questions = 0
    if read_json(cell / "run.json").get("status") == "ok":
        gold = read_gold(prepared)
        path = cell / "predictions.jsonl"
        answers = read_predictions(path)
        questions = len(answers)
        for question_id, name, value in cell_scores(answers, gold, metric, path, further):
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
    task = experiment.tasks[arguments.task]
    for name in (task.metric, *task.metrics):
        if name not in METRICS and not retrieval_metric(name):
            raise UserError(
                f"{arguments.configs / 'tasks.yaml'}: tasks: {arguments.task}: metric: unknown '{name}'"
                f" (known: {', '.join(METRICS)}, recall@k, ndcg@k)"
            )
    for context in profile.contexts:
        for seed in profile.seeds:
            identity = {"system": arguments.system, "task": arguments.task, "context": context, "seed": seed}
            cell = paths.cell(arguments.system, arguments.task, context, seed)
            questions = score_cell(cell, paths.prepared(arguments.task, context), task.metric, identity, task.metrics)
            print(f"{cell / 'scores.parquet'}: {questions} questions")


if __name__ == "__main__":
    run_command(main)
