"""External: answers that were made elsewhere, one file of JSON lines a cell, scored like those of any other system.

A line is a record of predictions.jsonl; ``question_id`` and ``text`` are enough::

    {"question_id": "scaling_facts-0000", "text": "874795", "cited_doc_ids": [379559]}

``python -m tasks.stages.export`` writes the questions of a cell, with their memory and without gold, for those who
answer them. A question without a line counts as failed, with the status "unanswered". A cell without a file is
`unavailable_data`; it runs once the file is there, and again when it was edited. Nothing is timed: the seconds of a
line are those of the machine that wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baselines.base import CellStatus, Resources, System, params_of
from msa_base.errors import UserError
from msa_base.json_lines import read_json_lines
from msa_base.records import Answer, CorpusView, Question
from msa_base.specs import SystemSpec
from msa_base.validate import Text, Wrong, build

UNANSWERED = "unanswered"  # status of a question without a line


@dataclass(frozen=True)
class Params:
    """``predictions``: where the file of a cell lies, with {task}, {context} and, where seeds differ, {seed} in it."""

    predictions: Text

    def __post_init__(self) -> None:
        if lost := [name for name in ("{task}", "{context}") if name not in self.predictions]:
            raise Wrong(f"key 'predictions' holds no {lost[0]}; add it, so that no cell is given another's answers")
        rest = self.predictions.replace("{task}", "").replace("{context}", "").replace("{seed}", "")
        if {"{", "}"} & set(rest):
            raise Wrong("key 'predictions' may hold {task}, {context} and {seed} and no other braces")


class External(System):
    """Looks each question up in the file of its cell."""

    def __init__(self, spec: SystemSpec, seed: int) -> None:
        self._spec, self._seed = spec, seed
        self._answers: dict[str, Answer] | None = None

    def enter(self, task: str, context: str, questions: Sequence[Question], view: CorpusView) -> None:
        """Read and check the whole file. Raises CellStatus where there is none, UserErrors as :func:`read_answers`."""
        path = self._spec.predictions(task, context, self._seed)
        if not path.is_file():
            raise CellStatus("unavailable_data", f"{path}: no such file; nobody has answered this cell elsewhere")
        self._answers = read_answers(path, questions, view)

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        if self._answers is None:
            raise CellStatus("unavailable_data", "answered elsewhere: there is nothing to time or to check here")
        return [self._answers[question.question_id] for question in questions]


def read_answers(path: Path, questions: Sequence[Question], view: CorpusView) -> dict[str, Answer]:
    """An answer a question, by its id. One without a line fails, ranked nowhere by every stage that all lines have.

    Raises:
        UserError: a line is no prediction, is of a question that was not asked or was answered before, or names a
            document that its question's memory lacks.
    """
    asked = {question.question_id: question for question in questions}
    found: dict[str, Answer] = {}
    lines: dict[str, int] = {}
    for number, value in read_json_lines(path):
        where = f"{path}, line {number}"
        answer: Answer = build(Answer, value, where)
        name = answer.question_id
        if answer.prompt is not None:
            raise UserError(f"{where}: key 'prompt': what was read elsewhere is not recorded; leave it out")
        if name not in asked:
            raise UserError(f"{where}: question '{name}' is not asked in this cell; leave the line out")
        if name in found:
            raise UserError(f"{where}: question '{name}' is answered in line {lines[name]} already; keep one")
        corpus = view.documents(asked[name])
        routed = (doc_id for ranked in answer.routed_doc_ids.values() for doc_id in ranked)
        for doc_id in dict.fromkeys([*answer.cited_doc_ids, *answer.left_out_doc_ids, *routed]):
            if corpus.find(doc_id) is None:
                mend = "name documents of its own memory (python -m tasks.stages.export writes them)"
                raise UserError(f"{where}: the memory of question '{name}' has no document {doc_id}; {mend}")
        found[name], lines[name] = answer, number
    stages = set.intersection(*(set(answer.routed_doc_ids) for answer in found.values())) if found else set()
    for name in asked.keys() - found.keys():
        found[name] = Answer(name, "", routed_doc_ids={stage: [] for stage in sorted(stages)}, status=UNANSWERED)
    return found


def make(spec: SystemSpec, resources: Resources) -> External:
    params_of(Params, spec)
    return External(spec, resources.seed)
