"""MSA: the memory model itself, through the same door as every rival (arXiv 2603.23516).

The tail is encoded once into a bank; a context is a prefix of it, and the documents of overlays are encoded when first
met and routed beside it. ``max_rounds: 1`` is MSA without interleave; ``constrain_ids: false`` decodes ids freely.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch

from baselines.base import (
    NOT_ESTIMATED,
    Estimate,
    IndexResources,
    MemoryPart,
    PlannedCell,
    Resources,
    System,
    params_of,
)
from baselines.parts.cost import CACHE_COPIES, TEMPLATE_TOKENS, texts, weights, working
from msa.checkpoints import read
from msa.generation.generate import Interleave, Limits, Trace
from msa.memory import sharded
from msa.memory.bank import Bank
from msa.memory.encode import SEGMENT_TOKENS, Encoder, batches
from msa.memory.routed import BankMemory, scans_of
from msa.memory.segment import Segment
from msa.memory.tiers import Tiers, placed
from msa.model import cost
from msa.model.config import ModelConfig
from msa.model.cost import Cost, Documents, Storage
from msa.model.decoder import MSAModel
from msa.model.prompt import Prompter
from msa.ops import dispatch
from msa_base.errors import UserError
from msa_base.records import Answer, CorpusView, Document, Question
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.tables import read_corpus
from msa_base.validate import Count, Threads, Tokens, Weight, Whole

NEEDS = ("model", "index")
INDEX_NEEDS = ("model",)
TOKENISED_BYTES = 140  # of a token between tokenizer and model: Python's lists, and what the tokenizer keeps (measured)
CITATION_TOKENS = 8  # `[123456]` and the end of a citation
MOST_EDITS = 24  # segments that a bank gets by edits while it answers, before all of few documents are joined
SCAN_TILE = 2048  # chunks that are scored at once (msa.ops.keys.Scan)


@dataclass(frozen=True)
class Params:
    """Bounds of Memory Interleave, questions answered together, the bank's tiers, the ``ranks`` (processes) that it is
    sharded over, and what computes (msa.ops.dispatch).
    """

    max_rounds: Count = 3
    max_ids: Count = 4
    max_fetched_tokens: Whole = 512  # 0: no text, the answer comes from pooled keys and values alone
    constrain_ids: bool = True
    routing_prior: Weight = 4.0
    batch: Count = 64
    tiers: Tiers = field(default_factory=Tiers)
    ranks: Threads = 1
    kernels: Literal["auto", "reference", "cpu", "triton"] = "auto"


@dataclass(frozen=True)
class IndexParams:
    """How a bank is encoded and stored: precisions at rest and of computation, padded tokens at a time, segments."""

    key_dtype: Literal["float32", "bfloat16", "float8", "int8"] = "float32"
    content_dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_tokens: Count = 1024
    segment_tokens: Tokens = SEGMENT_TOKENS


def _open(model: Path | None, threads: int) -> tuple[MSAModel, Prompter]:
    if model is None:
        raise UserError("systems.yaml: MSA needs a model; add `model:` to its entry and to its index's")
    return read.open_model(model, threads)


def build_index(spec: IndexSpec, resources: IndexResources, directory: Path) -> None:
    """Encode a corpus into a bank, segment by segment."""
    params = params_of(IndexParams, spec)
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
        self.tiers = params.tiers
        self._others: sharded.Ranks | None = None
        if params.ranks > 1:
            threads = max(1, resources.threads // params.ranks)
            torch.set_num_threads(threads)
            command = sharded.command(resources.index, asdict(params.tiers), threads, params.kernels)
            self._others = sharded.Ranks(params.ranks, command)
        self._overlays: dict[Document, Segment] = {}  # heads recur from context to context
        self._view: CorpusView | None = None

    def ingest(self, view: CorpusView) -> None:
        """Cut the bank to the view's prefix."""
        self._base = self.bank.prefix(len(view.base))
        ends = [0, len(view.base) // 2, len(view.base) - 1] if len(view.base) else []
        if [view.base[place].doc_id for place in ends] != self._base.doc_ids[ends].tolist():
            raise UserError("the bank is of another corpus than its view: run `baselines.drivers.index` again")
        self._view, self._segments = view, len(self._base.segments)
        if self._others:
            with self._others.at_work():
                self._shard, self._scans = sharded.hold(self._base, self.tiers, self.model.device)
        else:
            self._settled = self.tiers.fitted(self._base, self.model.device)
            self._shard = placed(self._base, self._settled, self.model.device)
            self._scans = scans_of(self._shard, self._settled.scan)

    def over(self, view: CorpusView) -> MSASystem:
        """Documents that the present view lacks are encoded, and the others stay where they are."""
        if self.params.ranks > 1:
            raise UserError(
                "systems.yaml: params: ranks: a sharded bank cannot be edited while it answers; set it to 1"
            )
        before, after = set(self._view.base), set(view.base)
        gone, fresh = ([d for d in of.base if d not in others] for of, others in ((self._view, after), (view, before)))
        changed = {document.doc_id for document in gone} & {document.doc_id for document in fresh}
        found = copy(self)
        found._view, found._base = view, self._base.snapshot()
        found._base.remove([document.doc_id for document in gone if document.doc_id not in changed])
        for edit, wanted in ((found._base.replace, True), (found._base.add, False)):
            if documents := [document for document in fresh if (document.doc_id in changed) is wanted]:
                edit(self.encoder.segment(documents))
        if len(found._base.segments) > self._segments + MOST_EDITS:
            found._base.compact()
        found._place(self)
        return found

    def _place(self, before: MSASystem) -> None:
        """Put into their tiers what the bank has more than it had ``before``."""
        placed_before = zip(before._base.segments, before._shard.segments, before._scans, strict=True)
        known = {id(segment.layers): (there, scans) for segment, there, scans in placed_before}
        self._shard, self._scans = Bank(self._base.signature, [], None, self._base.corpus), []
        for segment in self._base.segments:
            if id(segment.layers) in known:
                there, scans = known[id(segment.layers)]
                there = replace(there, live=segment.live)
            else:
                fresh = placed(Bank(self._base.signature, [segment]), self._settled, self.model.device)
                there, scans = fresh.segments[0], scans_of(fresh, self._settled.scan)[0]
            self._shard.segments.append(there)
            self._scans.append(scans)

    def close(self) -> None:
        """Let the other ranks go."""
        if self._others:
            self._others.close()

    def kernels(self) -> dict[str, str]:
        """What computes over the present view's keys."""
        if self._scans and self._scans[0]:
            keys = self._scans[0][0].scanned.values
        else:
            keys = torch.empty(0, self.model.config.routing_width, device=self.model.device)
        return dispatch.chosen(keys) | (super().kernels() or {})

    def memory_bytes(self, view: CorpusView) -> int:
        return self.bank.prefix(len(view.base)).nbytes

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        if view is not self._view or (self._others and not self._others.are_there):
            self.ingest(view)
        limits = Limits(**{item.name: getattr(self.params, item.name) for item in fields(Limits)})
        answers = []
        for start in range(0, len(questions), self.params.batch):
            batch = questions[start : start + self.params.batch]
            memory, added = self._memory(batch, view)

            def fetch(question: Question, doc_id: int, added: dict = added) -> Document | None:
                return added[question.question_id].get(doc_id) or self._base.document(doc_id)

            with self._others.at_work() if self._others else nullcontext():
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
                self._overlays[document] = encoded.select(torch.tensor([place]))
        overlay = Segment.join([self._overlays[document] for document in documents]) if documents else None
        column = {document: number for number, document in enumerate(documents)}
        sees = torch.zeros(len(batch), len(documents), dtype=torch.bool)
        for row, added in enumerate(overlays):
            sees[row, [column[document] for document in added]] = True
        hidden = [[document.doc_id for document in added] for added in overlays]
        top_k = self.model.config.top_k_documents
        kind = sharded.ShardedMemory if self._others else BankMemory
        memory = kind(self._shard, overlay, sees, hidden, top_k, self._scans)
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


def estimate_cell(cell: PlannedCell) -> Estimate:
    """Every round routes over every chunk, fetches the winners and reads them; then the answer is written."""
    config, work, dtype = cell.reader, cell.work, cell.dtype
    if config is None or cell.index is None or not config.routed_layers:
        return NOT_ESTIMATED
    bounds, stored = params_of(Params, cell.spec), params_of(IndexParams, cell.index)
    tiers = bounds.tiers
    storage = Storage(stored.key_dtype, stored.content_dtype, tiers.keys, tiers.content, tiers.scan)
    batch, chunks = min(bounds.batch, work.questions), work.base.chunks(config.pool_tokens)
    slots = config.top_k_documents * -(-work.document_tokens // config.pool_tokens)
    # every question of a batch is scored over the overlays of all of them, and then sees its own
    scored = chunks + work.overlay.chunks(config.pool_tokens) * min(1.0, batch / work.questions)

    rounds = min(work.rounds, bounds.max_rounds)
    prefills, fetched = rounds + 1, work.document_tokens + CITATION_TOKENS
    opening = TEMPLATE_TOKENS + work.question_tokens
    read = prefills * opening + fetched * rounds * prefills / 2  # each prefill holds what earlier rounds fetched
    if work.prompt_tokens is not None:
        read = max(prefills * opening, work.prompt_tokens - work.request_tokens)
    row = read / prefills
    prefill = cost.read_cost(config, row, slots=slots, routes=True, logits=1)
    request = cost.read_cost(config, work.request_tokens, before=row, slots=slots, logits=1)
    step = cost.read_cost(config, 1, before=row, slots=slots, logits=1)
    routing_tokens = prefills * work.question_tokens + rounds * fetched
    route = cost.route_cost(config, round(scored), routing_tokens, storage.scan or storage.key_dtype, batch)
    passes, model = -(-work.questions // batch), Cost(read_bytes=cost.weight_bytes(config, dtype))
    stages = {
        encoding(stored.precision): cost.encode_cost(config, work.overlay) if work.fresh else Cost(),
        "prefill": prefill * (prefills * work.questions) + model * (passes * prefills),
        "route": route * work.questions,
        "fetch": cost.fetch_cost(config, slots, storage.content_dtype) * (prefills * work.questions),
        "answer": (request + step * work.answer_tokens) * work.questions + model * (passes * (work.answer_tokens + 1)),
    }

    # rows are padded to the longest, which holds what all its rounds fetched
    most = opening + min(bounds.max_fetched_tokens, bounds.max_rounds * bounds.max_ids * fetched)
    if work.longest_tokens is not None and rounds:
        most = opening + 2 * max(0.0, work.longest_tokens - prefills * opening - work.request_tokens) / prefills
    cache = cost.cache_bytes(config, most + work.request_tokens + work.answer_tokens, slots, dtype)
    busy = cost.activation_bytes(config, most, dtype, slots) + CACHE_COPIES * cache
    # scores of a tile by token and of all chunks; score, order and mask of a document
    busy += most * SCAN_TILE * 2 + scored * 4 + (len(work.base) + len(work.overlay)) * 13
    # each document of the overlays by itself, and those of a batch joined
    overlays = 2 * sum(cost.bank_bytes(config, work.overlay, storage).values())
    bank = cost.bank_bytes(config, work.base, storage, -(-work.base.tokens // stored.segment_tokens))
    parts = (
        weights(config, dtype),
        *_bank_parts(config, bank, chunks, storage),
        MemoryPart("overlays", overlays, "device"),
        MemoryPart("work", batch * busy, "device"),
        texts(work.corpus or work.base, work.overlay),
    )
    return Estimate(parts, stages, view_bytes=sum(bank.values()))


def _bank_parts(config: ModelConfig, bank: dict[str, int], chunks: int, storage: Storage) -> list[MemoryPart]:
    """A bank's parts where questions are answered: keys (or their coarser copy), content, tables."""
    keys = MemoryPart("routing keys", bank["routing keys"], storage.key_tier, sharded=True, stored=True)
    scan = []
    if storage.scan is not None:
        scan = [MemoryPart("key scan", cost.key_bytes(config, chunks, storage.scan), storage.key_tier, sharded=True)]
        keys = replace(keys, tier="disk")
    content = MemoryPart("content", bank["content"], storage.content_tier, sharded=True, stored=True)
    return [*scan, keys, content, MemoryPart("tables", bank["tables"], "host")]


def estimate_index(spec: IndexSpec, config: ModelConfig | None, documents: Documents, dtype: str) -> Estimate:
    """Encoding a corpus into a bank on disk, a segment at a time."""
    if config is None or not config.routed_layers:
        return NOT_ESTIMATED
    stored = params_of(IndexParams, spec)
    segments = -(-documents.tokens // stored.segment_tokens)
    bank = cost.bank_bytes(config, documents, Storage(stored.key_dtype, stored.content_dtype), segments)
    bank["text of the bank"] = documents.text_bytes + cost.ID_BYTES * (len(documents) + segments)
    rounded = 0
    if stored.key_dtype != "float32":
        rounded = cost.key_bytes(config, documents.chunks(config.pool_tokens), "float32")
    share = min(1.0, stored.segment_tokens / max(1, documents.tokens))
    work = cost.activation_bytes(config, stored.batch_tokens, dtype)
    segment = share * (sum(bank.values()) + rounded + TOKENISED_BYTES * documents.tokens)
    parts = (
        weights(config, dtype),
        *(MemoryPart(name, size, "disk") for name, size in bank.items()),
        MemoryPart("segment, being made", segment, "host"),
        *working(work, _batch_shapes(documents, stored)),
        texts(documents),
    )
    return Estimate(parts, {encoding(stored.precision): cost.encode_cost(config, documents)})


def _batch_shapes(documents: Documents, stored: IndexParams) -> int:
    """How many shapes the batches of a segment have: oneDNN keeps kernels of each, and the heap holes of its size."""
    whole = int((documents.lengths.cumsum() <= stored.segment_tokens).sum())
    first = torch.tensor(documents.lengths[: whole or 1])
    return len({(len(batch), int(first[batch].max())) for batch in batches(first, stored.batch_tokens)})


def encoding(precision: str) -> str:
    """The stage of encoding documents, whose rate depends on the precision of its computation."""
    return f"encode {precision}"


def index_parts(directory: Path) -> dict[str, int]:
    """Bytes of a bank's routing keys, scales included, by the headers of its segments."""
    from safetensors import safe_open

    total = 0
    for path in directory.glob("segment-*.safetensors"):
        with safe_open(path, "pt") as content:
            keys = [name for name in content.keys() if ".routing" in name]  # noqa: SIM118
            total += sum(content.get_tensor(name).nbytes for name in keys)
    return {"routing keys": total}


def make(spec: SystemSpec, resources: Resources) -> MSASystem:
    return MSASystem(params_of(Params, spec), resources)
