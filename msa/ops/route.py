"""Routes questions over a bank: a quick first pass over the keys, and exact scores for what it leaves in doubt.

Shape legend: Q questions, M tokens of a question, T chunks of a part, N documents of a part, W = KV heads * head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msa.ops import cpu, dispatch
from msa.ops.order import DocumentOrder
from msa.ops.quantise import RoutingKeys

RESCORED = 2048  # chunks scored in float64 at a time


@dataclass(frozen=True)
class Part:
    """One layer's keys of some documents of a bank.

    ``keys``: the stored keys, which say what a score is; ``offsets``: first chunk of each document [N + 1]; ``doc_ids`` [N];
    ``visible``: documents that each question may see [Q, N], all by default; ``first_pass``: the same keys in fewer bytes,
    read in place of ``keys``, their ``error`` measured against them; ``order``: of ``doc_ids``, which a GPU wants. All lie on
    the device of what is read first; only ``keys`` beside a first pass may lie elsewhere.
    """

    keys: RoutingKeys
    offsets: Tensor
    doc_ids: Tensor
    visible: Tensor | None = None
    first_pass: RoutingKeys | None = None
    order: DocumentOrder | None = None

    @property
    def stored(self) -> RoutingKeys:
        """``keys`` as what scores are measured by: how far they are from what they were made of no longer counts."""
        return replace(self.keys, error=0.0)

    @property
    def quick(self) -> RoutingKeys:
        """What the first pass reads."""
        return self.stored if self.first_pass is None else self.first_pass


@dataclass(frozen=True)
class Routed:
    """The chosen documents of every question, best first, equal scores by the lowest id; -1 and -inf where there are fewer.

    ``part`` and ``place`` [Q, k]: which part, and where in it; ``doc_ids``, ``scores`` [Q, k]; ``rescored``: chunks of all
    questions that were scored a second time, in float64.
    """

    part: Tensor
    place: Tensor
    doc_ids: Tensor
    scores: Tensor
    rescored: int = 0


def route(
    folded: Tensor,
    routing_mask: Tensor,
    parts: list[Part],
    k: int,
    *,
    exact: bool = True,
    implementation: str = "auto",
) -> Routed:
    """The k best documents of every question over all parts (paper eq. 2-3).

    Args:
        folded: folded routing queries [Q, M, W]; routing_mask: tokens that take part [Q, M].
        exact: score again every chunk that the first pass leaves in doubt, from the stored keys and the queries as given, in
            float64 rounded once. Whatever was rounded before, documents and scores are then those of such scores for all
            chunks: they depend on no tile, part or device. Without it scores are the first pass's.
        implementation: see :func:`msa.ops.dispatch.choose`.
    """
    folded, found, rescored = folded.detach(), [], 0
    for part in parts:
        device = part.quick.values.device
        here = folded.to(device), routing_mask.to(device)
        if exact and k and dispatch.settles(part.quick, part.stored, implementation):
            *best, count = cpu.best_documents(*here, part.stored, part.quick, part.offsets, part.doc_ids, k, part.visible)
        else:
            *best, count = _best_documents(part, *here, k, exact, implementation)
        rescored += count
        found.append([tensor.to(folded.device) for tensor in best])
    return _merged(found, folded, k, rescored)


def _top(part: Part, scores: Tensor, k: int, rows: slice, implementation: str) -> tuple[Tensor, Tensor]:
    """The best documents of one part for some questions."""
    seen = None if part.visible is None else part.visible[rows]
    return dispatch.top_documents(
        scores[rows], part.offsets, part.doc_ids, k, seen, order=part.order, implementation=implementation
    )


def _best_documents(
    part: Part, folded: Tensor, routing_mask: Tensor, k: int, exact: bool, implementation: str
) -> tuple[Tensor, Tensor, Tensor, int]:
    """What :func:`msa.ops.cpu.best_documents` does, on any device."""
    scores, error = dispatch.scores_with_error(folded, routing_mask, part.quick, implementation=implementation)
    place, best = _top(part, scores, k, slice(None), implementation)
    count = 0
    if exact and k:
        # k documents reach the k-th score less the error, so one whose chunks, error added, stay below that is out; and a
        # document that is in has its true best chunk above it
        doubtful = scores >= best[:, -1:] - 2 * error.unsqueeze(1)
        for number in range(len(folded)):
            row, chunks = slice(number, number + 1), doubtful[number].nonzero().squeeze(1)
            chunks = _narrowed(part, scores, chunks, folded[row], routing_mask[row], k, row, implementation)
            scores[number] = -torch.inf
            tokens = folded[number][routing_mask[number]].to(part.keys.values.device, torch.float64)
            if len(tokens):
                count += len(chunks)
                for some in chunks.split(RESCORED):
                    true = (tokens @ part.keys.exact(some.to(tokens.device)).T).amax(0).float()
                    scores[number, some] = true.to(scores.device)
        place, best = _top(part, scores, k, slice(None), implementation)
    if not len(part.doc_ids):
        return place, place, best, count
    return place, part.doc_ids[place.clamp(min=0)].masked_fill(place < 0, -1), best, count


def _narrowed(
    part: Part,
    scores: Tensor,
    chunks: Tensor,
    folded: Tensor,
    routing_mask: Tensor,
    k: int,
    row: slice,
    implementation: str,
) -> Tensor:
    """What of one question's doubtful chunks the stored keys in their own precision leave in doubt, at less than float64 costs."""
    beside = part.keys.values.device == scores.device
    if part.first_pass is None or not beside or part.keys.values.dtype in (torch.float32, torch.float64):
        return chunks
    again, error = dispatch.scores_with_error(folded, routing_mask, part.stored, chunks, implementation=implementation)
    scores[row] = -torch.inf
    scores[row, chunks] = again
    _, best = _top(part, scores, k, row, implementation)
    return chunks[again[0] >= best[0, -1] - 2 * error[0]]


def _merged(found: list[list[Tensor]], folded: Tensor, k: int, rescored: int) -> Routed:
    """The k best of the best of every part, on the device of the queries."""
    if len(found) == 1:
        place, ids, scores = found[0]
        return Routed((place < 0).long().neg_(), place, ids, scores, rescored)
    nobody = folded.new_full((len(folded), k), -1, dtype=torch.long)
    parts = [torch.where(place < 0, -1, number) for number, (place, _, _) in enumerate(found)]
    nothing = folded.new_full(nobody.shape, -torch.inf, dtype=torch.float32)
    place, ids, scores = (torch.cat([first, *(best[i] for best in found)], 1) for i, first in enumerate((nobody, nobody, nothing)))
    order = ids.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    return Routed(*(tensor.gather(1, order) for tensor in (torch.cat([nobody, *parts], 1), place, ids, scores)), rescored)
