"""Attention over [template head; chosen pooled chunks; own tokens] in triton, each piece read where it lies.

Chosen chunks are gathered from the bank by index, own keys and values straight from their cache: nothing is joined or
copied. One program takes some query rows of one KV head (a row is a token and one of its query heads) and a share of
the keys; with one token a row there are several shares, which a second kernel joins.

Shape legend: B rows of the batch, M new tokens, H query heads, G KV heads, D head_dim, S memory slots, A own tokens, E
template tokens, T chunks of the bank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa.ops import tiles
from msa.ops.triton_product import product

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _take(q, key, value, seen, scale, total, top, weight, dtype: tl.constexpr):
    """One block of keys [n, D] and values into the running softmax of rows [r]: sums [r, D], maxima and weights [r]."""
    logits = product(q, tl.trans(key), tl.zeros([q.shape[0], key.shape[0]], tl.float32), dtype)
    logits = tl.where(seen, logits * scale, -float("inf"))
    higher = tl.maximum(top, tl.max(logits, 1))
    base = tl.where(higher == -float("inf"), 0.0, higher)
    share = tl.exp2(logits - base[:, None])
    fade = tl.exp2(top - base)
    total = product(share, value, total * fade[:, None], dtype)
    return total, higher, weight * fade + tl.sum(share, 1)


@triton.jit
def _scaled(x, scales, row, inside, step, head, dtype: tl.constexpr):
    """Stored numbers [n, D] times the scale of their row and KV head."""
    return (x.to(tl.float32) * tl.load(scales + row * step + head, mask=inside, other=0.0)[:, None]).to(dtype)


@triton.jit(do_not_specialize=["tokens", "own", "slots", "fixed"])
def _attend(
    q, own_keys, own_values, own_valid, bank_keys, bank_values, chunks, reads, template_keys, template_values,
    key_scales, value_scales, out, part_totals, part_tops, part_weights, tokens, own, slots, fixed, softmax_scale,
    own_row_stride, own_token_stride, bank_stride, scale_step, GROUPS: tl.constexpr, SHARED: tl.constexpr,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
    SCALED: tl.constexpr, READS: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """``SHARED`` query heads share a KV head; the blocks of all keys are dealt out to ``SPLITS`` programs in ranges."""
    batch = (tl.program_id(1) // GROUPS).to(tl.int64)
    head = tl.program_id(1) % GROUPS
    split = tl.program_id(2)
    dtype: tl.constexpr = q.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = row // SHARED
    dim = tl.arange(0, BLOCK_DIM)
    real = row < tokens * SHARED
    in_dim = (dim < DIM)[None, :]
    q_at = ((batch * tokens + token) * GROUPS + head) * SHARED + row % SHARED
    query = tl.load(q + q_at[:, None] * DIM + dim[None, :], mask=real[:, None] & in_dim, other=0.0)
    place = own - tokens + token  # of a query among the own tokens
    total = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)

    fixed_blocks = tl.cdiv(fixed, KEYS)
    slot_blocks = tl.cdiv(slots, KEYS)
    # own tokens behind the last query of this program are seen by none of its rows
    last = tl.minimum(own, own - tokens + tl.minimum((tl.program_id(0) * ROWS + ROWS - 1) // SHARED + 1, tokens))
    share = tl.cdiv(fixed_blocks + slot_blocks + tl.cdiv(last, KEYS), SPLITS)
    low, high = split * share, (split + 1) * share

    if FIXED:
        for block in range(tl.minimum(low, fixed_blocks), tl.minimum(high, fixed_blocks)):
            at = block * KEYS + tl.arange(0, KEYS)
            inside = (at < fixed)[:, None] & in_dim
            place_of = (at.to(tl.int64) * GROUPS + head)[:, None] * DIM + dim[None, :]
            key = tl.load(template_keys + place_of, mask=inside, other=0.0)
            value = tl.load(template_values + place_of, mask=inside, other=0.0)
            seen = real[:, None] & (at < fixed)[None, :]
            total, top, weight = _take(query, key, value, seen, softmax_scale * LOG2E, total, top, weight, dtype)

    reader = real
    if READS:
        reader = real & (tl.load(reads + batch * tokens + token, mask=real, other=0) != 0)
    low -= fixed_blocks
    high -= fixed_blocks
    for block in range(tl.minimum(tl.maximum(low, 0), slot_blocks), tl.minimum(tl.maximum(high, 0), slot_blocks)):
        at = block * KEYS + tl.arange(0, KEYS)
        chunk = tl.load(chunks + batch * slots + at, mask=at < slots, other=-1).to(tl.int64)
        there = chunk >= 0
        place_of = (chunk * bank_stride + head * DIM)[:, None] + dim[None, :]
        key = tl.load(bank_keys + place_of, mask=there[:, None] & in_dim, other=0.0)
        value = tl.load(bank_values + place_of, mask=there[:, None] & in_dim, other=0.0)
        if SCALED:
            key = _scaled(key, key_scales, chunk, there, scale_step, head * (scale_step > 0), dtype)
            value = _scaled(value, value_scales, chunk, there, scale_step, head * (scale_step > 0), dtype)
        seen = reader[:, None] & there[None, :]
        total, top, weight = _take(query, key, value, seen, softmax_scale * LOG2E, total, top, weight, dtype)

    low -= slot_blocks
    high -= slot_blocks
    own_blocks = tl.cdiv(last, KEYS)
    for block in range(tl.minimum(tl.maximum(low, 0), own_blocks), tl.minimum(tl.maximum(high, 0), own_blocks)):
        at = block * KEYS + tl.arange(0, KEYS)
        inside = (at < own)[:, None] & in_dim
        place_of = batch * own_row_stride + at.to(tl.int64)[:, None] * own_token_stride + head * DIM + dim[None, :]
        key = tl.load(own_keys + place_of, mask=inside, other=0.0)
        value = tl.load(own_values + place_of, mask=inside, other=0.0)
        valid = tl.load(own_valid + batch * own + at, mask=at < own, other=0) != 0
        before = (at[None, :] < place[:, None]) & valid[None, :]
        seen = real[:, None] & (before | (at[None, :] == place[:, None]))
        total, top, weight = _take(query, key, value, seen, softmax_scale * LOG2E, total, top, weight, dtype)

    if SPLITS == 1:
        mean = total / tl.where(weight > 0, weight, 1.0)[:, None]
        tl.store(out + q_at[:, None] * DIM + dim[None, :], mean, mask=real[:, None] & in_dim)
    else:
        at = q_at * SPLITS + split
        tl.store(part_totals + at[:, None] * DIM + dim[None, :], total, mask=real[:, None] & in_dim)
        tl.store(part_tops + at, top, mask=real)
        tl.store(part_weights + at, weight, mask=real)


@triton.jit
def _join(
    part_totals, part_tops, part_weights, out, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """One query row's output from its shares."""
    row = tl.program_id(0).to(tl.int64)
    split, dim = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_DIM)
    tops = tl.load(part_tops + row * SPLITS + split, mask=split < SPLITS, other=-float("inf"))
    fade = tl.exp2(tops - tl.max(tops, 0))  # every row sees itself, so the greatest is finite
    weight = tl.sum(fade * tl.load(part_weights + row * SPLITS + split, mask=split < SPLITS, other=0.0), 0)
    inside = (split < SPLITS)[:, None] & (dim < DIM)[None, :]
    totals = tl.load(part_totals + (row * SPLITS + split)[:, None] * DIM + dim[None, :], mask=inside, other=0.0)
    tl.store(out + row * DIM + dim, tl.sum(totals * fade[:, None], 0) / weight, mask=dim < DIM)


def attend_pieces(
    q: Tensor, own_keys: Tensor, own_values: Tensor, own_valid: Tensor, bank_keys: Tensor, bank_values: Tensor,
    chunks: Tensor, *, reads_memory: Tensor | None = None, template_keys: Tensor | None = None,
    template_values: Tensor | None = None, key_scales: Tensor | None = None, value_scales: Tensor | None = None,
    splits: int | None = None,
) -> Tensor:  # fmt: skip
    """See :func:`msa.ops.reference.attend_pieces`; products in the dtype of ``q``, sums in float32.

    ``splits``: shares of the keys, by default as many as keep the device busy.
    """
    rows, tokens, heads, head_dim = q.shape
    own, groups = own_keys.shape[1], own_keys.shape[2]
    q, out = q.contiguous(), torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not q.numel():
        return out
    own_keys, own_values = _alike(own_keys, own_values)
    bank_keys, bank_values = _alike(bank_keys, bank_values)
    shared, slots = heads // groups, chunks.shape[1]
    fixed = 0 if template_keys is None else len(template_keys)
    tile = tiles.attention_tile(tiles.capability(q.device), tokens * shared, head_dim, key_scales is not None)
    blocks = triton.cdiv(tokens * shared, tile.rows)
    if splits is None:
        most = sum(triton.cdiv(keys, tile.keys) for keys in (fixed, slots, own))
        wanted = min(most, 2 * tiles.multiprocessors(q.device) // (blocks * rows * groups))
        splits = 1 << max(0, wanted.bit_length() - 1)  # powers of two: each number is a kernel of its own
    parts = (None, None, None)
    if splits > 1:
        sizes = ((rows * tokens * heads, splits, head_dim), *((rows * tokens * heads, splits),) * 2)
        parts = tuple(torch.empty(size, device=q.device) for size in sizes)
    scaled = key_scales is not None
    if scaled != (value_scales is not None):
        raise ValueError("a bank's keys and values are both scaled or both not")
    spread = scaled and key_scales.dim() > 0
    block_dim = tiles.padded(head_dim)
    _attend[(blocks, rows * groups, splits)](
        q, own_keys, own_values, own_valid.to(torch.uint8).contiguous(), bank_keys, bank_values, chunks.contiguous(),
        None if reads_memory is None else reads_memory.to(torch.uint8).contiguous(),
        None if template_keys is None else template_keys.contiguous(),
        None if template_keys is None else template_values.contiguous(), key_scales.contiguous() if scaled else None,
        value_scales.contiguous() if scaled else None, out, *parts, tokens, own, slots if len(bank_keys) else 0,
        fixed, head_dim**-0.5, own_keys.stride(0), own_keys.stride(1), bank_keys.stride(0), groups if spread else 0,
        GROUPS=groups, SHARED=shared, DIM=head_dim, BLOCK_DIM=block_dim, ROWS=tile.rows, KEYS=tile.keys,
        SPLITS=splits, SCALED=scaled, READS=reads_memory is not None, FIXED=fixed > 0, num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        _join[(rows * tokens * heads,)](
            *parts, out, DIM=head_dim, BLOCK_DIM=block_dim, SPLITS=splits, BLOCK_SPLITS=tiles.padded(splits, 1)
        )
    return out


def _alike(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """As they lie if both lie alike and heads and their elements are next to one another, else copied.

    A part of a longer cache qualifies, and so do the two halves of a bank that holds keys and values chunk by chunk.
    """
    if keys.stride() == values.stride() and keys.stride(-1) == 1 and keys.stride(-2) == keys.shape[-1]:
        return keys, values
    return keys.contiguous(), values.contiguous()
