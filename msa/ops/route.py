"""Routes questions over a bank: a quick first pass over the keys, and exact scores for what it leaves in doubt.

Shape legend: Q questions, M tokens of a question, T chunks of a part, N documents of a part, W = KV heads * head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    def quick(self) -> RoutingKeys:
        """What the first pass reads."""
        return self.keys if self.first_pass is None else self.first_pass


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
    folded, scored, found = folded.detach(), [], []
    for part in parts:
        here = folded.to(part.quick.values.device), routing_mask.to(part.quick.values.device)
        scored.append(dispatch.scores_with_error(*here, part.quick, implementation=implementation))
        found.append(_top(part, scored[-1][0], k, slice(None), implementation))
    if not exact or not k or not parts:
        return _merged(folded, parts, found, k)
    # k documents reach the k-th score less the error, so one whose chunks, error added, stay below that is out; and a document
    # that is in has its true best chunk above it
    last = torch.cat([best.to(folded.device) for _, best in found], 1).topk(k, dim=1).values[:, -1]
    floor = last - 2 * torch.stack([error.to(folded.device) for _, error in scored]).amax(0)
    rescored, found = 0, []
    for part, (scores, _) in zip(parts, scored, strict=True):
        # the stored keys in their own precision leave fewer in doubt, at less than what float64 costs
        beside = part.keys.values.device == scores.device
        between = beside and part.first_pass is not None and part.keys.values.dtype not in (torch.float32, torch.float64)
        given = floor.to(scores.device), folded.to(scores.device), routing_mask.to(scores.device)
        if beside and dispatch.settles(part.keys, implementation):
            *chosen, count = cpu.settle(scores, *given, part.keys, part.offsets, part.doc_ids, k, part.visible, between)
        else:
            *chosen, count = _settle(part, scores, *given, k, between, implementation)
        rescored += count
        found.append(tuple(chosen))
    return _merged(folded, parts, found, k, rescored)


def _top(part: Part, scores: Tensor, k: int, rows: slice, implementation: str) -> tuple[Tensor, Tensor]:
    """The best documents of one part for some questions."""
    seen = None if part.visible is None else part.visible[rows]
    return dispatch.top_documents(
        scores[rows], part.offsets, part.doc_ids, k, seen, order=part.order, implementation=implementation
    )


def _settle(
    part: Part,
    scores: Tensor,
    floor: Tensor,
    folded: Tensor,
    routing_mask: Tensor,
    k: int,
    between: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, int]:
    """What :func:`msa.ops.cpu.settle` does, on any device."""
    doubtful, count = scores >= floor.unsqueeze(1), 0
    for number in range(len(folded)):
        row, chunks = slice(number, number + 1), doubtful[number].nonzero().squeeze(1)
        scores[number] = -torch.inf
        if between:
            again, error = dispatch.scores_with_error(
                folded[row], routing_mask[row], part.keys, chunks, implementation=implementation
            )
            scores[number, chunks] = again[0]
            _, best = _top(part, scores, k, row, implementation)
            kept = again[0] >= best[0, -1] - 2 * error[0]
            scores[number] = -torch.inf
            chunks = chunks[kept]
        tokens = folded[number][routing_mask[number]].to(part.keys.values.device, torch.float64)
        if len(tokens):
            count += len(chunks)
            for some in chunks.split(RESCORED):
                true = (tokens @ part.keys.exact(some.to(tokens.device)).T).amax(0).float()
                scores[number, some] = true.to(scores.device)
    return *_top(part, scores, k, slice(None), implementation), count


def _merged(folded: Tensor, parts: list[Part], found: list[tuple[Tensor, Tensor]], k: int, rescored: int = 0) -> Routed:
    """The k best of the best of every part, on the device of the queries."""
    found = [(places.to(folded.device), best.to(folded.device)) for places, best in found]
    place = torch.cat([folded.new_full((len(folded), k), -1, dtype=torch.long), *(places for places, _ in found)], 1)
    scores = torch.cat([folded.new_full((len(folded), k), -torch.inf, dtype=torch.float32), *(best for _, best in found)], 1)
    owner = torch.arange(-1, len(parts), device=folded.device).repeat_interleave(k).expand_as(place)
    ids = torch.full_like(place, -1)
    for number, part in enumerate(parts):
        if len(part.doc_ids):
            own = slice((number + 1) * k, (number + 2) * k)
            ids[:, own] = part.doc_ids.to(folded.device)[place[:, own].clamp(min=0)]
    owner, ids = (tensor.masked_fill(place < 0, -1) for tensor in (owner, ids))
    order = ids.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    return Routed(*(tensor.gather(1, order) for tensor in (owner, place, ids, scores)), rescored)
