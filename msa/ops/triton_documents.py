"""The best documents in triton: maximum over each document's chunks, the k best of every block, and their merge.

A document's score and its place in the order of ids make one 64-bit number, score above, so that the greatest number is
the best score and, among equal ones, the lowest id; no two are equal, and a merge of merges is exact.

Shape legend: Q questions, T chunks, N documents.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa.ops import tiles
from msa.ops.reference import DocumentOrder, document_order

NOTHING = tl.constexpr(-(2**63))


@triton.jit
def _number(score, rank, documents):
    """One integer that orders by score and then by the lowest rank; NOTHING for -inf and NaN."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # both zeros are one
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    number = (ordered.to(tl.int64) << 32) | (documents - 1 - rank).to(tl.int64)
    return tl.where(score > -float("inf"), number, NOTHING)


@triton.jit
def _emit(numbers, out, best, values, by_id, documents, K, FINAL: tl.constexpr):
    """Write the K greatest of a block's numbers in order: as numbers or, in the last pass, as documents and scores."""
    question = tl.program_id(1).to(tl.int64)
    out += (question * tl.num_programs(0) + tl.program_id(0)) * K
    best += question * K
    values += question * K
    for place in range(K):
        top = tl.max(numbers, 0)
        numbers = tl.where(numbers == top, NOTHING, numbers)
        if FINAL:
            ordered = (top >> 32).to(tl.int32)
            score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
            there = top != NOTHING
            rank = documents - 1 - (top & 0xFFFFFFFF)
            tl.store(best + place, tl.load(by_id + rank, mask=there, other=-1))
            tl.store(values + place, tl.where(there, score, -float("inf")))
        else:
            tl.store(out + place, top)


@triton.jit
def _documents(
    scores, offsets, rank, visible, out, best, values, by_id, chunks, documents, K, BLOCK: tl.constexpr,
    STEP: tl.constexpr, HIDES: tl.constexpr, FINAL: tl.constexpr,
):  # fmt: skip
    """One block of documents of one question: their scores, STEP chunks of each at a time, and the K best."""
    question = tl.program_id(1).to(tl.int64)
    document = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = document < documents
    if HIDES:
        inside &= tl.load(visible + question * documents + document, mask=inside, other=0) != 0
    first = tl.load(offsets + document, mask=inside, other=0)
    count = tl.load(offsets + document + 1, mask=inside, other=0) - first
    score = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, tl.max(count, 0), STEP):
        step = start + tl.arange(0, STEP)[None, :]
        at = scores + question * chunks + first[:, None] + step
        some = tl.load(at, mask=step < count[:, None], other=-float("inf"))
        score = tl.maximum(score, tl.max(some, 1))
    numbers = _number(score, tl.load(rank + document, mask=inside, other=0), documents)
    _emit(numbers, out, best, values, by_id, documents, K, FINAL)


@triton.jit
def _merge(numbers, out, best, values, by_id, count, documents, K, BLOCK: tl.constexpr, FINAL: tl.constexpr):
    """The K greatest of one block of a question's numbers."""
    question = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    some = tl.load(numbers + question * count + at, mask=at < count, other=NOTHING)
    _emit(some, out, best, values, by_id, documents, K, FINAL)


def top_documents(
    scores: Tensor, offsets: Tensor, doc_ids: Tensor, k: int, visible: Tensor | None = None,
    order: DocumentOrder | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See :func:`msa.ops.reference.top_documents`."""
    (questions, chunks), documents, device = scores.shape, len(doc_ids), scores.device
    best = torch.full((questions, k), -1, dtype=torch.long, device=device)
    values = torch.full((questions, k), -torch.inf, device=device)
    if not (questions and documents and chunks and k):
        return best, values
    order = order or document_order(doc_ids)
    size = tiles.documents_block(tiles.capability(device))
    blocks = triton.cdiv(documents, size)
    numbers = torch.empty(questions, blocks * k, dtype=torch.long, device=device)
    _documents[(blocks, questions)](
        scores.float().contiguous(), offsets.long().contiguous(), order.rank,
        None if visible is None else visible.to(torch.uint8).contiguous(), numbers, best, values, order.by_id, chunks,
        documents, k, BLOCK=min(size, tiles.padded(documents)),
        STEP=min(8, tiles.padded(triton.cdiv(chunks, documents), 1)), HIDES=visible is not None, FINAL=blocks == 1,
        num_warps=8,
    )  # fmt: skip
    block = max(size, tiles.padded(2 * k))  # a merge of two blocks at least, so that every pass leaves fewer
    while blocks > 1:
        count, blocks = blocks * k, triton.cdiv(blocks * k, block)
        fewer = torch.empty(questions, blocks * k, dtype=torch.long, device=device)
        _merge[(blocks, questions)](
            numbers, fewer, best, values, order.by_id, count, documents, k, BLOCK=block, FINAL=blocks == 1, num_warps=8
        )
        numbers = fewer
    return best, values
