"""MSA: the memory model itself, through the same door as every rival (arXiv 2603.23516).

The tail is encoded once into a bank; a context is a prefix of it, and the documents of overlays are encoded when first
met and routed beside it. ``max_rounds: 1`` is MSA without interleave; ``constrain_ids: false`` decodes ids freely.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch

from baselines.base import IndexResources, Resources, System, read_params
from configs.errors import UserError
from configs.load import IndexSpec, SystemSpec
from configs.records import Answer, CorpusView, Document, Question
from configs.tables import read_corpus
from msa import checkpoint
from msa.generate import Interleave, Limits, Trace
from msa.memory import Bank, BankMemory, encode_bank


@dataclass(frozen=True)
class Params:
    """Bounds of Memory Interleave, and how many questions are answered together."""

    max_rounds: int = 3
    max_ids: int = 4
    max_fetched_tokens: int = 512
    constrain_ids: bool = True
    routing_prior: float = 1.0
    batch: int = 64


@dataclass(frozen=True)
class IndexParams:
    """Padded tokens encoded at a time."""

    batch_tokens: int = 2048


def _open(model: Path | None, threads: int) -> tuple:
    if model is None:
        raise UserError("systems.yaml: MSA needs a model; add `model:` to its entry and to its index's")
    return checkpoint.open_model(model, threads)


def build_index(spec: IndexSpec, resources: IndexResources, directory: Path) -> None:
    """Encode a corpus into bank.safetensors."""
    params = read_params(IndexParams, spec.params, "systems.yaml: params of kind 'msa_system'")
    model, prompter = _open(resources.model, resources.threads)
    corpus = read_corpus(resources.corpus)
    encode_bank(model, prompter, corpus, params.batch_tokens, progress=True).save(directory)


class MSASystem(System):
    """Routes over the prefix of the bank that a view holds, and over the question's overlay beside it."""

    def __init__(self, params: Params, resources: Resources) -> None:
        if resources.index is None:
            raise UserError("systems.yaml: a system of kind 'msa_system' needs an index; add `index:` to its entry")
        self.params = params
        self.model, self.prompter = _open(resources.model, resources.threads)
        self.bank = Bank.load(resources.index)
        self._overlays: dict[Document, Bank] = {}  # heads recur from context to context
        self._view: CorpusView | None = None

    def ingest(self, view: CorpusView) -> None:
        """Cut the bank to the view's prefix."""
        ids = [document.doc_id for document in view.base]
        if ids != self.bank.doc_ids[: len(ids)].tolist():
            raise UserError("the bank is of another corpus than its view; run `python -m baselines.index` again")
        self._view = view
        self._base = self.bank.prefix(len(ids))
        self._places = {doc_id: place for place, doc_id in enumerate(ids)}

    def memory_bytes(self, view: CorpusView) -> int:
        """Bytes of the view's prefix of the bank."""
        return self.bank.prefix(len(view.base)).nbytes

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        """Answer in batches of questions that share overlays where they can."""
        if view is not self._view:
            self.ingest(view)
        limits = Limits(**{item.name: getattr(self.params, item.name) for item in fields(Limits)})
        answers = []
        for start in range(0, len(questions), self.params.batch):
            batch = questions[start : start + self.params.batch]
            memory, added = self._memory(batch, view)

            def fetch(question: Question, doc_id: int, added: dict = added) -> Document | None:
                own = added[question.question_id].get(doc_id)
                place = self._places.get(doc_id)
                return own or (view.base[place] if place is not None else None)

            answers += map(_answer, Interleave(self.model, self.prompter, limits, fetch).answer(batch, memory))
        return answers

    def _memory(self, batch: list[Question], view: CorpusView) -> tuple[BankMemory, dict[str, dict[int, Document]]]:
        """The memory of a batch, and each question's overlay documents by id."""
        overlays = [view.overlay(question).added for question in batch]
        documents = list(dict.fromkeys(document for added in overlays for document in added))
        fresh = [document for document in documents if document not in self._overlays]
        if fresh:
            encoded = encode_bank(self.model, self.prompter, fresh)
            for number, document in enumerate(fresh):
                self._overlays[document] = encoded.document(number)
        overlay = Bank.join([self._overlays[document] for document in documents], self.bank)
        column = {document: number for number, document in enumerate(documents)}
        sees = torch.zeros(len(batch), len(documents), dtype=torch.bool)
        for row, added in enumerate(overlays):
            sees[row, [column[document] for document in added]] = True
        hidden = [[self._places[d.doc_id] for d in added if d.doc_id in self._places] for added in overlays]
        memory = BankMemory(self._base, overlay, sees, hidden, self.model.config.top_k_documents)
        by_id = {q.question_id: {d.doc_id: d for d in added} for q, added in zip(batch, overlays, strict=True)}
        return memory, by_id


def _answer(trace: Trace) -> Answer:
    return Answer(
        question_id=trace.question.question_id,
        text=trace.text,
        cited_doc_ids=trace.cited,
        routed_doc_ids=trace.routed,
        rounds=trace.rounds,
        input_tokens=trace.input_tokens,
        output_tokens=trace.output_tokens,
        first_token_s=trace.first_token_s,
        total_s=sum(trace.stage_s.values()),
        stage_s=trace.stage_s,
        truncated=trace.truncated,
        status=trace.status,
    )


def make(spec: SystemSpec, resources: Resources) -> MSASystem:
    """Open the model and its bank."""
    return MSASystem(read_params(Params, spec.params, "systems.yaml: params of kind 'msa_system'"), resources)
