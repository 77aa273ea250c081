"""Memory in main memory: documents encoded together and routed over as one bank.

Shape legend: Q questions, N documents, C padded chunks of a document, S = k * C memory slots, G KV heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa import router
from msa.model import PooledLayer, Selection


class PaddedMemory:
    """Pooled documents as padded tensors [N, C, ...]; differentiable, for training and small overlays.

    Args:
        layers: what :meth:`MSAModel.encode` gave.
        lengths: document lengths in tokens [N].
        top_k: documents chosen per layer.
        visible: which documents each question may see [Q, N]; all by default.
    """

    def __init__(self, layers: list[PooledLayer], lengths: Tensor, pool_tokens: int, top_k: int, visible: Tensor | None = None):
        self.layers = layers
        self.top_k = top_k
        self.visible = visible
        chunks = layers[0].routing.shape[1]
        counts = router.chunk_counts(lengths, pool_tokens)
        self.chunk_mask = torch.arange(chunks, device=lengths.device) < counts.unsqueeze(1)

    def select(self, layer: int, folded: Tensor, routing_mask: Tensor) -> Selection:
        """See :class:`msa.model.Memory`."""
        pooled = self.layers[layer]
        raw = router.chunk_scores(folded, routing_mask, pooled.routing.flatten(0, 1))
        scores = router.document_scores(raw, self.chunk_mask)
        if self.visible is not None:
            scores = scores.masked_fill(~self.visible, -torch.inf)
        best = router.top_documents(scores.detach(), self.top_k)
        chosen = best.sort(-1).values  # by document, then chunk
        mask = self.chunk_mask[chosen] & scores.gather(1, chosen).isfinite().unsqueeze(-1)
        return Selection(
            pooled.keys[chosen].flatten(1, 2), pooled.values[chosen].flatten(1, 2), mask.flatten(1, 2), scores, best
        )
