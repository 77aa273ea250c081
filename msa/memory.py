"""Memory banks: pooled documents to route over, padded for training and flat for inference, with overlays.

Shape legend: Q questions, M own tokens, N documents, C padded chunks of a document, T chunks of a bank,
S = k * C memory slots, G KV heads, D head_dim, W = G * D.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from configs.errors import UserError
from configs.records import Document
from configs.tables import whole_file
from msa import router
from msa.model import MSAModel, PooledLayer, Selection
from msa.prompt import Prompter, pad_rows

SCORE_TILE = 2048  # chunks scored at a time: their scores of all tokens stay in the cache


class PaddedMemory:
    """Pooled documents as padded tensors [N, C, ...]; differentiable, for training.

    Args:
        layers: what :meth:`MSAModel.encode` gave.
        lengths: document lengths in tokens [N].
        top_k: documents chosen per layer.
    """

    def __init__(self, layers: list[PooledLayer], lengths: Tensor, pool_tokens: int, top_k: int):
        self.layers = layers
        self.top_k = top_k
        chunks = layers[0].routing.shape[1]
        counts = router.chunk_counts(lengths, pool_tokens)
        self.chunk_mask = torch.arange(chunks, device=lengths.device) < counts.unsqueeze(1)

    def select(self, layer: int, folded: Tensor, routing_mask: Tensor) -> Selection:
        """See :class:`msa.model.Memory`."""
        pooled = self.layers[layer]
        raw = router.chunk_scores(folded, routing_mask, pooled.routing.flatten(0, 1))
        scores = router.document_scores(raw, self.chunk_mask)
        best = router.top_documents(scores.detach(), self.top_k)
        chosen = best.sort(-1).values  # by document, then chunk
        mask = self.chunk_mask[chosen]
        return Selection(
            pooled.keys[chosen].flatten(1, 2), pooled.values[chosen].flatten(1, 2), mask.flatten(1, 2), scores, best
        )


@dataclass
class Bank:
    """Encoded documents, chunk after chunk: a prefix of a bank is the bank of a prefix of its corpus.

    ``doc_ids`` [N]; ``offsets`` [N + 1] first chunk of each document; ``layers``: routing [T, W], keys and values [T, G, D].
    """

    doc_ids: Tensor
    offsets: Tensor
    layers: list[PooledLayer]

    def prefix(self, documents: int) -> Bank:
        """The first documents, sharing storage."""
        chunks = int(self.offsets[documents])
        layers = [PooledLayer(*(tensor[:chunks] for tensor in layer.tensors())) for layer in self.layers]
        return Bank(self.doc_ids[:documents], self.offsets[: documents + 1], layers)

    def document(self, number: int) -> Bank:
        """One document as a bank of its own, copied."""
        first, last = self.offsets[number], self.offsets[number + 1]
        layers = [PooledLayer(*(tensor[first:last].clone() for tensor in layer.tensors())) for layer in self.layers]
        return Bank(self.doc_ids[number : number + 1].clone(), torch.tensor([0, int(last - first)]), layers)

    @classmethod
    def join(cls, banks: list[Bank], like: Bank) -> Bank:
        """Banks one after another; none at all make an empty bank shaped like ``like``."""
        banks = [like.prefix(0), *banks]
        counts = torch.cat([bank.offsets.diff() for bank in banks])
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        stores = [zip(*(bank.layers[number].tensors() for bank in banks), strict=True) for number in range(len(like.layers))]
        layers = [PooledLayer(*(torch.cat(parts) for parts in store)) for store in stores]
        return cls(torch.cat([bank.doc_ids for bank in banks]), offsets, layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors()) + self.offsets.nbytes * 2

    def save(self, directory: Path) -> None:
        """Write bank.safetensors, whole."""
        tensors = {"doc_ids": self.doc_ids, "offsets": self.offsets}
        for number, layer in enumerate(self.layers):
            tensors |= dict(zip((f"{number}.routing", f"{number}.keys", f"{number}.values"), layer.tensors(), strict=True))
        with whole_file(directory / "bank.safetensors") as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)

    @classmethod
    def load(cls, directory: Path) -> Bank:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is missing, corrupt or lacks a tensor.
        """
        from msa.checkpoint import read_tensors

        path = directory / "bank.safetensors"
        tensors = read_tensors(path)
        try:
            count = sum(name.endswith(".routing") for name in tensors)
            layers = [PooledLayer(*(tensors[f"{n}.{part}"] for part in ("routing", "keys", "values"))) for n in range(count)]
            return cls(tensors["doc_ids"], tensors["offsets"], layers)
        except KeyError as error:
            raise UserError(f"{path}: tensor {error} is missing; delete {directory} and run the same command again") from None


@torch.no_grad()
def encode_bank(
    model: MSAModel, prompter: Prompter, documents: list[Document], batch_tokens: int = 2048, progress: bool = False
) -> Bank:
    """Encode documents into a bank (stage 1, paper section 3.2); order is kept.

    Args:
        batch_tokens: padded tokens encoded at once.
        progress: show a bar with ETA.
    """
    wrapped = prompter.documents(documents)
    lengths = torch.tensor([len(tokens) for tokens in wrapped], dtype=torch.long)
    counts = router.chunk_counts(lengths, model.config.pool_tokens)
    offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
    config, total = model.config, int(offsets[-1])
    shapes = ((config.routing_width,), (config.kv_heads, config.head_dim), (config.kv_heads, config.head_dim))
    layers = [PooledLayer(*(torch.empty(total, *shape) for shape in shapes)) for _ in config.routed_layers]
    bar = tqdm(total=int(lengths.sum()), desc="encode", unit="token", unit_scale=True, disable=not progress, mininterval=2)
    start = 0
    while start < len(wrapped):
        end, longest = start, 0
        while end < len(wrapped) and max(longest, len(wrapped[end])) * (end - start + 1) <= max(batch_tokens, len(wrapped[start])):
            longest = max(longest, len(wrapped[end]))
            end += 1
        part = lengths[start:end]
        encoded = model.encode(pad_rows(wrapped[start:end], prompter.pad), part)
        columns = torch.arange(encoded[0].routing.shape[1])
        real = columns < counts[start:end].unsqueeze(1)
        for layer, pooled in zip(layers, encoded, strict=True):
            for store, tensor in zip(layer.tensors(), pooled.tensors(), strict=True):
                store[offsets[start] : offsets[end]] = tensor[real]
        bar.update(int(part.sum()))
        start = end
    bar.close()
    return Bank(torch.tensor([document.doc_id for document in documents], dtype=torch.long), offsets, layers)


class BankMemory:
    """A bank with the overlays of a batch of questions: what those questions are routed over.

    Args:
        base: the bank all questions share.
        overlay: the documents of all overlays of the batch, encoded together.
        sees: which overlay documents each question sees [Q, overlay documents].
        hidden: indices of base documents that each question's overlay replaces.
    """

    def __init__(self, base: Bank, overlay: Bank, sees: Tensor, hidden: list[list[int]], top_k: int):
        self.base, self.overlay, self.top_k = base, overlay, top_k
        self.doc_ids = torch.cat((base.doc_ids, overlay.doc_ids))
        self.counts = torch.cat((base.offsets.diff(), overlay.offsets.diff()))
        self.visible = torch.cat((torch.ones(len(sees), len(base.doc_ids), dtype=torch.bool), sees), 1)
        for row, documents in enumerate(hidden):
            self.visible[row, documents] = False

    def rows(self, chosen: list[int]) -> BankMemory:
        """The memory of some of the questions."""
        part = object.__new__(BankMemory)
        part.base, part.overlay, part.top_k = self.base, self.overlay, self.top_k
        part.doc_ids, part.counts, part.visible = self.doc_ids, self.counts, self.visible[chosen]
        return part

    def scores(self, layer: int, folded: Tensor, routing_mask: Tensor) -> Tensor:
        """Document scores [Q, N + overlay documents]; -inf where a question does not see a document."""
        parts = [_bank_scores(bank, layer, folded, routing_mask) for bank in (self.base, self.overlay)]
        return torch.cat(parts, 1).masked_fill(~self.visible, -torch.inf)

    def select(self, layer: int, folded: Tensor, routing_mask: Tensor) -> Selection:
        """See :class:`msa.model.Memory`; ``documents`` of the result are ids, -1 where there are fewer than k, ``scores`` theirs."""
        scores = self.scores(layer, folded, routing_mask)
        best = top_by_id(scores, self.doc_ids, self.top_k)
        found = scores.gather(1, best).isfinite()
        ids, kept = self.doc_ids[best].masked_fill(~found, -1), scores.gather(1, best)
        # the chosen chunks in order of document id, then chunk
        order = self.doc_ids[best].argsort(-1)
        best, found = best.gather(1, order), found.gather(1, order)
        keys, values, mask = self._fetch(layer, best)
        return Selection(keys, values, (mask & found.unsqueeze(-1)).flatten(1), kept, ids)

    def _fetch(self, layer: int, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K and V [Q, S, G, D] and mask [Q, k, C] of chosen columns [Q, k]."""
        counts = self.counts[chosen]
        width = int(counts.max()) if counts.numel() else 0
        mask = torch.arange(width) < counts.unsqueeze(-1)
        result = []
        for part in ("keys", "values"):
            base, extra = (getattr(bank.layers[layer], part) for bank in (self.base, self.overlay))
            out = torch.zeros(*mask.shape, *base.shape[1:])
            for bank, store, shift in ((self.base, base, 0), (self.overlay, extra, len(self.base.doc_ids))):
                here = (chosen >= shift) & (chosen < shift + len(bank.doc_ids))
                slots = mask & here.unsqueeze(-1)
                first = bank.offsets[(chosen - shift).clamp(0, max(0, len(bank.doc_ids) - 1))]
                index = (first.unsqueeze(-1) + torch.arange(width))[slots]
                out[slots] = store[index]
            result.append(out.flatten(1, 2))
        return result[0], result[1], mask


def _bank_scores(bank: Bank, layer: int, folded: Tensor, routing_mask: Tensor) -> Tensor:
    """Document scores [Q, N] of one bank, tile by tile: no score per token outlives its tile."""
    routing = bank.layers[layer].routing
    chunk = torch.full((len(folded), len(routing)), -torch.inf)
    for row, (vectors, mask) in enumerate(zip(folded, routing_mask, strict=True)):
        tokens = vectors[mask].float()
        if not len(tokens):
            continue
        for start in range(0, len(routing), SCORE_TILE):
            end = start + SCORE_TILE
            torch.amax(tokens @ routing[start:end].T, 0, out=chunk[row, start:end])
    owner = torch.repeat_interleave(torch.arange(len(bank.doc_ids)), bank.offsets.diff())
    scores = torch.full((len(folded), len(bank.doc_ids)), -torch.inf)
    return scores.scatter_reduce_(1, owner.expand(len(folded), -1), chunk, "amax")


def top_by_id(scores: Tensor, doc_ids: Tensor, k: int) -> Tensor:
    """Columns [Q, min(k, N)] of the best scores, best first; ties go to the lowest document id."""
    k = min(k, scores.shape[1])
    threshold = scores.topk(k, dim=1).values[:, -1:]
    rows = []
    for row, floor in zip(scores, threshold, strict=True):
        candidates = (row >= floor).nonzero().squeeze(1)
        candidates = candidates[doc_ids[candidates].argsort()]
        rows.append(candidates[row[candidates].argsort(descending=True, stable=True)][:k])
    return torch.stack(rows)
