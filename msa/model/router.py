"""Routing: what queries and keys are, document scores and top-k in training (paper eq. 1-3); msa.ops pools and scores.

Shape legend: Q questions, M own tokens, N documents, C chunks of a document (padded), P tokens of a chunk, H query
heads, G KV heads, D head_dim, W = G * D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def chunk_counts(lengths: Tensor, pool_tokens: int) -> Tensor:
    """Chunks of documents with ``lengths`` tokens; a partial tail is a chunk."""
    return (lengths + pool_tokens - 1) // pool_tokens


def normalise_keys(pooled: Tensor) -> Tensor:
    """L2-normalise pooled routing keys [..., G, D] per KV head and join the heads: [..., W]."""
    return F.normalize(pooled.float(), dim=-1).flatten(-2)


def fold_queries(queries: Tensor, kv_heads: int, normalise: bool = True, weights: Sequence[float] = ()) -> Tensor:
    """Fold query heads [..., H, D] into one vector [..., W].

    The mean over heads of cos(q_h, k_g(h)) is linear in the keys, so the heads of a KV group add up before the
    product: score = <fold, key> (exact; query heads of a group are contiguous). Without ``normalise`` heads are scaled
    by D ** -0.5 instead, as the released engine does where it does not normalise; the keys must be raw then, too.
    ``weights`` make it a weighted mean of the heads.
    """
    heads, head_dim = queries.shape[-2:]
    unit = F.normalize(queries.float(), dim=-1) if normalise else queries.float() * head_dim**-0.5
    if weights:
        each = torch.tensor(weights, dtype=torch.float32, device=unit.device)
        unit = unit * (each * (heads / each.sum())).unsqueeze(-1)
    grouped = unit.view(*queries.shape[:-2], kv_heads, heads // kv_heads, head_dim).sum(-2)
    return (grouped / heads).flatten(-2)


def last_only(routing_mask: Tensor) -> Tensor:
    """Of the tokens that take part in routing [Q, M] the last of each question."""
    behind = routing_mask.flip(-1).cumsum(-1).flip(-1)
    return routing_mask & (behind == 1)


def mean_over_tokens(scores: Tensor, routing_mask: Tensor) -> Tensor:
    """Mean over the tokens that take part in routing, -inf where none does: [Q, M, N], mask [Q, M] -> [Q, N]."""
    count = routing_mask.sum(-1, keepdim=True)
    total = scores.masked_fill(~routing_mask.unsqueeze(-1), 0.0).sum(1)
    return (total / count.clamp(min=1)).masked_fill(count == 0, -torch.inf)


def document_scores(scores: Tensor, chunk_mask: Tensor) -> Tensor:
    """Max over a document's chunks: [Q, N * C] with the mask of real chunks [N, C] -> [Q, N]."""
    return scores.view(-1, *chunk_mask.shape).masked_fill(~chunk_mask, -torch.inf).amax(-1)


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
