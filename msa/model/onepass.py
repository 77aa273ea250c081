"""The whole method as one forward pass over a flat sequence: the oracle that the staged engine must equal.

Slow and plain on purpose: per sample, dense masks, no folding, no cache. A sequence is labelled token by token: 1..n
documents, 0 question text, -1 response, -2 template, anything lower padding.

Shape legend: N tokens, H query heads, G KV heads, D head_dim, C chunks, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msa.model.decoder import Attention, MSAModel

TEMPLATE, RESPONSE, QUESTION = -2, -1, 0


@dataclass
class OnePass:
    """Outputs of one sample."""

    hidden: list[Tensor]  # inputs of every layer, then the final norm's output
    logits: Tensor
    scores: list[Tensor]  # of a routed layer each: [documents], document 1 first
    reads: Tensor  # True at template, question and response positions [N]


def forward(model: MSAModel, ids: Tensor, labels: Tensor, positions: Tensor) -> OnePass:
    """Run one flat sequence [N] labelled by ``labels`` [N] at ``positions`` [N]."""
    config = model.config
    angles = model.angles(positions)
    is_document = labels > 0
    reads = (labels <= 0) & (labels >= TEMPLATE)
    causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    same = torch.where(is_document.unsqueeze(1), labels.unsqueeze(1) == labels.unsqueeze(0), reads.unsqueeze(0))
    own = causal & same | torch.eye(len(ids), dtype=torch.bool)
    # everything behind the template head may read memory
    in_front = is_document.cumsum(0) == 0 if bool(is_document.any()) else torch.zeros_like(reads)
    reads_memory = reads & ~in_front
    x, hidden, scores = model.model.embed_tokens(ids), [], []
    for index, layer in enumerate(model.model.layers):
        hidden.append(x)
        attention, h = layer.self_attn, layer.input_layernorm(x)
        q, k, v = attention.queries(h, angles), attention.keys(h, angles), attention.values(h)
        mask = own
        if index in config.routed_layers and bool(is_document.any()):
            chunks = _chunks(labels, config.pool_tokens)
            layer_scores = _scores(attention, h, labels, chunks)
            scores.append(layer_scores)
            chosen = set((layer_scores.argsort(descending=True, stable=True)[: config.top_k_documents] + 1).tolist())
            keep = [tokens for document, tokens in chunks if document in chosen]
            k = torch.cat((torch.stack([k[tokens].float().mean(0) for tokens in keep]), k))
            v = torch.cat((torch.stack([v[tokens].float().mean(0) for tokens in keep]), v))
            mask = torch.cat((reads_memory.unsqueeze(1).expand(-1, len(keep)), own), 1)
        x = layer.finish(x, _attend(attention, q, k, v, mask))
    final = model.model.norm(x)
    return OnePass([*hidden, final], model.logits(final), scores, reads)


def _chunks(labels: Tensor, pool: int) -> list[tuple[int, Tensor]]:
    """Token indices of every chunk with its document, by document and then chunk."""
    tokens = {document: (labels == document).nonzero().squeeze(1) for document in range(1, int(labels.max()) + 1)}
    return [(document, part) for document, all_of in tokens.items() for part in all_of.split(pool) if len(part)]


def _scores(attention: Attention, h: Tensor, labels: Tensor, chunks: list[tuple[int, Tensor]]) -> Tensor:
    """Document scores straight from paper eq. 2: mean over heads of cosines, max over tokens, max over chunks.

    Without normalisation each head's score is the scaled product in place of the cosine. The router's form may weigh
    the heads, and reduce tokens otherwise: of each token's best chunk in a document.
    """
    config, form = attention.config, attention.config.form
    if form.fused:
        raise ValueError("one pass gives each layer a list of its own; a fused list needs a pass before it")
    heads, groups, length = config.routing_heads
    queries = attention.router_q_proj[0](h[labels == QUESTION]).unflatten(-1, (heads, length))
    routing = attention.router_k_proj[0](h).unflatten(-1, (groups, length))
    keys = torch.stack([routing[tokens].float().mean(0) for _, tokens in chunks])
    keys = keys.repeat_interleave(heads // groups, 1)
    if config.normalise_routing:
        queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    else:
        queries = queries / length**0.5
    weights = torch.tensor(form.head_weights or (1.0,) * heads)
    chunk_scores = torch.einsum("thd,chd,h->tc", queries, keys, weights / weights.sum())
    owners = torch.tensor([document - 1 for document, _ in chunks])
    best = torch.stack([chunk_scores[:, owners == n].amax(1) for n in range(int(labels.max()))], 1)
    return {"max": best.amax(0), "mean": best.mean(0), "last": best[-1]}[form.query_reduce]


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    group = attention.config.query_heads // attention.config.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    weights = torch.einsum("nhd,mhd->hnm", q, k) / attention.config.head_dim**0.5
    out = torch.einsum("hnm,mhd->nhd", weights.masked_fill(~mask, -torch.inf).softmax(-1), v)
    return attention.o_proj(out.flatten(-2))
