"""Full attention over the whole text, up to the model's window; beyond it the cell is `unsupported_context`.

The same backbone and training budget as MSA's, nothing but a plain prompt: all documents, then the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from baselines.base import CellStatus, Resources, System, read_params
from baselines.models import open_reader, take_usage
from baselines.reading import Selection, read_answer
from configs.load import SystemSpec
from configs.records import Answer, CorpusView, Document, Question


@dataclass(frozen=True)
class Params:
    """The window holds prompt and answer, in tokens."""

    window_tokens: int


class LongContext(System):
    """Questions of one overlay see one context, which is read once for all of them."""

    reads_everything = True

    def __init__(self, params: Params, resources: Resources) -> None:
        self.params = params
        self.reader = open_reader(resources.model, resources.threads)

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        """Answer in groups of one overlay each; never cuts a prompt."""
        groups: dict[str | None, list[int]] = {}
        for position, question in enumerate(questions):
            groups.setdefault(question.overlay_id, []).append(position)
        answers: dict[int, Answer] = {}
        for positions in groups.values():
            group = [questions[position] for position in positions]
            documents = list(view.documents(group[0]))
            self._check_window(documents, group)
            for position, generation in zip(positions, self.reader.answer_shared(documents, group), strict=True):
                answers[position] = read_answer(questions[position], Selection(documents), generation)
                answers[position].cited_doc_ids = []  # it reads everything and cites nothing
        return [answers[position] for position in range(len(questions))]

    def take_usage(self) -> dict[str, Any]:
        """What a served reader cost."""
        return take_usage(reader=self.reader)

    def _check_window(self, documents: list[Document], questions: list[Question]) -> None:
        least = sum(document.num_tokens for document in documents)
        if least <= self.params.window_tokens:
            least = max(
                self.reader.prompt_tokens(documents, question) + question.max_new_tokens for question in questions
            )
        if least > self.params.window_tokens:
            raise CellStatus(
                "unsupported_context",
                f"prompt and answer need {least:,} tokens, the window has {self.params.window_tokens:,}",
            )


def make(spec: SystemSpec, resources: Resources) -> LongContext:
    """Open the reader."""
    return LongContext(read_params(Params, spec.params, "systems.yaml: params of kind 'long_context'"), resources)
