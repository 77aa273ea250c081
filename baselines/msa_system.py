"""MSA: the memory model itself, through the same door as every rival (arXiv 2603.23516).

The tail is encoded once into a bank; a context is a prefix of it, and the documents of overlays are encoded when first
met and routed beside it. ``max_rounds: 1`` is MSA without interleave; ``constrain_ids: false`` decodes ids freely.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from baselines.base import IndexResources, Resources, System, read_params
from configs.errors import UserError
from configs.load import IndexSpec, SystemSpec, build
from configs.records import Answer, CorpusView, Document, Question
from configs.tables import read_corpus
from msa import checkpoint, sharded
from msa.bank import Bank, Segment
from msa.encode import SEGMENT_TOKENS, Encoder
from msa.generate import Interleave, Limits, Trace
from msa.memory import BankMemory, scans_of
from msa.model import MSAModel
from msa.ops import dispatch
from msa.parallel import joined
from msa.prompt import Prompter
from msa.tiers import Tiers, placed


@dataclass(frozen=True)
class Params:
    """Bounds of Memory Interleave, how many questions are answered together, the bank's :class:`msa.tiers.Tiers`, over how
    many processes it is sharded, and what computes (``kernels``: auto, reference, cpu or triton; :mod:`msa.ops.dispatch`).
    """

    max_rounds: int = 3
    max_ids: int = 4
    max_fetched_tokens: int = 512
    constrain_ids: bool = True
    routing_prior: float = 4.0
    batch: int = 64
    tiers: dict[str, Any] = field(default_factory=dict)
    ranks: int = 1
    kernels: str = "auto"


@dataclass(frozen=True)
class IndexParams:
    """How a bank is encoded and stored: precisions at rest and of computation, padded tokens encoded at a time, tokens of a segment."""

    key_dtype: str = "float32"
    content_dtype: str = "float32"
    precision: str = "float32"
    batch_tokens: int = 2048
    segment_tokens: int = SEGMENT_TOKENS


def _open(model: Path | None, threads: int) -> tuple[MSAModel, Prompter]:
    if model is None:
        raise UserError("systems.yaml: MSA needs a model; add `model:` to its entry and to its index's")
    return checkpoint.open_model(model, threads)


def build_index(spec: IndexSpec, resources: IndexResources, directory: Path) -> None:
    """Encode a corpus into a bank, segment by segment."""
    params = read_params(IndexParams, spec.params, "systems.yaml: params of kind 'msa_system'")
    model, prompter = _open(resources.model, resources.threads)
    encoder = Encoder(
        model, prompter, params.key_dtype, params.content_dtype, params.batch_tokens, resources.model, params.precision
    )
    corpus = read_corpus(resources.corpus)
    encoder.build(corpus, directory, total_tokens=corpus.num_tokens, segment_tokens=params.segment_tokens)


class MSASystem(System):
    """A model, its bank and the overlays met so far."""

    def __init__(self, params: Params, resources: Resources) -> None:
        if resources.index is None:
            raise UserError("systems.yaml: a system of kind 'msa_system' needs an index; add `index:` to its entry")
        self.params = params
        dispatch.use(params.kernels)
        self.model, self.prompter = _open(resources.model, resources.threads)
        self.bank = Bank.open(resources.index, Encoder(self.model, self.prompter, directory=resources.model).signature)
        self.encoder = Encoder.of(self.bank, self.model, self.prompter)
        self.tiers: Tiers = build(Tiers, params.tiers, "systems.yaml: params of kind 'msa_system': tiers")
        self._ranks = ExitStack()
        if params.ranks > 1:
            threads = max(1, resources.threads // params.ranks)
            torch.set_num_threads(threads)
            self._ranks.enter_context(joined(params.ranks, sharded.command(resources.index, params.tiers, threads, params.kernels)))
            self._ranks.callback(sharded.stop)
        self._overlays: dict[Document, Segment] = {}  # heads recur from context to context
        self._view: CorpusView | None = None

    def ingest(self, view: CorpusView) -> None:
        """Cut the bank to the view's prefix."""
        self._base = self.bank.prefix(len(view.base))
        ends = [0, len(view.base) // 2, len(view.base) - 1] if len(view.base) else []
        if [view.base[place].doc_id for place in ends] != self._base.doc_ids[ends].tolist():
            raise UserError("the bank is of another corpus than its view; run `python -m baselines.index` again")
        self._view = view
        if self.params.ranks > 1:
            self._shard, self._scans = sharded.own_shard(self._base, self.tiers, self.model.device)
        else:
            settled = self.tiers.fitted(self._base, self.model.device)
            self._shard = placed(self._base, settled, self.model.device)
            self._scans = scans_of(self._shard, settled.scan)

    def close(self) -> None:
        """Let the other ranks go."""
        self._ranks.close()

    def kernels(self) -> dict[str, str]:
        """What computes over the present view's keys."""
        parts = self._scans[0] if self._scans else []
        keys = parts[0].quick.values if parts else torch.empty(0, self.model.config.routing_width, device=self.model.device)
        return dispatch.chosen(keys)

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
                return added[question.question_id].get(doc_id) or self._base.document(doc_id)

            answers += map(_answer, Interleave(self.model, self.prompter, limits, fetch).answer(batch, memory))
        return answers

    def _memory(self, batch: list[Question], view: CorpusView) -> tuple[BankMemory, dict[str, dict[int, Document]]]:
        """The memory of a batch, and each question's overlay documents by id."""
        overlays = [view.overlay(question).added for question in batch]
        documents = list(dict.fromkeys(document for added in overlays for document in added))
        fresh = [document for document in documents if document not in self._overlays]
        if fresh:
            encoded = self.encoder.segment(fresh)
            for place, document in enumerate(fresh):
                self._overlays[document] = encoded.take(torch.tensor([place]))
        overlay = Segment.join([self._overlays[document] for document in documents]) if documents else None
        column = {document: number for number, document in enumerate(documents)}
        sees = torch.zeros(len(batch), len(documents), dtype=torch.bool)
        for row, added in enumerate(overlays):
            sees[row, [column[document] for document in added]] = True
        hidden = [[document.doc_id for document in added] for added in overlays]
        top_k = self.model.config.top_k_documents
        if self.params.ranks > 1:
            memory = sharded.ShardedMemory(self._shard, overlay, sees, hidden, top_k, self._scans, len(self._base))
        else:
            memory = BankMemory(self._shard, overlay, sees, hidden, top_k, self._scans)
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
        left_out_doc_ids=list(dict.fromkeys(trace.left_out)),
        prompt=trace.prompt,
    )


def make(spec: SystemSpec, resources: Resources) -> MSASystem:
    """Open the model and its bank."""
    return MSASystem(read_params(Params, spec.params, "systems.yaml: params of kind 'msa_system'"), resources)
