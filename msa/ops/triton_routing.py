"""Routing in triton: scores, their maximum over tokens and, for training, which token it was, in one kernel.

No score of a single token leaves the chip. One program takes tile after tile; a tile is some chunks against all tokens
of some questions. Keys stand on the first side of the product, so that a handful of tokens still fills the matrix
units.

Shape legend: Q questions, M tokens of a question, T chunks, W = KV heads * head_dim.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from msa.ops import tiles
from msa.ops.keys import LARGEST, round_queries
from msa.ops.triton_product import product


@triton.jit
def _scores(
    keys, queries, mask, query_scales, bulk_keys, bulk_queries, chunk, first_chunk, first_row, chunks, width,
    key_stride, COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, EVEN: tl.constexpr, NATIVE: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):  # fmt: skip
    """Scores [chunks of a tile, COLUMNS] of the queries from row ``first_row`` on; -inf where one takes no part."""
    row = first_row + tl.arange(0, COLUMNS)
    element = tl.arange(0, BLOCK_WIDTH)
    key_rows = keys + chunk.to(tl.int64)[:, None] * key_stride
    query_rows = queries + row.to(tl.int64)[None, :] * width
    whole: tl.constexpr = NATIVE and keys.dtype.element_ty == tl.int8
    sums = tl.zeros([chunk.shape[0], COLUMNS], tl.int32 if whole else tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        at = start + element
        if DESCRIPTOR:
            key = bulk_keys.load([first_chunk, start])
            query = bulk_queries.load([first_row, start]).T
        elif EVEN:
            key = tl.load(key_rows + at[None, :], mask=(chunk < chunks)[:, None], other=0.0)
            query = tl.load(query_rows + at[:, None])
        else:
            key = tl.load(key_rows + at[None, :], mask=(chunk < chunks)[:, None] & (at < width)[None, :], other=0.0)
            query = tl.load(query_rows + at[:, None], mask=(at < width)[:, None], other=0.0)
        # small integers and fp8 are whole in bfloat16, so stored keys lose nothing on the way
        sums = tl.dot(key, query, sums, out_dtype=tl.int32) if whole else product(key, query, sums, query.dtype)
    scores = sums.to(tl.float32)
    if NATIVE:
        scores *= tl.load(query_scales + row)[None, :]
    return tl.where((tl.load(mask + row) != 0)[None, :], scores, -float("inf"))


@triton.jit
def _best(scores, GROUP: tl.constexpr):
    """Maximum over the tokens of each of ``GROUP`` questions: [chunks, GROUP * tokens] -> [chunks, GROUP]."""
    if GROUP == 1:
        return tl.max(scores, 1)[:, None]
    else:
        return tl.max(tl.reshape(scores, [scores.shape[0], GROUP, scores.shape[1] // GROUP]), 2)


@triton.jit
def _routing(
    keys, queries, mask, key_scales, query_scales, out, winners, chunks, questions, tokens, width, key_stride,
    scale_step, BLOCK_CHUNKS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, EVEN: tl.constexpr, SCALED: tl.constexpr, NATIVE: tl.constexpr, WINNERS: tl.constexpr,
    SINGLE: tl.constexpr, DESCRIPTOR: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """``GROUP`` questions of ``BLOCK_TOKENS`` tokens share a tile (``SINGLE``); a longer one takes several passes.

    ``queries`` and ``mask`` are padded to whole tiles: [questions in whole groups, ``tokens`` in whole blocks, width].
    """
    columns: tl.constexpr = GROUP * BLOCK_TOKENS
    groups = tl.cdiv(questions, GROUP)
    tiles = tl.cdiv(chunks, BLOCK_CHUNKS) * groups
    bulk_keys = keys
    bulk_queries = queries
    if DESCRIPTOR:
        bulk_keys = tl.make_tensor_descriptor(keys, [chunks, width], [key_stride, 1], [BLOCK_CHUNKS, BLOCK_WIDTH])
        rows = groups * GROUP * tokens
        bulk_queries = tl.make_tensor_descriptor(queries, [rows, width], [width, 1], [columns, BLOCK_WIDTH])
    # neighbouring programs take the groups of the same chunks, which then come from the cache
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        first_chunk = (tile // groups) * BLOCK_CHUNKS
        chunk = first_chunk + tl.arange(0, BLOCK_CHUNKS)
        first_question = (tile % groups) * GROUP
        if SINGLE:
            scores = _scores(
                keys, queries, mask, query_scales, bulk_keys, bulk_queries, chunk, first_chunk, first_question * tokens,
                chunks, width, key_stride, columns, BLOCK_WIDTH, EVEN, NATIVE, DESCRIPTOR,
            )  # fmt: skip
            if WINNERS:
                top, winner = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
                best = top[:, None]
            else:
                best = _best(scores, GROUP)
        else:
            best = tl.full([BLOCK_CHUNKS, 1], -float("inf"), tl.float32)
            winner = tl.zeros([BLOCK_CHUNKS], tl.int32)
            for first_token in range(0, tokens, BLOCK_TOKENS):
                scores = _scores(
                    keys, queries, mask, query_scales, bulk_keys, bulk_queries, chunk, first_chunk,
                    first_question * tokens + first_token, chunks, width, key_stride, columns, BLOCK_WIDTH, EVEN,
                    NATIVE, DESCRIPTOR,
                )  # fmt: skip
                if WINNERS:
                    top, place = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
                    later = tl.where(top[:, None] > best, (first_token + place)[:, None], winner[:, None])
                    winner = later.reshape(BLOCK_CHUNKS)
                    best = tl.maximum(best, top[:, None])
                else:
                    best = tl.maximum(best, _best(scores, 1))
        if SCALED:
            scale = tl.load(key_scales + chunk.to(tl.int64) * scale_step, mask=chunk < chunks, other=1.0)
            best = best * scale[:, None]
        of = first_question + tl.arange(0, GROUP)
        place = of.to(tl.int64)[None, :] * chunks + chunk[:, None]
        inside = (chunk < chunks)[:, None] & (of < questions)[None, :]
        tl.store(out + place, best, mask=inside)
        if WINNERS:
            tl.store(winners + place, winner[:, None], mask=inside)


def query_dtype(keys: Tensor, native: bool = False) -> torch.dtype:
    """What folded queries are rounded to when such keys are scored."""
    if keys.dtype in LARGEST:
        return keys.dtype if native else torch.bfloat16
    return torch.float32 if keys.dtype == torch.float64 else keys.dtype


def chunk_scores(
    folded: Tensor, routing_mask: Tensor, keys: Tensor, scales: Tensor | None = None, *, native: bool = False
) -> Tensor:
    """See :func:`msa.ops.reference.chunk_scores`; queries are rounded to :func:`query_dtype`, sums are float32.

    Args:
        native: multiply int8 and fp8 keys with queries quantised likewise, at twice the rate of bfloat16, instead of
            widening them on the way. Hopper sums fp8 products in fewer than 24 bits: no error bound is proven for it.
    """
    return launch(folded, routing_mask, keys, scales, query_dtype(keys, native), winners=False)[0]


def launch(
    folded: Tensor, routing_mask: Tensor, keys: Tensor, scales: Tensor | None, dtype: torch.dtype, winners: bool
) -> tuple[Tensor, Tensor | None]:
    """Scores [Q, T] and, if ``winners``, the first best token of each [Q, T] int32; queries multiplied in ``dtype``."""
    (questions, tokens, width), chunks = folded.shape, len(keys)
    out = torch.empty(questions, chunks, device=keys.device)
    won = torch.empty(questions, chunks, dtype=torch.int32, device=keys.device) if winners else None
    if not (questions and tokens and chunks and width):
        return out.fill_(-torch.inf), won
    keys = keys if keys.stride(1) == 1 else keys.contiguous()
    capability = tiles.capability(keys.device)
    chosen = tiles.routing_tile(capability, questions, tokens, keys.element_size(), dtype.itemsize)
    # a tile has the tokens of one question; several short questions share it
    one = min(tiles.padded(tokens), chosen.tokens)
    group = min(chosen.tokens // one, tiles.padded(1 if winners else questions, 1))
    chosen = replace(chosen, tokens=one)
    more = (-tokens % chosen.tokens, -questions % group)
    queries, query_scales = round_queries(F.pad(folded, (0, 0, 0, more[0], 0, more[1])), dtype)
    mask = F.pad(routing_mask.to(torch.uint8), (0, more[0], 0, more[1]))
    descriptor = chosen.descriptor and _bulk(keys) and _bulk(queries.flatten(0, 1))
    if descriptor:
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=keys.device))
    single = tokens <= chosen.tokens
    count = triton.cdiv(chunks, chosen.chunks) * triton.cdiv(questions, group)
    _routing[(min(count, tiles.multiprocessors(keys.device) * chosen.programs),)](
        keys, queries, mask, scales, query_scales, out, won, chunks, questions, tokens + more[0], width,
        keys.stride(0), scales.stride(0) if scales is not None and scales.dim() else 0, BLOCK_CHUNKS=chosen.chunks,
        BLOCK_TOKENS=chosen.tokens, GROUP=group, BLOCK_WIDTH=chosen.width, EVEN=width % chosen.width == 0,
        SCALED=scales is not None, NATIVE=query_scales is not None, WINNERS=winners, SINGLE=single,
        DESCRIPTOR=descriptor, FLATTEN=chosen.flatten and single, num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    return out, won


def _bulk(rows: Tensor) -> bool:
    """Whether the bulk copy engine takes these rows: 16-byte steps."""
    return rows.data_ptr() % 16 == 0 and rows.stride(0) * rows.element_size() % 16 == 0
