"""Chunk pooling in triton, forward and backward, with tails averaged over their real length.

Shape legend: N documents, L padded tokens of a document, F features of a token, P tokens of a chunk, C = ceil(L / P)
chunks.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa.ops import tiles

FEATURES = 128  # of one program


@triton.jit
def _pool(x, lengths, out, length, features, chunks, P: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Mean of the real tokens of one chunk, some features; padding is not read."""
    document, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = tl.minimum(tl.maximum(tl.load(lengths + document) - chunk * P, 0), P).to(tl.int32)
    base = (document.to(tl.int64) * length + chunk * P) * features
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, real, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < real)[:, None] & (feature < features)[None, :]
        some = tl.load(x + base + row[:, None] * features + feature[None, :], mask=inside, other=0.0)
        total += tl.sum(some.to(tl.float32), 0)
    mean = total / tl.maximum(real, 1)
    tl.store(out + tl.program_id(0).to(tl.int64) * features + feature, mean, mask=feature < features)


@triton.jit
def _unpool(grad, lengths, out, length, features, chunks, P: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of every token of one chunk, some features: the chunk's by its real length, zero at padding."""
    document, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = tl.minimum(tl.maximum(tl.load(lengths + document) - chunk * P, 0), P).to(tl.int32)
    place = tl.program_id(0).to(tl.int64) * features + feature
    share = tl.load(grad + place, mask=feature < features, other=0.0).to(tl.float32) / tl.maximum(real, 1)
    base = (document.to(tl.int64) * length + chunk * P) * features
    for first in range(0, P, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < P)[:, None] & (chunk * P + row < length)[:, None] & (feature < features)[None, :]
        value = tl.where((row < real)[:, None], share[None, :], 0.0)
        tl.store(out + base + row[:, None] * features + feature[None, :], value, mask=inside)


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, lengths: Tensor, pool_tokens: int) -> Tensor:
        documents, length = x.shape[:2]
        lengths = lengths.to(x.device).contiguous()
        out = torch.empty(documents, -(-length // pool_tokens), *x.shape[2:], device=x.device)
        _launch(_pool, x.contiguous(), lengths, out, x, out, pool_tokens)
        ctx.save_for_backward(lengths)
        ctx.pool_tokens, ctx.shape, ctx.dtype = pool_tokens, x.shape, x.dtype
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        (lengths,) = ctx.saved_tensors
        out = torch.empty(ctx.shape, dtype=ctx.dtype, device=grad.device)
        _launch(_unpool, grad.contiguous(), lengths, out, out, grad, ctx.pool_tokens)
        return out, None, None


def _launch(kernel, given: Tensor, lengths: Tensor, out: Tensor, tokens: Tensor, means: Tensor, pool: int) -> None:
    """One program for each chunk and block of features of ``tokens`` [N, L, ...] and ``means`` [N, C, ...]."""
    (documents, length), chunks, features = tokens.shape[:2], means.shape[1], math.prod(tokens.shape[2:])
    if out.numel():
        kernel[(documents * chunks, triton.cdiv(features, FEATURES))](
            given, lengths, out, length, features, chunks, P=pool, ROWS=min(16, tiles.padded(pool, 1)),
            BLOCK=min(FEATURES, tiles.padded(features)),
        )  # fmt: skip


def pool_chunks(x: Tensor, lengths: Tensor, pool_tokens: int) -> Tensor:
    """See :func:`msa.ops.reference.pool_chunks`; sums are float32."""
    return _Pooling.apply(x, lengths, pool_tokens)
