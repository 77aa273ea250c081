"""What the systems' cost formulas share: weights, texts, and a reader that reads prompts and writes answers.

Every cell is costed as if it ran alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from baselines.base import BATCH, Estimate, MemoryPart, PlannedCell, params_of
from baselines.parts.reading import RagParams
from msa.model import cost
from msa.model.config import ModelConfig
from msa.model.cost import Cost, Documents

RECORD_BYTES = 20  # of a document in a corpus's columns, beside its text
TEXT_COPIES = 3  # of a corpus's columns at most, while it is read (measured)
TEMPLATE_TOKENS = 5  # head and tail around a question
CACHE_COPIES = 2  # a session of some rows copies the cache of the whole one
READER_BATCH_TOKENS = 16384  # padded prompt tokens that the common reader reads at once (msa.generation.reader)

# kernels and buffers that oneDNN keeps, one of each shape that it met in bfloat16 (measured, docs/LOG.md)
KERNELS = MemoryPart("kernels", 0.2e9, "host")
# of the work of a batch: what the heap keeps beside it, and what each shape of batches adds, up to as many shapes as
# oneDNN keeps kernels of (measured on banks of 2,560 and of 256 wide models, docs/LOG.md)
HEAP_SHARE, SHAPE_SHARE, MOST_SHAPES = 0.37, 0.11, 100


def working(work: float, shapes: int) -> tuple[MemoryPart, MemoryPart]:
    """What batches of some shapes take that need ``work`` bytes at once, and what stays behind of them on a host."""
    heap = work * (HEAP_SHARE + SHAPE_SHARE * min(shapes, MOST_SHAPES))
    return MemoryPart("work", work, "device"), MemoryPart("heap and kernels", heap, "host")


def weights(config: ModelConfig, dtype: str, name: str = "weights") -> MemoryPart:
    """A model's weights, whole on every device."""
    return MemoryPart(name, cost.weight_bytes(config, dtype), "device")


def texts(*held: Documents) -> MemoryPart:
    """Corpora as the drivers read them: columns of text, ids and lengths."""
    size = sum(documents.text_bytes + RECORD_BYTES * len(documents) for documents in held)
    return MemoryPart("texts", TEXT_COPIES * size, "host")


def reading(cell: PlannedCell, prompt_tokens: float, batch: int, prompts: int) -> Estimate:
    """A plain language model reads ``prompts`` prompts, ``batch`` at a time, and writes every question's answer.

    One of unknown shape, a served model, is asked each question by itself; what that takes is its server's.
    """
    config, dtype, work = cell.reader, cell.dtype, cell.work
    if config is None:
        asked = work.questions * prompt_tokens, work.questions * work.answer_tokens
        return Estimate(stages=None, served_tokens=asked)
    attention = Cost(config.layers * cost.attention_flops(config, prompt_tokens, (prompt_tokens + 1) / 2))
    passes, model = -(-prompts // batch), Cost(read_bytes=cost.weight_bytes(config, dtype))
    step = cost.read_cost(config, 1, before=prompt_tokens, logits=1)
    stages = {
        # most of a long prompt's work is attention, which has a rate of its own
        "read": (cost.read_cost(config, prompt_tokens) + attention * -1) * prompts + model * passes,
        "attend": attention * prompts,
        "decode": step * (work.questions * work.answer_tokens) + model * (passes * work.answer_tokens),
    }
    cache = cost.cache_bytes(config, prompt_tokens + work.answer_tokens, 0, dtype)
    busy = cost.activation_bytes(config, prompt_tokens, dtype) + CACHE_COPIES * cache
    held = texts(work.corpus or work.base, work.overlay)
    return Estimate((weights(config, dtype), MemoryPart("work", batch * busy, "device"), held), stages)


def reading_documents(cell: PlannedCell, documents: int) -> Estimate:
    """The common reader over a few documents a question; finding them counts where an embedder does it."""
    work, encoder = cell.work, cell.encoder
    prompt = work.prompt_tokens or TEMPLATE_TOKENS + work.question_tokens + documents * work.document_tokens
    batch = max(1, min(work.questions, BATCH, int(READER_BATCH_TOKENS // prompt)))
    read = reading(cell, prompt, batch, work.questions)
    if encoder is None:
        return read
    vectors = MemoryPart("embeddings", (len(work.base) + len(work.overlay)) * encoder.hidden_size * 4, "host")
    parts = (*read.parts, weights(encoder, cell.dtype, "embedder"), vectors)
    found = cost.read_cost(encoder, work.question_tokens) * work.questions
    if work.fresh:
        found += cost.read_cost(encoder, work.document_tokens) * len(work.overlay)
    return replace(read, parts=parts, stages=(read.stages or {}) | {"embed": found})


def reading_ranked(params: type[RagParams], cell: PlannedCell) -> Estimate:
    """The common reader over the documents that rank best."""
    return reading_documents(cell, params_of(params, cell.spec).read_k)


def training(
    config: ModelConfig, params: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]], tokens: float
) -> Estimate:
    """Training a model on ``tokens`` by a models.yaml entry's ``params``; bytes are one process's, beside the state of
    the optimiser, of which each device holds its share.
    """
    stages = {"train": cost.training_cost(config, tokens)}
    if not params.get("phases"):
        return Estimate(stages=stages)
    held = cost.training_bytes(config, params, samples)
    parts = [MemoryPart(name, size, "device", sharded=name == cost.STATE) for name, size in held.items()]
    saved = MemoryPart("checkpoint, and a step to go on from", 2 * held["weights"] + held[cost.STATE], "disk")
    stages = {"train": cost.training_cost(config, tokens, cost.tokens_twice(params, samples))}
    return Estimate((*parts, saved, KERNELS), stages)
