"""Routes questions over a bank: a quick first pass over the keys, and exact scores for what it leaves in doubt.

Scores are always those of the stored keys and the queries as given, summed in float64 and rounded once to float32: they
depend on no tile, segment, shard, tier or device. The first pass only proposes documents.

Shape legend: Q questions, M tokens of a question, T chunks of a part, N documents of a part, W = KV heads * head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from msa.keys import Keys
from msa.ops import cpu, dispatch
from msa.ops.order import DocumentOrder

RESCORED = 2048  # chunks scored in float64 at a time


@dataclass(frozen=True)
class Part:
    """One layer's keys of some documents of a bank.

    ``keys``: the stored keys, which say what a score is; ``offsets``: first chunk of each document [N + 1]; ``doc_ids`` [N];
    ``visible``: documents that each question may see [Q, N], all by default; ``first_pass``: the same keys in fewer bytes,
    read in place of ``keys``, their ``error`` measured against them; ``order``: of ``doc_ids``, which a GPU wants. All lie on
    the device of what is read first; only ``keys`` beside a first pass may lie elsewhere. Keys are measured.
    """

    keys: Keys
    offsets: Tensor
    doc_ids: Tensor
    visible: Tensor | None = None
    first_pass: Keys | None = None
    order: DocumentOrder | None = None

    def __post_init__(self) -> None:
        if self.quick.norm is None or self.keys.norm is None:
            raise ValueError("keys without `norm`: no error of a score could be proven; see Keys.measured")

    @cached_property
    def stored(self) -> Keys:
        """``keys`` as what scores are measured by: how far they are from what they were made of no longer counts."""
        return replace(self.keys, error=0.0)

    @property
    def quick(self) -> Keys:
        """What the first pass reads."""
        return self.stored if self.first_pass is None else self.first_pass


@dataclass(frozen=True)
class Winners:
    """The k best documents of each question, best first; ties by the lowest id.

    ``scores`` [Q, k] (-inf where there are fewer), ``doc_ids`` [Q, k] (-1), ``part`` and ``place`` [Q, k]: where they lie (-1);
    ``rescored``: chunks of all questions that were scored a second time, in float64.
    """

    scores: Tensor
    doc_ids: Tensor
    part: Tensor
    place: Tensor
    rescored: int = 0

    def cpu(self) -> Winners:
        """The same on the host."""
        tensors = (self.scores, self.doc_ids, self.part, self.place)
        return Winners(*(tensor.cpu() for tensor in tensors), self.rescored)

    @staticmethod
    def best(found: list[Winners], k: int) -> Winners:
        """The k best of several sets of candidates, at least k in all."""
        scores, doc_ids, part, place = (
            torch.cat([getattr(one, name) for one in found], 1) for name in ("scores", "doc_ids", "part", "place")
        )
        order = doc_ids.argsort(dim=1, stable=True)
        order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
        rescored = sum(one.rescored for one in found)
        return Winners(*(tensor.gather(1, order) for tensor in (scores, doc_ids, part, place)), rescored)


def route(
    folded: Tensor, routing_mask: Tensor, parts: list[Part], k: int, *, implementation: str | None = None
) -> Winners:
    """The k best documents of every question over all parts (paper eq. 2-3), on the device of the queries.

    Args:
        folded: folded routing queries [Q, M, W]; routing_mask: tokens that take part [Q, M].
        implementation: see :func:`msa.ops.dispatch.choose`.
    """
    folded, best = folded.detach(), None
    for number, part in enumerate(parts if k else []):
        stored, quick = part.stored, part.quick
        here = folded.to(quick.values.device), routing_mask.to(quick.values.device)
        # what scores less is not among the best of all parts
        least = [-torch.inf] * len(folded) if best is None else best.scores[:, -1].tolist()
        if dispatch.settles(quick, stored, implementation):
            *found, count = cpu.best_documents(*here, stored, quick, part.offsets, part.doc_ids, k, part.visible, least)
        else:
            *found, count = _best_documents(part, *here, k, least, implementation)
        place, doc_ids, scores = (tensor.to(folded.device) for tensor in found)
        winners = Winners(scores, doc_ids, torch.where(place < 0, -1, number), place, count)
        best = winners if best is None else Winners.best([best, winners], k)
    if best is None:
        nobody = torch.full((len(folded), k), -1, dtype=torch.long, device=folded.device)
        best = Winners(torch.full(nobody.shape, -torch.inf, device=folded.device), nobody, nobody, nobody)
    return best


def _top(part: Part, scores: Tensor, k: int, rows: slice, implementation: str | None) -> tuple[Tensor, Tensor]:
    """The best documents of one part for some questions."""
    seen = None if part.visible is None else part.visible[rows]
    return dispatch.top_documents(
        scores[rows], part.offsets, part.doc_ids, k, seen, order=part.order, implementation=implementation
    )


def _best_documents(
    part: Part, folded: Tensor, routing_mask: Tensor, k: int, least: list[float], implementation: str | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """What :func:`msa.ops.cpu.best_documents` does, on any device."""
    scores, error = dispatch.scores_with_error(folded, routing_mask, part.quick, implementation=implementation)
    place, best = _top(part, scores, k, slice(None), implementation)
    count = 0
    for number in range(len(folded) if k else 0):
        # k documents reach the k-th score less the error, so one whose chunks, error added, stay below that is out; and a
        # document that is in has its true best chunk above it
        floor = torch.maximum(best[number, -1] - 2 * error[number], least[number] - error[number])
        row, chunks = slice(number, number + 1), (scores[number] >= floor).nonzero().squeeze(1)
        chunks = _narrowed(part, scores, chunks, folded[row], routing_mask[row], k, row, least[number], implementation)
        scores[number] = -torch.inf
        tokens = folded[number][routing_mask[number]].to(part.keys.values.device, torch.float64)
        if len(tokens):
            count += len(chunks)
            for some in chunks.split(RESCORED):
                true = (tokens @ part.keys[some.to(tokens.device)].exact().T).amax(0).float()
                scores[number, some] = true.to(scores.device)
    if k:
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
    least: float,
    implementation: str | None,
) -> Tensor:
    """What of one question's doubtful chunks the stored keys in their own precision leave in doubt, at less than float64 costs."""
    beside = part.keys.values.device == scores.device
    if part.first_pass is None or not beside or part.keys.values.dtype in (torch.float32, torch.float64):
        return chunks
    again, error = dispatch.scores_with_error(folded, routing_mask, part.stored, chunks, implementation=implementation)
    scores[row] = -torch.inf
    scores[row, chunks] = again
    _, best = _top(part, scores, k, row, implementation)
    return chunks[again[0] >= torch.maximum(best[0, -1] - 2 * error[0], least - error[0])]
