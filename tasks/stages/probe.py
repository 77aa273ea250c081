"""Probe a profile's judges: answers that are known to be right, wrong or empty, judged as any system's answers are.

    python -m tasks.stages.probe --profile scenarios_judged --task persona

Of each question come three: its own reference, that of another question, and nothing. What a judge gives them is in
probes.jsonl; how often it passes each sort stands in the report, beside the points that it gave to systems.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msa_base.command import experiment_parser, open_experiment
from msa_base.endpoint import Endpoint
from msa_base.errors import run_command
from msa_base.records import Answer, Question
from msa_base.stage_records import JudgedRecord, ViewRecord
from msa_base.stages import Stages
from msa_base.tables import read_questions, read_table, write_lines
from msa_base.validate import check_known
from tasks.metrics import contains, retrieval_metric
from tasks.stages.judge import (
    WHOLE_METRICS,
    judge_answers,
    named_judges,
    open_judges,
    prompt,
    rubric_of,
    seal_judgments,
)

RIGHT, WRONG, EMPTY = "right", "wrong", "empty"
PROBED = 32  # questions of a task at most


def probes(gold: list[dict[str, Any]], metric: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(gold row, sort, text) of every probe; a question that has no reference, or no other's to take, has fewer."""
    rows = [row for row in gold if row["answers"]]
    texts = ["; ".join(row["answers"]) if metric in WHOLE_METRICS else row["answers"][0] for row in rows]
    for place, row in enumerate(rows[:PROBED]):
        yield row, RIGHT, texts[place]
        yield row, EMPTY, ""
        for other in (*texts[place + 1 :], *texts[:place]):
            if not contains(other, row["answers"]) and not any(contains(own, [other]) for own in row["answers"]):
                yield row, WRONG, other
                break


def probe_task(
    questions: list[Question], gold: list[dict[str, Any]], metric: str, endpoints: dict[str, Endpoint]
) -> list[dict[str, Any]]:
    """A row a probe and judge: those of a judgment, and ``probe``, its sort."""
    by_id, found = {question.question_id: question for question in questions}, []
    asked = {f"{row['question_id']}/{sort}": (row, sort, text) for row, sort, text in probes(gold, metric)}
    for judge, endpoint in endpoints.items():
        prompts = {
            name: prompt(by_id[row["question_id"]], row, Answer(name, text), metric, rubric_of(endpoint))
            for name, (row, _, text) in asked.items()
        }
        found += [row | {"probe": asked[row["question_id"]][1]} for row in judge_answers(endpoint, judge, prompts)]
    return found


def main() -> None:
    arguments = experiment_parser(__doc__, task="an entry of the profile's tasks").parse_args()
    experiment, paths = open_experiment(arguments)
    profile, task = experiment.profile, arguments.task
    check_known([task], profile.tasks, "--task", experiment.file)
    named_judges(experiment)
    seal, prepared = paths.probes(task), paths.prepared(task, profile.contexts[0])
    view = ViewRecord.open(prepared / "view.json")
    metric = experiment.tasks[task].metric
    made_from = Stages(experiment).probes(task).of(paths.root, *(prepared / name for name in sorted(view.files)))
    if JudgedRecord.current(seal, made_from):
        return
    endpoints = open_judges(experiment, paths)
    rows: list[dict[str, Any]] = []
    if view.unavailable is None and not retrieval_metric(metric):
        gold = list(read_table("gold", prepared / "gold.parquet"))
        rows = probe_task(read_questions(prepared / "questions.parquet"), gold, metric, endpoints)
    write_lines(rows, seal.with_name("probes.jsonl"))
    seal_judgments(seal, made_from, ["probes.jsonl"], endpoints)
    print(f"{seal.with_name('probes.jsonl')}: {len(rows)} judgments")


if __name__ == "__main__":
    run_command(main)
