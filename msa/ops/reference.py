"""Oracles: every operation of msa.ops in plain torch, as its definition reads; float64 inputs are computed in float64.

Everything here may be slow and may hold every score; the kernels are held to it. All of it is differentiable where its
inputs are.

Shape legend: Q questions, M tokens of a question, T chunks of a bank, N documents, H query heads, G KV heads,
D head_dim, W = G * D, P tokens of a chunk, B rows, S memory slots of a row, A own tokens of a row, E template tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def stored_keys(keys: Tensor, scales: Tensor | None) -> Tensor:
    """What stored keys [T, W] stand for: row by row times their scale [T] or, fixed for all rows, []."""
    return wide(keys) if scales is None else wide(keys) * scales.unsqueeze(-1)


def chunk_scores(folded: Tensor, routing_mask: Tensor, keys: Tensor, scales: Tensor | None = None) -> Tensor:
    """Best score of any routing token for every chunk (paper eq. 2, heads folded).

    Args:
        folded: folded routing queries [Q, M, W]; routing_mask: True at tokens that take part in routing [Q, M];
            keys: [T, W] of any dtype; scales: of quantised keys, [T] or [].

    Returns:
        [Q, T], -inf for a question without routing tokens.
    """
    queries = wide(folded)
    scores = queries @ stored_keys(keys, scales).to(queries.dtype).T
    scores = scores.masked_fill(~routing_mask.unsqueeze(-1), -torch.inf)
    if not scores.shape[1]:
        return wide(scores.new_full((len(scores), scores.shape[2]), -torch.inf))
    return wide(scores.max(1).values)  # not amax: where two tokens are equal, the first takes the gradient


def eager_document_scores(queries: Tensor, routing_mask: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
    """Document scores in the per-head form in which the method is written and was released: nothing folded.

    Every query head is compared with its KV head's keys, the heads' cosines [Q, H, M, T] are averaged, tokens and
    chunks reduced by maximum.

    Args:
        queries: routing queries before normalisation [Q, M, H, D]; keys: pooled routing keys [T, G, D]; offsets: [N + 1].

    Returns:
        [Q, N].
    """
    heads, groups = queries.shape[2], keys.shape[1]
    keys = F.normalize(keys, dim=-1).repeat_interleave(heads // groups, 1)
    queries = F.normalize(queries, dim=-1)
    cosines = torch.matmul(queries.transpose(1, 2), keys.permute(1, 2, 0))
    scores = cosines.mean(1).masked_fill(~routing_mask.unsqueeze(-1), -torch.inf).amax(1)
    return document_scores(scores, offsets)


def document_scores(scores: Tensor, offsets: Tensor) -> Tensor:
    """Maximum over each document's chunks: [Q, T] and first chunks [N + 1] -> [Q, N]; -inf for one without chunks."""
    counts = offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(counts), device=scores.device), counts)
    out = scores.new_full((len(scores), len(counts)), -torch.inf)
    return out.scatter_reduce(1, owner.expand(len(scores), -1), scores, "amax")


def top_documents(
    scores: Tensor, offsets: Tensor, doc_ids: Tensor, k: int, visible: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best documents of each question, best first, equal scores by the lowest document id.

    Args:
        scores: chunk scores [Q, T]; offsets: first chunk of each document [N + 1]; doc_ids: [N]; visible: documents
            that a question may see [Q, N], all by default.

    Returns:
        Positions in the bank [Q, k] int64 and their scores [Q, k] float32; -1 and -inf where there are fewer documents.
        A document that scores -inf or NaN is none.
    """
    found = document_scores(scores.float(), offsets)
    usable = found > -torch.inf if visible is None else (found > -torch.inf) & visible
    found = found.masked_fill(~usable, -torch.inf)
    by_id = doc_ids.argsort(stable=True)
    order = by_id[found[:, by_id].argsort(dim=-1, descending=True, stable=True)[:, :k]]
    best = found.gather(1, order)
    best = F.pad(best, (0, k - best.shape[1]), value=-torch.inf)
    order = F.pad(order, (0, k - order.shape[1]), value=-1)
    return order.masked_fill(best == -torch.inf, -1), best


def pool_chunks(x: Tensor, lengths: Tensor, pool_tokens: int) -> Tensor:
    """Mean over consecutive chunks of P tokens, a partial tail over its real length.

    Args:
        x: [N, L, ...], padded on the right; padding counts nothing, but must be finite here (kernels never read it).
        lengths: real tokens of each document [N].

    Returns:
        [N, ceil(L / P), ...] float32 (float64 of float64); chunks past a document's end are zero.
    """
    documents, length = x.shape[:2]
    chunks = -(-length // pool_tokens)
    left = lengths.unsqueeze(1) - torch.arange(chunks, device=x.device) * pool_tokens
    real = torch.arange(pool_tokens, device=x.device) < left.unsqueeze(-1)
    x = wide(x)
    shares = real.to(x.dtype) / left.clamp(1, pool_tokens).unsqueeze(-1)  # weights: one pass over x, forward and backward
    if chunks * pool_tokens != length:
        x = F.pad(x, [0, 0] * (x.dim() - 2) + [0, chunks * pool_tokens - length])
    x = x.view(documents, chunks, pool_tokens, *x.shape[2:])
    return (x * shares.view(*shares.shape, *[1] * (x.dim() - 3))).sum(2)


def attend_pieces(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    own_valid: Tensor,
    bank_keys: Tensor,
    bank_values: Tensor,
    chunks: Tensor,
    *,
    reads_memory: Tensor | None = None,
    template_keys: Tensor | None = None,
    template_values: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Grouped-query attention over [template head; chosen pooled chunks; own tokens], causal among own tokens.

    The M queries are the last M of the A own tokens: M = A at prefill, 1 when decoding. A query sees itself even where
    ``own_valid`` is False, so that a padding row stays finite. Bank rows that nobody chose and what lies behind the own
    tokens in their storage are never read.

    Args:
        q: [B, M, H, D]; own_keys, own_values: [B, A, G, D]; own_valid: own tokens that others may see [B, A].
        bank_keys, bank_values: [T, G, D], as stored; chunks: rows of the bank [B, S], -1 for none.
        reads_memory: queries that see the chosen chunks [B, M], all by default.
        template_keys, template_values: [E, G, D], seen by every query of every row.
        key_scales, value_scales: of quantised banks, [T, G] or [].

    Returns:
        [B, M, H, D] in the dtype of ``q``.
    """
    rows, tokens, heads, head_dim = q.shape
    own, group = own_keys.shape[1], heads // own_keys.shape[2]
    index = chunks.clamp(min=0)
    front = []
    for bank, scales, template in ((bank_keys, key_scales, template_keys), (bank_values, value_scales, template_values)):
        picked = wide(bank[index]) if len(bank) else wide(bank.new_zeros(*index.shape, *bank.shape[1:]))
        picked = torch.where((chunks >= 0)[..., None, None], picked, 0.0)
        if scales is not None:
            picked = picked * scales.expand(bank.shape[:2])[index].unsqueeze(-1)
        parts = [] if template is None else [wide(template).expand(rows, *template.shape)]
        front.append(torch.cat([*parts, picked], 1))
    keys = torch.cat((front[0].to(wide(q).dtype), wide(own_keys)), 1).repeat_interleave(group, 2)
    values = torch.cat((front[1].to(wide(q).dtype), wide(own_values)), 1).repeat_interleave(group, 2)

    place = torch.arange(own - tokens, own, device=q.device).unsqueeze(1)
    column = torch.arange(own, device=q.device)
    seen_own = ((column < place) & own_valid.unsqueeze(1)) | (column == place)
    seen_chunk = (chunks >= 0).unsqueeze(1).expand(-1, tokens, -1)
    if reads_memory is not None:
        seen_chunk = seen_chunk & reads_memory.unsqueeze(-1)
    fixed = keys.shape[1] - own - chunks.shape[1]
    seen = torch.cat((seen_own.new_ones(rows, tokens, fixed), seen_chunk, seen_own), 2).unsqueeze(1)

    logits = torch.einsum("bmhd,bshd->bhms", wide(q), keys) / head_dim**0.5
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhms,bshd->bmhd", weights, values).to(q.dtype)
