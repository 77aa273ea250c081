"""Training losses: next-token loss on targets and the auxiliary routing loss (paper eq. 5-6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def language_loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Next-token cross entropy of logits [..., V] against already shifted labels [...]; ``IGNORE`` is left out."""
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction=reduction)


def auxiliary_loss(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, visible: Tensor | None = None
) -> Tensor:
    """Contrastive loss of one layer's document scores, averaged over samples that have a positive.

    For each positive i: -log( e^(s_i/tau) / (e^(s_i/tau) + sum over negatives e^(s_j/tau)) ), averaged over positives;
    other positives are not in the denominator.

    Args:
        scores: [Q, N]; positives: bool [Q, N]; visible: documents that count at all [Q, N] (all by default).
    """
    scaled = scores.float() / temperature
    negatives = ~positives if visible is None else visible & ~positives
    rest = scaled.masked_fill(~negatives, -torch.inf).logsumexp(-1, keepdim=True)
    each = torch.logaddexp(scaled, rest) - scaled
    counts = positives.sum(-1)
    per_sample = each.masked_fill(~positives, 0.0).sum(-1) / counts.clamp(min=1)
    return per_sample.sum() / (counts > 0).sum().clamp(min=1)
