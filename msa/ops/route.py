"""Routes questions over a bank: a quick first pass over the keys, then exact scores of the chunks that may still win.

Scores are always those of the stored keys and the queries as given, summed in float64 and rounded once to float32: they
depend on no tile, segment, shard, tier or device. The first pass only proposes documents.

Shape legend: Q questions, M tokens of a question, T chunks of a part, N documents of a part, W = KV heads * head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from msa.ops import cpu, dispatch
from msa.ops.keys import Keys
from msa.ops.reference import DocumentOrder

RESCORED = 2048  # chunks scored in float64 at a time


@dataclass(frozen=True)
class Part:
    """One layer's keys of some documents of a bank.

    ``keys``: the stored keys, which say what a score is; ``offsets``: first chunk of each document [N + 1]; ``doc_ids``
    [N]; ``visible``: documents that each question may see [Q, N], all by default; ``first_pass``: the same keys in
    fewer bytes, read in place of ``keys``, their ``error`` measured against them; ``order``: of ``doc_ids``, which a
    GPU wants. All lie on the device of what is read first; only ``keys`` beside a first pass may lie elsewhere. Keys
    are measured.
    """

    keys: Keys
    offsets: Tensor
    doc_ids: Tensor
    visible: Tensor | None = None
    first_pass: Keys | None = None
    order: DocumentOrder | None = None

    def __post_init__(self) -> None:
        if self.scanned.norm is None or self.keys.norm is None:
            raise ValueError("keys without `norm`: no error of a score could be proven; see Keys.measured")

    @cached_property
    def stored(self) -> Keys:
        """``keys`` as the measure of scores: their own rounding error does not count."""
        return replace(self.keys, error=0.0)

    @property
    def scanned(self) -> Keys:
        """What the first pass reads."""
        return self.stored if self.first_pass is None else self.first_pass


@dataclass(frozen=True)
class Winners:
    """The k best documents of each question, best first; ties by the lowest id.

    ``scores`` [Q, k] (-inf where there are fewer), ``doc_ids`` [Q, k] (-1), ``part`` and ``place`` [Q, k]: where they
    lie (-1); ``rescored``: chunks of all questions that were scored a second time, in float64.
    """

    scores: Tensor
    doc_ids: Tensor
    part: Tensor
    place: Tensor
    rescored: int = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Scores, ids, parts and places."""
        return self.scores, self.doc_ids, self.part, self.place

    def cpu(self) -> Winners:
        """The same on the host."""
        return Winners(*(tensor.cpu() for tensor in self.tensors), self.rescored)

    @staticmethod
    def best(found: list[Winners], k: int) -> Winners:
        """The k best of several sets of candidates, at least k in all."""
        scores, doc_ids, part, place = (torch.cat(of, 1) for of in zip(*(one.tensors for one in found), strict=True))
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
        stored, scanned = part.stored, part.scanned
        here = folded.to(scanned.values.device), routing_mask.to(scanned.values.device)
        # a document that scores less is not among the best of all parts
        least = [-torch.inf] * len(folded) if best is None else best.scores[:, -1].tolist()
        if dispatch.ranks_exactly(scanned, stored, implementation):
            bank = stored, scanned, part.offsets, part.doc_ids
            *found, count = cpu.best_documents(*here, *bank, k, part.visible, least)
        else:
            *found, count = _best_documents(part, *here, k, least, implementation)
        place, doc_ids, scores = (tensor.to(folded.device) for tensor in found)
        winners = Winners(scores, doc_ids, torch.where(place < 0, -1, number), place, count)
        best = winners if best is None else Winners.best([best, winners], k)
    if best is None:
        nobody = torch.full((len(folded), k), -1, dtype=torch.long, device=folded.device)
        best = Winners(torch.full(nobody.shape, -torch.inf, device=folded.device), nobody, nobody, nobody)
    return best


def route_fused(layers: list[tuple[Tensor, Tensor, list[Part]]], shares: list[float], k: int, reduce: str) -> Winners:
    """The k best documents of every question by the weighted sum of several layers' document scores.

    No kernel has this yet: every document is scored in float64, tile by tile, so that neither tiles nor shards show.

    Args:
        layers: of each its folded routing queries [Q, M, W], the tokens that take part [Q, M], and the parts of its
            keys, whose documents are the same in all layers; shares: of each layer.
        reduce: over a question's tokens of each token's best chunk in a document: max or mean.
    """
    folded, mask, first = layers[0]
    if not first or not k:
        return route(folded, mask, [], k)
    found = []
    for number, part in enumerate(first):
        scores = torch.zeros(len(folded), len(part.doc_ids), dtype=torch.float64, device=part.offsets.device)
        for share, (queries, routing_mask, parts) in zip(shares, layers, strict=True):
            scores += share * document_scores(queries, routing_mask, parts[number], reduce)
        each = torch.arange(len(part.doc_ids) + 1, device=scores.device)
        place, best = dispatch.top_documents(
            scores.float(), each, part.doc_ids, k, part.visible, order=part.order, implementation="reference"
        )
        ids = part.doc_ids[place.clamp(min=0)].masked_fill(place < 0, -1) if len(part.doc_ids) else place
        tensors = (best, ids, torch.where(place < 0, -1, number), place)
        found.append(Winners(*(tensor.to(folded.device) for tensor in tensors)))
    return Winners.best(found, k)


def document_scores(folded: Tensor, routing_mask: Tensor, part: Part, reduce: str) -> Tensor:
    """Scores of a part's documents [Q, N] float64; see :func:`route_fused`."""
    counts = part.offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    result = torch.empty(len(folded), len(counts), dtype=torch.float64, device=counts.device)
    for number, (queries, takes_part) in enumerate(zip(folded.detach(), routing_mask, strict=True)):
        tokens = queries[takes_part].to(counts.device, torch.float64)
        best = torch.full((len(tokens), len(counts)), -torch.inf, dtype=torch.float64, device=counts.device)
        for start in range(0, len(owner), RESCORED):
            rows = slice(start, start + RESCORED)
            scores = tokens @ part.keys[rows].exact().to(counts.device).T
            best.scatter_reduce_(1, owner[rows].expand(len(tokens), -1), scores, "amax")
        nothing = torch.full_like(result[number], -torch.inf)
        result[number] = (best.amax(0) if reduce == "max" else best.mean(0)) if len(tokens) else nothing
    return result


def _best_documents(
    part: Part, folded: Tensor, routing_mask: Tensor, k: int, least: list[float], implementation: str | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """What :func:`msa.ops.cpu.best_documents` does, on any device."""
    scan = partial(dispatch.scores_with_error, implementation=implementation)

    def top(rows: slice) -> tuple[Tensor, Tensor]:
        seen, options = None if part.visible is None else part.visible[rows], {"implementation": implementation}
        return dispatch.top_documents(scores[rows], part.offsets, part.doc_ids, k, seen, order=part.order, **options)

    everything, keys = slice(None), part.keys.values
    # scores in the stored keys' own precision spare most chunks the exact score, which costs more
    narrows = part.first_pass is not None and keys.device == folded.device and keys.dtype.itemsize < 4
    scores, error = scan(folded, routing_mask, part.scanned)
    best = top(everything)[1]
    count = 0
    for number in range(len(folded)):
        # k documents truly score at least the k-th score less the error. A chunk that stays below it even with the
        # error added cannot win, and the best chunk of every winner lies above it.
        floor = torch.maximum(best[number, -1] - 2 * error[number], least[number] - error[number])
        row, chunks = slice(number, number + 1), (scores[number] >= floor).nonzero().squeeze(1)
        if narrows:
            again, off = scan(folded[row], routing_mask[row], part.stored, chunks)
            scores[row] = -torch.inf
            scores[row, chunks] = again
            chunks = chunks[again[0] >= torch.maximum(top(row)[1][0, -1] - 2 * off[0], least[number] - off[0])]
        scores[number] = -torch.inf
        tokens = folded[number][routing_mask[number]].to(keys.device, torch.float64)
        if len(tokens):
            count += len(chunks)
            for some in chunks.split(RESCORED):
                true = (tokens @ part.keys[some.to(keys.device)].exact().T).amax(0).float()
                scores[number, some] = true.to(scores.device)
    place, best = top(everything)
    if not len(part.doc_ids):
        return place, place, best, count
    return place, part.doc_ids[place.clamp(min=0)].masked_fill(place < 0, -1), best, count
