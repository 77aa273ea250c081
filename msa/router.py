"""Routing: chunk pooling with true tail lengths, folded cosine scores, document scores and top-k (paper eq. 1-3).

Shape legend: Q questions, M own tokens, N documents, C chunks of a document (padded), P tokens of a chunk,
H query heads, G KV heads, D head_dim, W = G * D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def chunk_counts(lengths: Tensor, pool_tokens: int) -> Tensor:
    """Chunks of documents with ``lengths`` tokens; a partial tail is a chunk."""
    return (lengths + pool_tokens - 1) // pool_tokens


def pool_chunks(x: Tensor, lengths: Tensor, pool_tokens: int) -> Tensor:
    """Mean over consecutive chunks of P tokens, a partial tail over its real length, in float32.

    Args:
        x: [N, L, ...], padded on the right; padding is never read.
        lengths: real tokens of each document [N].

    Returns:
        [N, C, ...] float32 with C = ceil(L / P); chunks past a document's end are zero.
    """
    batch, length = x.shape[:2]
    chunks = -(-length // pool_tokens)
    valid = torch.arange(length, device=x.device) < lengths.unsqueeze(1)
    x = x.float() * valid.view(batch, length, *[1] * (x.dim() - 2))
    if chunks * pool_tokens != length:
        x = F.pad(x, [0, 0] * (x.dim() - 2) + [0, chunks * pool_tokens - length])
    sums = x.view(batch, chunks, pool_tokens, *x.shape[2:]).sum(2)
    starts = torch.arange(chunks, device=x.device) * pool_tokens
    counts = (lengths.unsqueeze(1) - starts).clamp(1, pool_tokens)
    return sums / counts.view(batch, chunks, *[1] * (x.dim() - 2))


def normalise_keys(pooled: Tensor) -> Tensor:
    """L2-normalise pooled routing keys [..., G, D] per KV head and join the heads: [..., W]."""
    return F.normalize(pooled.float(), dim=-1).flatten(-2)


def fold_queries(queries: Tensor, kv_heads: int, normalise: bool = True) -> Tensor:
    """Fold query heads [..., H, D] into one vector [..., W].

    The mean over heads of cos(q_h, k_g(h)) is linear in the keys, so the heads of a KV group add up before the
    product: score = <fold, key> (exact; query heads of a group are contiguous). Without ``normalise`` heads are scaled by
    D ** -0.5 instead, as the released engine does where it does not normalise; the keys must be raw then, too.
    """
    heads, head_dim = queries.shape[-2:]
    unit = F.normalize(queries.float(), dim=-1) if normalise else queries.float() * head_dim**-0.5
    grouped = unit.view(*queries.shape[:-2], kv_heads, heads // kv_heads, head_dim).sum(-2)
    return (grouped / heads).flatten(-2)


def chunk_scores(folded: Tensor, routing_mask: Tensor, keys: Tensor) -> Tensor:
    """Best score of any routing token for every chunk.

    Args:
        folded: [Q, M, W]; routing_mask: True at tokens that take part in routing [Q, M]; keys: [chunks, W].

    Returns:
        [Q, chunks] float32; -inf for a question without routing tokens.
    """
    scores = folded.to(keys.dtype) @ keys.T
    return scores.float().masked_fill(~routing_mask.unsqueeze(-1), -torch.inf).amax(1)


def document_scores(scores: Tensor, chunk_mask: Tensor) -> Tensor:
    """Max over a document's chunks: [Q, N * C] with the mask of real chunks [N, C] -> [Q, N]."""
    documents, chunks = chunk_mask.shape
    shaped = scores.view(-1, documents, chunks).masked_fill(~chunk_mask, -torch.inf)
    return shaped.amax(-1)


def top_documents(scores: Tensor, k: int) -> Tensor:
    """Indices [Q, min(k, N)] of the best documents, best first; ties go to the lowest index."""
    k = min(k, scores.shape[-1])
    best, index = scores.topk(k, dim=-1)
    # topk leaves ties in any order and may cut through one: redo the rows where the k-th value is tied
    tied = (scores == best[:, -1:]).sum(-1) + (best > best[:, -1:]).sum(-1) > k
    equal_inside = (best[:, 1:] == best[:, :-1]).any(-1)
    rows = (tied | equal_inside).nonzero().squeeze(-1)
    if rows.numel():
        index[rows] = scores[rows].argsort(dim=-1, descending=True, stable=True)[:, :k]
    return index
