"""Score what a system answered: scores.parquet beside the predictions of each context and seed.

    python -m tasks.stages.score --profile tiny --system rag_bm25 --task two_hop

Metrics of a question:

* ``accuracy``: the task's metric; 0 where a rejected answer is said;
* ``recall@1/{stage}`` and ``recall@16/{stage}`` of each routing stage, ``citation_recall`` of systems that cite;
* the further metrics of the task's entry;
* where a task has them, ``rejected`` (a rejected answer is said), ``abstained/answerable``,
  ``abstained/unanswerable`` and ``every_wording`` (the accuracy of the worst question of a group);
* where the profile names judges, ``judge`` (the points of the first), ``judge/{name}`` (of further ones) and ``f1``
  to set them against; null where a judgment failed.

An answer counts by its text whatever its status, so a failed question without text scores 0. A question that
``max_questions`` left out has no rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from msa_base.errors import UserError, run_command
from msa_base.records import Answer
from msa_base.seal import Seal, write_seal
from msa_base.stage_records import JudgedRecord, RunRecord, ViewRecord
from msa_base.stages import Stages
from msa_base.tables import read_predictions, read_table, write_table
from tasks.metrics import (
    ABSTAINING,
    ENGLISH,
    METRICS,
    abstains,
    check_metrics,
    contains,
    f1,
    recall_at_k,
    retrieval_metric,
)
from tasks.stages.judge import Answers, read_judgments

RECALL_AT = (1, 16)


def relevance(metric: str, gold: dict) -> dict[int, float]:
    """Grades by document for a retrieval metric: nDCG takes people's where there are any; else the gold ones have 1."""
    graded = gold.get("grades") if metric.startswith("ndcg") else None
    return graded or dict.fromkeys(gold["gold_doc_ids"], 1.0)


def question_scores(
    answer: Answer, gold: dict, metric: str, cites: bool, further: Sequence[str] = (), language: str = ENGLISH
) -> Iterator[tuple[str, float]]:
    """(metric, value) of one answer against its gold row; ``further`` metrics under their own names.

    The task's own retrieval metric is of the last routing stage's ranking, or of the citations of a system that ranks
    nothing; a further one is of every stage's.
    """
    failed = answer.status != "ok" and not answer.text.strip()  # it abstained from nothing
    rejected = contains(answer.text, gold.get("rejected") or [], language)

    def score(name: str) -> float:
        return 0.0 if failed else METRICS[name](answer.text, gold["answers"], language)

    if ranking_metric := retrieval_metric(metric):
        ranked = list(answer.routed_doc_ids.values())[-1] if answer.routed_doc_ids else answer.cited_doc_ids
        yield "accuracy", ranking_metric(ranked, relevance(metric, gold))
    else:
        yield "accuracy", 0.0 if rejected else score(metric)
    if gold.get("rejected"):
        yield "rejected", rejected
    if metric in ABSTAINING:
        if gold["answers"]:
            yield "abstained/answerable", float(abstains(answer.text, gold["answers"], language))
        else:
            yield "abstained/unanswerable", score(metric)
    for name in further:
        if stage_metric := retrieval_metric(name):
            for stage, ranked in answer.routed_doc_ids.items() if gold["gold_doc_ids"] else ():
                yield f"{name}/{stage}", stage_metric(ranked, relevance(name, gold))
        else:
            yield name, score(name)
    if not gold["gold_doc_ids"]:
        return
    for stage, ranked in answer.routed_doc_ids.items():
        for k in RECALL_AT:
            yield f"recall@{k}/{stage}", recall_at_k(ranked, gold["gold_doc_ids"], k)
    if cites:
        yield "citation_recall", recall_at_k(answer.cited_doc_ids, gold["gold_doc_ids"], len(answer.cited_doc_ids))


def cell_scores(
    answers: list[Answer],
    gold: dict[str, dict],
    metric: str,
    where: Path | str,
    further: Sequence[str] = (),
    language: str = ENGLISH,
) -> Iterator[tuple[str, str, float]]:
    """(question, metric, value) for all answers of a cell. Raises UserError: an unknown question, or one twice."""
    seen: set[str] = set()
    groups: dict[str, dict[str, float]] = defaultdict(dict)  # accuracies of questions that ask the same thing
    cites = any(answer.cited_doc_ids for answer in answers)
    may_lack_answers = all(name in ABSTAINING or retrieval_metric(name) for name in (metric, *further))
    for answer in answers:
        if answer.question_id not in gold or answer.question_id in seen:
            wrong = f"question '{answer.question_id}' is unknown or answered twice"
            raise UserError(f"{where}: {wrong}; delete the cell and run it again")
        seen.add(answer.question_id)
        if not gold[answer.question_id]["answers"] and not may_lack_answers:
            mend = f"give its task retrieval metrics alone, or {', '.join(ABSTAINING)}"
            raise UserError(f"{where}: question '{answer.question_id}' has no answers; {mend}")
        if retrieval_metric(metric) and not gold[answer.question_id]["gold_doc_ids"]:
            mend = "give its task a metric of answers"
            raise UserError(f"{where}: question '{answer.question_id}' has no gold documents; {mend}")
        group = gold[answer.question_id].get("group")
        for name, value in question_scores(answer, gold[answer.question_id], metric, cites, further, language):
            if not isinstance(value, int | float) or not 0 <= value <= 1 + 1e-9:
                of = f"metric '{name}' of '{metric}' gives {value!r} for question '{answer.question_id}'"
                raise UserError(f"{where}: {of}; a score is a number from 0 to 1: mend the metric in tasks/metrics.py")
            yield answer.question_id, name, float(value)
            if group and name == "accuracy":
                groups[group][answer.question_id] = value
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
    answers: list[Answer],
    gold: dict[str, dict],
    cell: Path,
    judges: Sequence[str],
    with_f1: bool = True,
    language: str = ENGLISH,
) -> Iterator[tuple[str, str, float | None]]:
    """(question, metric, value) of the judges' points (null where a judgment failed), and F1 to set them against."""
    if not judges:
        return
    path = cell / "judgments.jsonl"
    points = {(row["judge"], row["question_id"]): row["value"] for row in read_judgments(path)}
    for answer in answers:
        for place, judge in enumerate(judges):
            if (judge, answer.question_id) not in points:
                wrong = f"no judgment of '{judge}' on '{answer.question_id}'"
                raise UserError(f"{path}: {wrong}; run python -m tasks.stages.judge again")
            yield answer.question_id, f"judge/{judge}" if place else "judge", points[judge, answer.question_id]
        if with_f1 and gold[answer.question_id]["answers"]:
            yield answer.question_id, "f1", f1(answer.text, gold[answer.question_id]["answers"], language)


def score_cell(
    cell: Path, prepared: Path, metric: str, identity: dict, further: Sequence[str] = (), judges: Sequence[str] = ()
) -> int:
    """Write the scores of one cell; returns its questions. A cell whose run did not end well has none."""
    rows, answers = [], []
    if RunRecord.open(cell / "run.json").status == "ok":
        gold = read_gold(prepared)
        language = (ViewRecord.read(prepared / "view.json").source or {}).get("language", ENGLISH)
        path = cell / "predictions.jsonl"
        answers = read_predictions(path)
        judged = () if retrieval_metric(metric) else judges  # there is nothing to judge where rankings are asked for
        scores = [
            *cell_scores(answers, gold, metric, path, further, language),
            *judged_scores(answers, gold, cell, judged, "f1" not in further, language),
        ]
        rows = [
            {**identity, "question_id": question, "metric": name, "value": value} for question, name, value in scores
        ]
    write_table("scores", rows, cell / "scores.parquet")
    return len(answers)


def main() -> None:
    answers = Answers.chosen(__doc__)
    experiment, seal, scored = answers.experiment, answers.directory / "scores.json", []
    task, judges = experiment.tasks[answers.task], experiment.profile.judges
    check_metrics([task.metric, *task.metrics], f"{experiment.configs / 'tasks.yaml'}: tasks: {answers.task}: metric")
    made_from = answers.sources(Stages(experiment).scores(answers.task))
    if judges and not retrieval_metric(task.metric):
        judged = JudgedRecord.open(answers.directory / "judgments.json")
        made_from.data.update({name: file.sha256 for name, file in judged.files.items()})
    if Seal.current(seal, made_from):
        return
    for context, seed, cell, prepared in answers.cells():
        identity = {"system": answers.system, "task": answers.task, "context": context, "seed": seed}
        questions = score_cell(cell, prepared, task.metric, identity, task.metrics, judges)
        print(f"{cell / 'scores.parquet'}: {questions} questions")
        scored.append(f"{cell.relative_to(answers.directory)}/scores.parquet")
    write_seal(seal, made_from, scored)


if __name__ == "__main__":
    run_command(main)
