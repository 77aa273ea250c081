"""Oracles: every operation of msa.ops in plain torch, as its definition reads; float64 inputs are computed in float64.

Everything here may be slow and may hold every score; the kernels are held to it. All of it is differentiable where its
inputs are.

Shape legend: Q questions, M tokens of a question, T chunks of a bank, N documents, H query heads, G KV heads, D
head_dim, W = G * D, P tokens of a chunk, B rows, S memory slots of a row, A own tokens of a row, E template tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def query_dtype(keys: Tensor) -> torch.dtype:
    """What folded queries are rounded to: nothing narrower than float32."""
    return torch.float32


def chunk_scores(folded: Tensor, routing_mask: Tensor, keys: Tensor, scales: Tensor | None = None) -> Tensor:
    """Best score of any routing token for every chunk (paper eq. 2, heads folded).

    Args:
        folded: folded routing queries [Q, M, W]; routing_mask: True at tokens that take part in routing [Q, M]; keys:
            [T, W] of any dtype; scales: of quantised keys, [T] or [].

    Returns:
        [Q, T], -inf for a question without routing tokens.
    """
    queries = wide(folded)
    stored = wide(keys) if scales is None else wide(keys) * scales.unsqueeze(-1)
    scores = queries @ stored.to(queries.dtype).T
    scores = scores.masked_fill(~routing_mask.unsqueeze(-1), -torch.inf)
    if not scores.shape[1]:
        return wide(scores.new_full((len(scores), scores.shape[2]), -torch.inf))
    return wide(scores.max(1).values)  # not amax: where two tokens are equal, the first takes the gradient


training_scores = chunk_scores  # in plain torch the same, with its gradient


def document_scores(scores: Tensor, offsets: Tensor) -> Tensor:
    """Maximum over each document's chunks: [Q, T] and first chunks [N + 1] -> [Q, N]; -inf for one without chunks."""
    counts = offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(counts), device=scores.device), counts)
    out = scores.new_full((len(scores), len(counts)), -torch.inf)
    return out.scatter_reduce(1, owner.expand(len(scores), -1), scores, "amax")


@dataclass(frozen=True)
class DocumentOrder:
    """``by_id``: positions in the bank by rising id, int64 [N]; ``rank``: place of each document there, int32 [N]."""

    by_id: Tensor
    rank: Tensor


def document_order(doc_ids: Tensor) -> DocumentOrder:
    """The order of a bank's ids [N], made once a bank: equal scores go to the lowest id, of equal ids to the first."""
    by_id = doc_ids.argsort(stable=True)
    rank = torch.empty(len(doc_ids), dtype=torch.int32, device=doc_ids.device)
    rank[by_id] = torch.arange(len(doc_ids), dtype=torch.int32, device=doc_ids.device)
    return DocumentOrder(by_id, rank)


def top_documents(
    scores: Tensor, offsets: Tensor, doc_ids: Tensor, k: int, visible: Tensor | None = None,
    order: DocumentOrder | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The best documents of each question, best first, equal scores by the lowest document id.

    Args:
        scores: chunk scores [Q, T]; offsets: first chunk of each document [N + 1]; doc_ids: [N]; visible: documents
            that a question may see [Q, N], all by default; order: of ``doc_ids``, computed here by default.

    Returns:
        Positions in the bank [Q, k] int64 and their scores [Q, k] float32; -1 and -inf where there are fewer documents.
        A document that scores -inf or NaN is none.
    """
    found = document_scores(scores.float(), offsets)
    usable = found > -torch.inf if visible is None else (found > -torch.inf) & visible
    found = found.masked_fill(~usable, -torch.inf)
    by_id = (order or document_order(doc_ids)).by_id
    place = by_id[found[:, by_id].argsort(dim=-1, descending=True, stable=True)[:, :k]]
    best = F.pad(found.gather(1, place), (0, k - place.shape[1]), value=-torch.inf)
    place = F.pad(place, (0, k - place.shape[1]), value=-1)
    return place.masked_fill(best == -torch.inf, -1), best


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
    # as weights they take one pass over x, forward and backward
    shares = real.to(x.dtype) / left.clamp(1, pool_tokens).unsqueeze(-1)
    if chunks * pool_tokens != length:
        x = F.pad(x, [0, 0] * (x.dim() - 2) + [0, chunks * pool_tokens - length])
    x = x.view(documents, chunks, pool_tokens, *x.shape[2:])
    return (x * shares.view(*shares.shape, *[1] * (x.dim() - 3))).sum(2)


def seen_pieces(own_valid: Tensor, chunks: Tensor, reads_memory: Tensor | None, tokens: int, fixed: int) -> Tensor:
    """What the queries of :func:`attend_pieces` see of [template; chosen chunks; own tokens]: [B, M, E + S + A]."""
    rows, own = own_valid.shape
    column = torch.arange(own, device=own_valid.device)
    place = column[own - tokens :].unsqueeze(1)
    seen_own = ((column < place) & own_valid.unsqueeze(1)) | (column == place)
    seen_chunk = (chunks >= 0).unsqueeze(1).expand(-1, tokens, -1)
    if reads_memory is not None:
        seen_chunk = seen_chunk & reads_memory.unsqueeze(-1)
    return torch.cat((seen_own.new_ones(rows, tokens, fixed), seen_chunk, seen_own), 2)


def attend_pieces(
    q: Tensor, own_keys: Tensor, own_values: Tensor, own_valid: Tensor, bank_keys: Tensor, bank_values: Tensor,
    chunks: Tensor, *, reads_memory: Tensor | None = None, template_keys: Tensor | None = None,
    template_values: Tensor | None = None, key_scales: Tensor | None = None, value_scales: Tensor | None = None,
) -> Tensor:  # fmt: skip
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

    def front(bank: Tensor, scales: Tensor | None, template: Tensor | None) -> Tensor:
        picked = wide(bank[index]) if len(bank) else wide(bank.new_zeros(*index.shape, *bank.shape[1:]))
        picked = torch.where((chunks >= 0)[..., None, None], picked, 0.0)
        if scales is not None:
            picked = picked * scales.expand(bank.shape[:2])[index].unsqueeze(-1)
        parts = [] if template is None else [wide(template).expand(rows, *template.shape)]
        return torch.cat([*parts, picked], 1).to(wide(q).dtype)

    keys = torch.cat((front(bank_keys, key_scales, template_keys), wide(own_keys)), 1)
    values = torch.cat((front(bank_values, value_scales, template_values), wide(own_values)), 1)
    keys, values = keys.repeat_interleave(group, 2), values.repeat_interleave(group, 2)

    fixed = keys.shape[1] - own - chunks.shape[1]
    seen = seen_pieces(own_valid, chunks, reads_memory, tokens, fixed).unsqueeze(1)
    logits = torch.einsum("bmhd,bshd->bhms", wide(q), keys) / head_dim**0.5
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhms,bshd->bmhd", weights, values).to(q.dtype)
