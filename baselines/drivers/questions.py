"""The questions of a cell: which are asked, over which view, and the loop that has them answered.

What stands here can change an answer; what may not (where things lie, when they run, what is recorded) is elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from baselines.base import BATCH, System
from msa_base.records import Answer, CorpusView, Document, Question
from msa_base.specs import SystemSpec
from msa_base.stage_records import ViewRecord
from msa_base.tables import read_questions, read_table, read_view


def open_cell(
    prepared: Path, spec: SystemSpec, corpus: Sequence[Document], gold: dict[str, list[int]]
) -> tuple[CorpusView, list[Question]]:
    """The view and the questions of a prepared cell; ``gold`` is refilled for a system that reads it."""
    if spec.reads_gold:
        gold.clear()
        gold.update({row["question_id"]: row["gold_doc_ids"] for row in read_table("gold", prepared / "gold.parquet")})
    questions = spread(read_questions(prepared / "questions.parquet"), spec.max_questions)
    documents = ViewRecord.open(prepared / "view.json").base_documents
    return read_view(prepared, corpus[:documents]), questions


def spread(questions: list[Question], count: int | None) -> list[Question]:
    """At most ``count`` questions, spread evenly over the overlays and over each overlay's questions, in file order."""
    if count is None or count >= len(questions):
        return questions
    groups: dict[str | None, list[int]] = defaultdict(list)
    for position, question in enumerate(questions):
        groups[question.overlay_id].append(position)
    members = _evenly(list(groups.values()), min(count, len(groups)))
    shares = [count * (rank + 1) // len(members) - count * rank // len(members) for rank in range(len(members))]
    chosen = {position for group, share in zip(members, shares, strict=True) for position in _evenly(group, share)}
    # groups of unequal size may leave places free: fill them from the front
    spare = (position for position in range(len(questions)) if position not in chosen)
    while len(chosen) < count:
        chosen.add(next(spare))
    return [questions[position] for position in sorted(chosen)]


def _evenly(items: list[Any], count: int) -> list[Any]:
    count = min(count, len(items))
    return [items[rank * len(items) // count] for rank in range(count)]


def answer_in_batches(system: System, questions: list[Question], view: CorpusView, label: str) -> list[Answer]:
    """All answers, in order, behind a progress bar."""
    answers: list[Answer] = []
    with tqdm(total=len(questions), desc=label, unit="question") as bar:
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            found = system.answer(batch, view)
            if [answer.question_id for answer in found] != [question.question_id for question in batch]:
                raise RuntimeError(f"{label}: the system did not answer its questions one by one, in order")
            answers += found
            bar.update(len(batch))
    return answers
