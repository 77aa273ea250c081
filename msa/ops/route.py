"""Routes questions over one layer's keys: chunk scores, documents, and what makes a quick first pass exact.

Shape legend: Q questions, M tokens of a question, T chunks, N documents, W = KV heads * head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msa.ops import cpu, dispatch
from msa.ops.order import DocumentOrder
from msa.ops.quantise import RoutingKeys

RESCORED = 2048  # chunks scored in float32 at a time


@dataclass(frozen=True)
class Routed:
    """The chosen documents of every question, best first.

    ``documents``: positions in the bank [Q, k], -1 where there are fewer; ``scores`` [Q, k], -inf there;
    ``rescored``: chunks of all questions that were scored again in float32.
    """

    documents: Tensor
    scores: Tensor
    rescored: int = 0


def route(
    folded: Tensor,
    routing_mask: Tensor,
    keys: RoutingKeys,
    offsets: Tensor,
    doc_ids: Tensor,
    k: int,
    *,
    visible: Tensor | None = None,
    order: DocumentOrder | None = None,
    first_pass: RoutingKeys | None = None,
    exact: bool = True,
    implementation: str = "auto",
) -> Routed:
    """The k best documents of every question (paper eq. 2-3).

    Args:
        folded: folded routing queries [Q, M, W]; routing_mask: tokens that take part [Q, M].
        keys: the stored keys, which say what a score is; offsets: first chunk of each document [N + 1]; doc_ids: [N].
        visible: documents that a question may see [Q, N], all by default; order: of ``doc_ids``, which a GPU wants.
        first_pass: the same keys in fewer bytes, read in place of ``keys``; its ``error`` is measured against them.
        exact: score every chunk again, in float32 against ``keys``, that the first pass leaves in doubt. Whatever was
            rounded before, the result is then that of float32 scores. Without it scores are the first pass's.
        implementation: see :func:`msa.ops.dispatch.choose`.
    """
    quick = first_pass or keys
    scores, error = dispatch.scores_with_error(folded, routing_mask, quick, implementation=implementation)

    def best_of(rows: slice) -> tuple[Tensor, Tensor]:
        seen = None if visible is None else visible[rows]
        return dispatch.top_documents(scores[rows], offsets, doc_ids, k, seen, order=order, implementation=implementation)

    exact = exact and not (quick is keys and _unrounded(keys, implementation))
    between = quick is not keys and not _unrounded(keys, implementation)
    if exact and dispatch.settles(keys, implementation):
        return Routed(*cpu.settle(scores, error, folded, routing_mask, keys, offsets, doc_ids, k, visible, between))
    documents, best = best_of(slice(None))
    if not exact or not k:
        return Routed(documents, best)
    # k documents reach the k-th score less the error, so one whose chunks, error added, stay below that is out; and a document
    # that is in has its true best chunk above it
    doubtful = scores >= best[:, -1:] - 2 * error.unsqueeze(1)
    rescored = 0
    for number in range(len(folded)):
        chunks, row = doubtful[number].nonzero().squeeze(1), slice(number, number + 1)
        scores[number] = -torch.inf
        if between:
            # the stored keys in their own precision leave fewer in doubt, at less than what float32 costs
            again, error = dispatch.scores_with_error(
                folded[row], routing_mask[row], keys, chunks, implementation=implementation
            )
            scores[number, chunks] = again[0]
            _, best = best_of(row)
            kept = again[0] >= best[0, -1] - 2 * error[0]
            scores[number] = -torch.inf
            chunks = chunks[kept]
        tokens = folded[number][routing_mask[number]].float()
        if len(tokens):
            rescored += len(chunks)
            for part in chunks.split(RESCORED):
                scores[number, part] = (tokens @ keys.rows(part).T).amax(0)
    return Routed(*best_of(slice(None)), rescored)


def _unrounded(keys: RoutingKeys, implementation: str) -> bool:
    return dispatch.query_dtype(keys.values, implementation) in (torch.float32, torch.float64)
