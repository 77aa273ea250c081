"""Routing scores with gradient in triton: the forward pass keeps which token won, the backward pass reads nothing else.

A maximum passes its gradient to one token, the first where several are equal, so a chunk's gradient is one row of the
folded queries, and a token's gradient the sum of the keys that it won. Neither pass ever holds a score of a token, and
sums run in a fixed order: results do not change from run to run.

Shape legend: Q questions, M tokens of a question, T chunks, W = KV heads * head_dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa.ops import tiles, triton_routing
from msa.ops.triton_product import product

TOKENS, CHUNKS, WIDTH = 32, 32, 64  # of one tile of the backward kernels


@triton.jit
def _query_grad(
    grad, winners, keys, out, chunks, tokens, width, TOKENS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr
):
    """Gradient of some tokens of one question: the keys of the chunks that each won, by their gradients."""
    question = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros([TOKENS, WIDTH], tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        share = tl.load(grad + question * chunks + chunk, mask=chunk < chunks, other=0.0)
        winner = tl.load(winners + question * chunks + chunk, mask=chunk < chunks, other=-1)
        inside = (chunk < chunks)[:, None] & (at < width)[None, :]
        key = tl.load(keys + chunk.to(tl.int64)[:, None] * width + at[None, :], mask=inside, other=0.0)
        shares = tl.where(winner[None, :] == token[:, None], share[None, :], 0.0)
        total = product(shares, key, total, key.dtype)
    inside = (token < tokens)[:, None] & (at < width)[None, :]
    tl.store(out + (question * tokens + token.to(tl.int64))[:, None] * width + at[None, :], total, mask=inside)


@triton.jit
def _key_grad(grad, winners, folded, out, chunks, questions, tokens, width, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """Gradient of some chunks: of every question the token that won, by the question's gradient."""
    chunk = tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros([CHUNKS, WIDTH], tl.float32)
    place = chunk.to(tl.int64)
    for question in range(0, questions):
        share = tl.load(grad + place, mask=chunk < chunks, other=0.0)
        row = question * tokens + tl.load(winners + place, mask=chunk < chunks, other=0).to(tl.int64)
        place += chunks
        # most chunks are not their document's best and have no gradient: their rows are not read
        inside = (share != 0)[:, None] & (at < width)[None, :]
        token = tl.load(folded + row[:, None] * width + at[None, :], mask=inside, other=0.0)
        total += share[:, None] * token.to(tl.float32)
    inside = (chunk < chunks)[:, None] & (at < width)[None, :]
    tl.store(out + chunk.to(tl.int64)[:, None] * width + at[None, :], total, mask=inside)


class _TrainingScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, folded: Tensor, routing_mask: Tensor, keys: Tensor) -> Tensor:
        scores, winners = triton_routing.launch(folded, routing_mask, keys, None, keys.dtype, winners=True)
        ctx.save_for_backward(folded, keys, winners, scores > -torch.inf)
        return scores

    @staticmethod
    def backward(ctx, grad: Tensor):
        folded, keys, winners, scored = ctx.saved_tensors
        (questions, tokens, width), chunks = folded.shape, len(keys)
        grad = grad.masked_fill(~scored, 0.0).contiguous()
        folded_grad, keys_grad = torch.zeros_like(folded), torch.zeros_like(keys)
        if not (questions and tokens and chunks and width):
            return folded_grad, None, keys_grad
        folded, keys = folded.contiguous(), keys.contiguous()
        block = min(WIDTH, tiles.padded(width))
        _query_grad[(triton.cdiv(tokens, TOKENS), triton.cdiv(width, block), questions)](
            grad, winners, keys, folded_grad, chunks, tokens, width, TOKENS=TOKENS, CHUNKS=CHUNKS, WIDTH=block
        )
        _key_grad[(triton.cdiv(chunks, CHUNKS), triton.cdiv(width, block))](
            grad, winners, folded, keys_grad, chunks, questions, tokens, width, CHUNKS=CHUNKS, WIDTH=block
        )
        return folded_grad, None, keys_grad


def training_scores(folded: Tensor, routing_mask: Tensor, keys: Tensor) -> Tensor:
    """See :func:`msa.ops.dispatch.training_scores`; products are taken in the dtype of ``keys``, sums in float32."""
    return _TrainingScores.apply(folded, routing_mask, keys)
