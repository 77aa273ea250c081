"""The memory that questions are routed over: padded documents in training, a bank with overlays in inference.

Shape legend: Q questions, M own tokens, N documents, C padded chunks of a document, W routing width, k documents a
layer, S = k * C memory slots, G KV heads, D head_dim.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from msa.memory.bank import Bank, Signature
from msa.memory.segment import Segment, chunk_numbers
from msa.model import router
from msa.model.decoder import PooledLayer, Selection
from msa.ops import dispatch
from msa.ops.keys import Keys, Queries
from msa.ops.reference import document_order
from msa.ops.route import Part, Winners, route, route_fused


class PaddedMemory:
    """Pooled documents as padded tensors [N, C, ...], from :meth:`MSAModel.encode`; differentiable, for training.

    ``lengths`` are the documents' in tokens [N]; ``top_k`` are chosen in each layer.
    """

    def __init__(self, layers: list[PooledLayer], lengths: Tensor, pool_tokens: int, top_k: int):
        self.layers, self.top_k = layers, top_k
        chunks = layers[0].routing.shape[1]
        counts = router.chunk_counts(lengths, pool_tokens)
        self.chunk_mask = torch.arange(chunks, device=lengths.device) < counts.unsqueeze(1)

    def select(self, layer: int, folded: Tensor, routing_mask: Tensor, reduce: str = "max") -> Selection:
        """See :class:`msa.model.decoder.Memory`."""
        return self._chosen(layer, self._scores(layer, folded, routing_mask, reduce))

    def select_fused(
        self, folded: list[Tensor], routing_mask: Tensor, shares: list[float], reduce: str = "max"
    ) -> list[Selection]:
        """See :class:`msa.model.decoder.Memory`."""
        each = (self._scores(layer, part, routing_mask, reduce) for layer, part in enumerate(folded))
        scores = sum(share * found for share, found in zip(shares, each, strict=True))
        return [self._chosen(layer, scores) for layer in range(len(folded))]

    def _scores(self, layer: int, folded: Tensor, routing_mask: Tensor, reduce: str) -> Tensor:
        """Document scores [Q, N] of one layer."""
        keys = self.layers[layer].routing.flatten(0, 1)
        if reduce == "max":
            return router.document_scores(dispatch.training_scores(folded, routing_mask, keys), self.chunk_mask)
        raw = folded.float() @ keys.float().T
        return router.mean_over_tokens(
            router.document_scores(raw.flatten(0, 1), self.chunk_mask).view(*raw.shape[:2], -1), routing_mask
        )

    def _chosen(self, layer: int, scores: Tensor) -> Selection:
        pooled = self.layers[layer]
        best = router.top_documents(scores.detach(), self.top_k)
        chosen = best.sort(-1).values  # by document, then chunk
        mask = self.chunk_mask[chosen]
        keys, values = pooled.keys[chosen].flatten(1, 2), pooled.values[chosen].flatten(1, 2)
        return Selection(keys, values, mask.flatten(1, 2), scores, best)


class Pending:
    """A selection whose keys and values are on their way from a slower tier or another rank."""

    def __init__(self, fetched: Future[tuple[Tensor, Tensor, Tensor]], winners: Winners, device: torch.device):
        self.fetched, self.winners, self.device = fetched, winners, device

    def ready(self) -> Selection:
        keys, values, mask = (tensor.to(self.device, non_blocking=True) for tensor in self.fetched.result())
        return Selection(keys, values, mask, self.winners.scores, self.winners.doc_ids)


class BankMemory:
    """A bank with the overlays of a batch of questions.

    Args:
        base: the bank that all questions share.
        overlay: the documents of all overlays of the batch, encoded together; None where there are none.
        sees: which overlay documents each question sees [Q, overlay documents].
        hidden: ids of base documents that each question's overlay replaces.
        scans: from :func:`scans_of`, for every segment of ``base``; made here where not given.
    """

    def __init__(
        self,
        base: Bank,
        overlay: Segment | None,
        sees: Tensor,
        hidden: list[list[int]],
        top_k: int,
        scans: list[list[Part]] | None = None,
    ):
        added = [overlay] if overlay is not None and len(overlay) else []
        self.parts = [*base.segments, *added]
        self.scans = [*(scans or scans_of(base)), *(_scans(segment, base.signature) for segment in added)]
        self.top_k, self.signature, self.hidden = top_k, base.signature, hidden
        self.visible: list[Tensor | None] = [None] * len(self.parts)
        for row, doc_ids in enumerate(hidden):
            for found in base.locate(doc_ids) if doc_ids else []:
                if found is not None:
                    self._visible(found[0], len(sees))[row, found[1]] = False
        if added:
            self.visible[-1] = sees
        for number, part in enumerate(base.segments):
            if not bool(part.live.all()):
                self._visible(number, len(sees)).logical_and_(part.live)

    @classmethod
    def plain(
        cls, base: Bank, questions: int, top_k: int, scans: list[list[Part]] | None = None, **more: int
    ) -> BankMemory:
        """The memory of so many questions without overlays."""
        return cls(base, None, torch.zeros(questions, 0, dtype=torch.bool), [[]] * questions, top_k, scans, **more)

    def _visible(self, part: int, questions: int) -> Tensor:
        if self.visible[part] is None:
            self.visible[part] = torch.ones(questions, len(self.parts[part]), dtype=torch.bool)
        return self.visible[part]

    def rows(self, chosen: list[int]) -> BankMemory:
        """The memory of some of the questions."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.visible = [None if visible is None else visible[chosen] for visible in self.visible]
        view.hidden = [self.hidden[row] for row in chosen]
        return view

    def select(self, layer: int, folded: Tensor, routing_mask: Tensor, reduce: str = "max") -> Pending:
        """See :class:`msa.model.decoder.Memory`; ``documents`` of the result are ids, -1 where there are fewer than k,
        ``scores`` theirs.
        """
        queries = Queries.of(folded, routing_mask)
        winners = (
            self.winners(layer, queries) if reduce == "max" else self.fused_winners({layer: queries}, [1.0], reduce)
        )
        return self._pending(layer, winners, folded.device)

    def select_fused(
        self, folded: list[Tensor], routing_mask: Tensor, shares: list[float], reduce: str = "max"
    ) -> list[Pending]:
        """See :class:`msa.model.decoder.Memory`."""
        queries = {layer: Queries.of(part, routing_mask) for layer, part in enumerate(folded)}
        winners = self.fused_winners(queries, shares, reduce)
        return [self._pending(layer, winners, folded[0].device) for layer in queries]

    def _pending(self, layer: int, winners: Winners, device: torch.device) -> Pending:
        return Pending(_fetching().submit(self.fetch, layer, winners), winners, device)

    def winners(self, layer: int, queries: Queries) -> Winners:
        """The best documents of each question, by scores that are exact for the stored keys; on the host."""
        return route(queries.tokens, queries.mask, self._layer(layer), self.top_k).cpu()

    def fused_winners(self, queries: dict[int, Queries], shares: list[float], reduce: str) -> Winners:
        """The best documents of each question by the weighted sum of some layers' scores; on the host."""
        layers = [(one.tokens, one.mask, self._layer(layer)) for layer, one in queries.items()]
        return route_fused(layers, shares, self.top_k, reduce).cpu()

    def _layer(self, layer: int) -> list[Part]:
        """One layer's keys of all parts, with what each question may see of them."""
        parts = [scans[layer] for scans in self.scans]
        for number, visible in enumerate(self.visible):
            if visible is not None:
                parts[number] = replace(parts[number], visible=visible.to(parts[number].offsets.device))
        return parts

    def fetch(self, layer: int, winners: Winners) -> tuple[Tensor, Tensor, Tensor]:
        """K and V [Q, S, G, D] and mask [Q, S] of the winners' chunks, in order of document id, then chunk."""
        order = winners.doc_ids.argsort(dim=1)
        part, place = winners.part.gather(1, order), winners.place.gather(1, order)
        counts, stored = self.chunks(layer, part, place)
        width = max(1, int(counts.max())) if counts.numel() else 1
        mask = torch.arange(width) < counts.unsqueeze(-1)
        content = torch.zeros(*mask.shape, 2, self.signature.kv_heads, self.signature.head_dim)
        for number, rows in stored.items():
            content[mask & (part == number).unsqueeze(-1)] = rows.float().cpu()
        content = content.flatten(1, 2)
        return content[:, :, 0], content[:, :, 1], mask.flatten(1)

    def chunks(self, layer: int, part: Tensor, place: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Chunk counts [Q, k] of chosen documents, and by part their content [n, 2, G, D] in the order chosen."""
        counts, content = torch.zeros_like(place), {}
        for number in part.unique().tolist():
            if number >= 0:
                segment, here = self.parts[number], part == number
                first = segment.offsets[place[here]]
                counts[here] = segment.offsets[place[here] + 1] - first
                content[number] = segment.layers[layer].content[chunk_numbers(first, counts[here])]
        return counts, content


@cache
def _fetching() -> ThreadPoolExecutor:
    """One thread, so that fetches end in the order they began, which ranks rely on."""
    return ThreadPoolExecutor(1, "fetch")


def scans_of(base: Bank, precision: str | None = None) -> list[list[Part]]:
    """What routing reads of every segment and layer of a bank.

    Args:
        precision: of a coarser copy that is kept in memory and read in place of the stored keys; None reads those.
    """
    return [_scans(segment, base.signature, precision) for segment in base.segments]


def _scans(segment: Segment, signature: Signature, precision: str | None = None) -> list[Part]:
    scans = []
    for layer in segment.layers:
        stored = layer.routing
        # unit heads need no reading of the whole bank when it is opened; rounding may lengthen them
        stored = (
            replace(stored, norm=(signature.routing_heads or signature.kv_heads) ** 0.5 * 1.01)
            if signature.unit_keys
            else stored.measured()
        )
        coarse = None if precision in (None, stored.dtype) else Keys.store(stored.exact(), precision)
        device = (coarse or stored).values.device
        doc_ids = segment.doc_ids.to(device)
        order = document_order(doc_ids) if device.type == "cuda" else None
        scans.append(Part(stored, segment.offsets.to(device), doc_ids, None, coarse, order))
    return scans
