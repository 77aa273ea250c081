"""What a cell or an index costs each kind of system: bytes by part, and work by stage.

A module from elsewhere may bring its own (``estimate_cell`` and ``estimate_index``, baselines.base); those of this tree
stand here. A kind without one is `not estimated`, and nothing of it is refused. Every cell is costed as if it ran alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from baselines.base import load_module, read_params
from baselines.race import BATCH
from baselines.workload import Workload
from configs.load import IndexSpec, SystemSpec
from msa import plan
from msa.config import ModelConfig
from msa.plan import Cost, Documents, Storage

RECORD_BYTES = 20  # of a document in a corpus's columns, beside its text
TEXT_COPIES = 3  # of a corpus's columns at most, while it is read (measured)
TOKENISED_BYTES = 140  # of a token between tokenizer and model: Python's lists, and what the tokenizer keeps (measured)
TEMPLATE_TOKENS = 5  # head and tail around a question
CITATION_TOKENS = 8  # `[123456]` and the end of a citation
SCAN_TILE = 2048  # chunks that are scored at once (msa.keys.Scan)
CACHE_COPIES = 2  # a session of some rows copies the cache of the whole one
READER_BATCH_TOKENS = 16384  # padded prompt tokens that the common reader reads at once (msa.reader)
PAIR_BATCH_TOKENS = 4096  # padded tokens that the reranker reads at once (msa.likelihood)
LOGIT_BYTES = 10  # of one in bfloat16, in float32 and as a logarithm
READ_DOCUMENTS = {"closed_book": 0, "oracle": 1, "bm25": 5, "dense": 5, "hybrid": 5, "rerank": 5}  # where `read_k` does not say


@dataclass(frozen=True)
class Part:
    """Bytes of one kind on a tier: device, host, disk, or auto (the fastest that has room).

    ``sharded`` parts are divided among the devices, the others stand on each. What is ``stored`` lies on disk already:
    it takes no more of it, and copying it to a faster tier leaves its pages in memory for as long as nobody needs them.
    """

    name: str
    bytes: float
    tier: str
    sharded: bool = False
    stored: bool = False


@dataclass(frozen=True)
class Estimate:
    """Bytes by part and work by stage of a cell or an index; ``stages`` is None where there is no formula."""

    parts: tuple[Part, ...] = ()
    stages: dict[str, Cost] | None = field(default_factory=dict)
    status: str = "ok"
    reason: str = ""

    @property
    def flops(self) -> float | None:
        """FLOPs of all stages."""
        return None if self.stages is None else sum(cost.flops for cost in self.stages.values())


NOT_ESTIMATED = Estimate(stages=None)


def together(made: Sequence[Estimate]) -> Estimate:
    """Indexes that are built one after another: work and bytes on disk add up, the largest needs its memory."""
    if any(item.stages is None for item in made):
        return NOT_ESTIMATED
    largest = max(made, key=lambda item: sum(part.bytes for part in item.parts))
    others = sum(part.bytes for item in made if item is not largest for part in item.parts if part.tier == "disk")
    stages: dict[str, Cost] = {}
    for name, cost in (pair for item in made for pair in item.stages.items()):
        stages[name] = stages.get(name, Cost()) + cost
    return Estimate((*largest.parts, Part("indexes of other corpora", others, "disk")), stages)


def weights(config: ModelConfig, dtype: str) -> Part:
    """A model's weights, whole on every device."""
    return Part("weights", plan.weight_bytes(config, dtype), "device")


def texts(*held: Documents) -> Part:
    """Corpora as the drivers read them: columns of text, ids and lengths."""
    return Part("texts", TEXT_COPIES * sum(documents.text_bytes + RECORD_BYTES * len(documents) for documents in held), "host")


def msa_cell(spec: SystemSpec, index: IndexSpec, config: ModelConfig, work: Workload, dtype: str) -> Estimate:
    """MSA: every round routes over every chunk, fetches the winners and reads question and fetched text; then it answers."""
    where = f"systems.yaml: params of kind '{spec.kind}'"
    module = load_module(spec.kind, where)
    bounds, stored = read_params(module.Params, spec.params, where), read_params(module.IndexParams, index.params, where)
    tiers = {"keys": "auto", "content": "auto", "scan": None, **bounds.tiers}
    storage = Storage(stored.key_dtype, stored.content_dtype, tiers["keys"], tiers["content"], tiers["scan"])
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
    prefill = plan.read_cost(config, row, slots=slots, routes=True, logits=1)
    request = plan.read_cost(config, work.request_tokens, before=row, slots=slots, logits=1)
    step = plan.read_cost(config, 1, before=row, slots=slots, logits=1)
    routing_tokens = prefills * work.question_tokens + rounds * fetched
    passes, model = -(-work.questions // batch), Cost(read_bytes=plan.weight_bytes(config, dtype))
    stages = {
        encoding(stored.precision): plan.encode_cost(config, work.overlay) if work.fresh else Cost(),
        "prefill": prefill * (prefills * work.questions) + model * (passes * prefills),
        "route": plan.route_cost(config, round(scored), routing_tokens, storage.scan or storage.key_dtype, batch)
        * work.questions,
        "fetch": plan.fetch_cost(config, slots, storage.content_dtype) * (prefills * work.questions),
        "answer": (request + step * work.answer_tokens) * work.questions + model * (passes * (work.answer_tokens + 1)),
    }

    # rows are padded to the longest, which holds what all its rounds fetched
    most = opening + min(bounds.max_fetched_tokens, bounds.max_rounds * bounds.max_ids * fetched)
    if work.longest_tokens is not None and rounds:
        most = opening + 2 * max(0.0, work.longest_tokens - prefills * opening - work.request_tokens) / prefills
    cache = plan.cache_bytes(config, most + work.request_tokens + work.answer_tokens, slots, dtype)
    busy = plan.activation_bytes(config, most, dtype, slots) + CACHE_COPIES * cache
    # scores of a tile by token and of all chunks; score, order and mask of a document
    busy += most * SCAN_TILE * 2 + scored * 4 + (len(work.base) + len(work.overlay)) * 13
    # each document of the overlays by itself, and those of a batch joined
    overlays = 2 * sum(plan.bank_bytes(config, work.overlay, storage).values())
    bank = bank_parts(config, work.base, storage, -(-work.base.tokens // stored.segment_tokens))
    others = (Part("overlays", overlays, "device"), Part("work", batch * busy, "device"), texts(work.corpus or work.base, work.overlay))
    return Estimate((weights(config, dtype), *bank, *others), stages)


def bank_parts(config: ModelConfig, documents: Documents, storage: Storage, segments: int) -> list[Part]:
    """A bank's parts where questions are answered: keys (or their coarser copy), content, tables."""
    bank = plan.bank_bytes(config, documents, storage, segments)
    keys = Part("routing keys", bank["routing keys"], storage.key_tier, sharded=True, stored=True)
    scan = []
    if storage.scan is not None:
        size = plan.key_bytes(config, documents.chunks(config.pool_tokens), storage.scan)
        scan = [Part("key scan", size, storage.key_tier, sharded=True)]
        keys = Part("routing keys", keys.bytes, "disk", sharded=True, stored=True)
    content = Part("content", bank["content"], storage.content_tier, sharded=True, stored=True)
    return [*scan, keys, content, Part("tables", bank["tables"], "host")]


def msa_index(spec: IndexSpec, config: ModelConfig, documents: Documents, dtype: str) -> Estimate:
    """Encoding a corpus into a bank on disk, a segment at a time."""
    where = f"systems.yaml: params of kind '{spec.kind}'"
    stored = read_params(load_module(spec.kind, where).IndexParams, spec.params, where)
    segments = -(-documents.tokens // stored.segment_tokens)
    bank = plan.bank_bytes(config, documents, Storage(stored.key_dtype, stored.content_dtype), segments)
    bank["text of the bank"] = documents.text_bytes + plan.ID_BYTES * (len(documents) + segments)
    rounded = 0
    if stored.key_dtype != "float32":
        rounded = plan.key_bytes(config, documents.chunks(config.pool_tokens), "float32")
    share = min(1.0, stored.segment_tokens / max(1, documents.tokens))
    segment = share * (sum(bank.values()) + rounded + TOKENISED_BYTES * documents.tokens)
    parts = (
        weights(config, dtype),
        *(Part(name, size, "disk") for name, size in bank.items()),
        Part("segment, being made", segment, "host"),
        Part("work", plan.activation_bytes(config, stored.batch_tokens, dtype), "device"),
        texts(documents),
    )
    return Estimate(parts, {encoding(stored.precision): plan.encode_cost(config, documents)})


def encoding(precision: str) -> str:
    """The stage of encoding documents, whose rate depends on the precision of its computation."""
    return f"encode {precision}"


def dense_index(config: ModelConfig, documents: Documents, dtype: str) -> Estimate:
    """Embedding every document with a forward pass of the whole model: one float32 vector each."""
    vectors = len(documents) * (config.hidden_size * 4 + plan.ID_BYTES)
    parts = (
        weights(config, dtype),
        Part("embeddings", vectors, "disk"),
        Part("embeddings, being made", vectors, "host"),
        texts(documents),
    )
    mean = documents.tokens / max(1, len(documents))
    return Estimate(parts, {"embed": plan.read_cost(config, mean) * len(documents)})


def reading_cell(
    config: ModelConfig, work: Workload, dtype: str, prompt_tokens: float, batch: int, contexts: int
) -> Estimate:
    """A plain LM reads ``contexts`` prompts, ``batch`` at a time, and decodes every question's answer."""
    attention = Cost(config.layers * plan.attention_flops(config, prompt_tokens, (prompt_tokens + 1) / 2))
    passes, model = -(-contexts // batch), Cost(read_bytes=plan.weight_bytes(config, dtype))
    step = plan.read_cost(config, 1, before=prompt_tokens, logits=1)
    stages = {
        # most of a long prompt's work is attention, which has a rate of its own
        "read": (plan.read_cost(config, prompt_tokens) + attention * -1) * contexts + model * passes,
        "attend": attention * contexts,
        "decode": step * (work.questions * work.answer_tokens) + model * (passes * work.answer_tokens),
    }
    cache = plan.cache_bytes(config, prompt_tokens + work.answer_tokens, 0, dtype)
    busy = plan.activation_bytes(config, prompt_tokens, dtype) + CACHE_COPIES * cache
    parts = (weights(config, dtype), Part("work", batch * busy, "device"), texts(work.corpus or work.base, work.overlay))
    return Estimate(parts, stages)


def retrieved_cell(
    spec: SystemSpec, config: ModelConfig, work: Workload, dtype: str, embedder: ModelConfig | None, reranker: ModelConfig | None
) -> Estimate:
    """The common reader over a few documents a question; finding them counts where an embedder or a reranker does it."""
    documents = spec.params.get("read_k", READ_DOCUMENTS[spec.kind])
    prompt = work.prompt_tokens or TEMPLATE_TOKENS + work.question_tokens + documents * work.document_tokens
    batch = max(1, min(work.questions, BATCH, int(READER_BATCH_TOKENS // prompt)))
    made = reading_cell(config, work, dtype, prompt, batch, work.questions)
    if reranker is not None:
        where = f"systems.yaml: params of kind '{spec.kind}'"
        pairs = work.questions * read_params(load_module(spec.kind, where).Params, spec.params, where).candidates
        tokens = work.document_tokens + work.question_tokens
        pair = plan.read_cost(reranker, tokens, logits=work.question_tokens)
        logits = PAIR_BATCH_TOKENS * work.question_tokens / tokens * reranker.vocab_size * LOGIT_BYTES
        held = (*made.parts, Part("reranker", plan.weight_bytes(reranker, dtype), "device"), Part("pair logits", logits, "device"))
        made = replace(made, parts=held, stages=made.stages | {"rerank": pair * pairs})
    if embedder is None:
        return made
    found = plan.read_cost(embedder, work.question_tokens) * work.questions
    if work.fresh:
        found += plan.read_cost(embedder, work.document_tokens) * len(work.overlay)
    vectors = (len(work.base) + len(work.overlay)) * embedder.hidden_size * 4
    parts = (*made.parts, Part("embedder", plan.weight_bytes(embedder, dtype), "device"), Part("embeddings", vectors, "host"))
    return replace(made, parts=parts, stages=made.stages | {"embed": found})


def long_context_cell(spec: SystemSpec, config: ModelConfig, work: Workload, dtype: str) -> Estimate:
    """Full attention: the whole context is read once for the questions of an overlay."""
    window = spec.params["window_tokens"]
    if work.context_tokens > window:
        reason = f"the context holds {work.context_tokens:,.0f} tokens, the window {window:,}"
        return Estimate(stages=None, status="unsupported_context", reason=reason)
    contexts = min(work.questions, max(1, work.overlays))
    return reading_cell(config, work, dtype, work.prompt_tokens or work.context_tokens, 1, contexts)


def cell_estimate(
    spec: SystemSpec,
    index: IndexSpec | None,
    config: ModelConfig | None,
    encoder: ModelConfig | None,
    reranker: ModelConfig | None,
    work: Workload,
    dtype: str,
) -> Estimate:
    """A system's cell; the index that it opens, made by a model of shape ``encoder``, stands on disk already."""
    if own := getattr(load_module(spec.kind, "systems.yaml"), "estimate_cell", None):
        return own(spec, config, work, dtype)
    if config is None or work.questions < 1:
        return NOT_ESTIMATED
    if spec.kind == "msa_system" and index is not None and config.routed_layers:
        return msa_cell(spec, index, config, work, dtype)
    if spec.kind == "long_context":
        return long_context_cell(spec, config, work, dtype)
    if spec.kind not in READ_DOCUMENTS or (spec.kind == "rerank" and reranker is None):
        return NOT_ESTIMATED
    return retrieved_cell(spec, config, work, dtype, encoder, reranker)


def index_estimate(spec: IndexSpec, config: ModelConfig | None, documents: Documents, dtype: str) -> Estimate:
    """An index over documents."""
    if own := getattr(load_module(spec.kind, "systems.yaml"), "estimate_index", None):
        return own(spec, config, documents, dtype)
    if spec.kind == "msa_system" and config is not None and config.routed_layers:
        return msa_index(spec, config, documents, dtype)
    return dense_index(config, documents, dtype) if spec.kind == "dense" and config is not None else NOT_ESTIMATED
