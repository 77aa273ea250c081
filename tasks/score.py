"""Score what a system answered: scores.parquet beside the predictions of each context and seed.

::

    python -m tasks.score --profile tiny --system rag_bm25 --task two_hop

Metrics of a question: ``accuracy`` (the task's metric; 0 where a rejected answer is said), ``recall@1/{stage}`` and
``recall@16/{stage}`` for each routing stage, ``citation_recall`` for systems that cite, and the further metrics of the task's
entry. Where a task has them: ``rejected`` (a rejected answer is said), ``abstained/answerable`` and
``abstained/unanswerable``, ``every_wording`` (the accuracy of the worst question of a group). Where the profile names judges:
the points of the first as ``judge``, of further ones as ``judge/{name}``, null where a judgment failed; and ``f1`` beside
them. An answer counts by its text whatever its status, so a failed question without text stays in the denominator with 0; a
question that ``max_questions`` left out has no rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.errors import UserError, run_command
from configs.load import check_known
from configs.records import Answer
from configs.tables import read_json, read_predictions, read_table, write_table
from tasks.command import opened, parser
from tasks.judge import read_judgments
from tasks.metrics import METRICS, abstains, contains, f1, recall_at_k, retrieval_metric

RECALL_AT = (1, 16)
ABSTAINING = "answer_or_abstain"  # the one metric of answers that questions without an answer may have


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
    rejected = contains(answer.text, gold.get("rejected") or [])
    if ranking_metric := retrieval_metric(metric):
        ranked = list(answer.routed_doc_ids.values())[-1] if answer.routed_doc_ids else answer.cited_doc_ids
        yield "accuracy", ranking_metric(ranked, relevance(metric, gold))
    else:
        yield "accuracy", 0.0 if rejected else METRICS[metric](answer.text, gold["answers"])
    if gold.get("rejected"):
        yield "rejected", rejected
    if metric == ABSTAINING:
        yield f"abstained/{'answerable' if gold['answers'] else 'unanswerable'}", float(abstains(answer.text))
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
    groups: dict[str, dict[str, float]] = {}  # accuracies of questions that ask the same thing
    cites = any(answer.cited_doc_ids for answer in answers)
    for answer in answers:
        if answer.question_id not in gold or answer.question_id in seen:
            raise UserError(
                f"{where}: question '{answer.question_id}' is unknown or answered twice; delete the cell and run it again"
            )
        seen.add(answer.question_id)
        allowed = all(name == ABSTAINING or retrieval_metric(name) for name in (metric, *further))
        if not gold[answer.question_id]["answers"] and not allowed:
            raise UserError(
                f"{where}: question '{answer.question_id}' has no answers; give its task retrieval metrics alone, or {ABSTAINING}"
            )
        group = gold[answer.question_id].get("group")
        for name, value in question_scores(answer, gold[answer.question_id], metric, cites, further):
            yield answer.question_id, name, value
            if group and name == "accuracy":
                groups.setdefault(group, {})[answer.question_id] = value
    for of_group in groups.values():
        for question_id in of_group if len(of_group) > 1 else ():
            yield question_id, "every_wording", min(of_group.values())


def read_gold(prepared: Path) -> dict[str, dict]:
    """Gold rows by question; those of judges who gave grades have ``grades`` by document."""
    gold = {row["question_id"]: row for row in read_table("gold", prepared / "gold.parquet")}
    if (prepared / "grades.parquet").exists():
        for row in read_table("grades", prepared / "grades.parquet"):
            gold[row["question_id"]].setdefault("grades", {})[row["doc_id"]] = row["grade"]
    return gold


def judged_scores(
    answers: list[Answer], gold: dict[str, dict], cell: Path, judges: Sequence[str], with_f1: bool = True
) -> Iterator[tuple[str, str, float | None]]:
    """(question, metric, value) of the judges' points (null where a judgment failed), and F1 to set them against.

    Raises:
        UserError: judgments.jsonl lacks a judgment, or is missing.
    """
    if not judges:
        return
    path = cell / "judgments.jsonl"
    points = {(row["judge"], row["question_id"]): row["value"] for row in read_judgments(path)}
    for answer in answers:
        for place, judge in enumerate(judges):
            if (judge, answer.question_id) not in points:
                raise UserError(f"{path}: no judgment of '{judge}' on '{answer.question_id}'; run python -m tasks.judge again")
            yield answer.question_id, f"judge/{judge}" if place else "judge", points[judge, answer.question_id]
        if with_f1 and gold[answer.question_id]["answers"]:
            yield answer.question_id, "f1", f1(answer.text, gold[answer.question_id]["answers"])


def score_cell(
    cell: Path,
    prepared: Path,
    metric: str,
    identity: dict,
    further: Sequence[str] = (),
    judges: Sequence[str] = (),
) -> int:
    """Write the scores of one cell; returns its questions. A cell whose run did not end well has none."""
    rows: list[dict] = []
    questions = 0
    if read_json(cell / "run.json").get("status") == "ok":
        gold = read_gold(prepared)
        path = cell / "predictions.jsonl"
        answers = read_predictions(path)
        questions = len(answers)
        judged = () if retrieval_metric(metric) else judges  # there is nothing to judge where rankings are asked for
        scores = [
            *cell_scores(answers, gold, metric, path, further),
            *judged_scores(answers, gold, cell, judged, with_f1="f1" not in further),
        ]
        for question_id, name, value in scores:
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
    check_known([arguments.system], profile.systems, "--system", where)
    check_known([arguments.task], profile.tasks, "--task", where)
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
            questions = score_cell(
                cell, paths.prepared(arguments.task, context), task.metric, identity, task.metrics, profile.judges
            )
            print(f"{cell / 'scores.parquet'}: {questions} questions")


if __name__ == "__main__":
    run_command(main)
