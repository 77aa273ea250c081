"""Full attention over the whole text, up to the model's window; beyond it the cell is `unsupported_context`.

The same backbone and training budget as MSA's, nothing but a plain prompt: all documents, then the question.
"""

from __future__ import annotations

from dataclasses import dataclass

from baselines.base import CellStatus, Estimate, PlannedCell, Resources, System, params_of
from baselines.parts.cost import reading
from baselines.parts.models import open_reader
from baselines.parts.reading import ReaderInput, read_answer
from msa_base.records import Answer, CorpusView, Document, Question
from msa_base.specs import SystemSpec
from msa_base.validate import Tokens

NEEDS = ("model",)


@dataclass(frozen=True)
class Params:
    """The window holds prompt and answer, in tokens."""

    window_tokens: Tokens


class LongContext(System):
    """Questions of one overlay see one context, which is read once for all of them."""

    reads_everything = True

    def __init__(self, params: Params, resources: Resources) -> None:
        self.params = params
        self.reader = open_reader(resources.model, resources.threads)
        self.models = {"reader": self.reader}

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        """Answer in groups of one overlay each; never cuts a prompt."""
        groups: dict[str | None, list[Question]] = {}
        for question in questions:
            groups.setdefault(question.overlay_id, []).append(question)
        answers: dict[str, Answer] = {}
        for group in groups.values():
            documents = list(view.documents(group[0]))
            self._check_window(documents, group)
            for question, generation in zip(group, self.reader.answer_shared(documents, group), strict=True):
                answers[question.question_id] = read_answer(question, ReaderInput([]), generation)
        return [answers[question.question_id] for question in questions]

    def _check_window(self, documents: list[Document], questions: list[Question]) -> None:
        least = sum(document.num_tokens for document in documents)
        window = self.params.window_tokens
        if least <= window:
            least = max(self.reader.prompt_tokens(documents, asked) + asked.max_new_tokens for asked in questions)
        if least > window:
            reason = f"prompt and answer need {least:,} tokens, the window has {window:,}"
            raise CellStatus("unsupported_context", reason)


def estimate_cell(cell: PlannedCell) -> Estimate:
    """The whole context is read once for the questions of an overlay."""
    work, window = cell.work, params_of(Params, cell.spec).window_tokens
    if cell.reader is not None and work.context_tokens > window:
        reason = f"the context holds {work.context_tokens:,.0f} tokens, the window {window:,}"
        return Estimate(stages=None, status="unsupported_context", reason=reason)
    contexts = min(work.questions, max(1, work.overlays))
    return reading(cell, work.prompt_tokens or work.context_tokens, 1, contexts)


def make(spec: SystemSpec, resources: Resources) -> LongContext:
    return LongContext(params_of(Params, spec), resources)
