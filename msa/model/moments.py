"""Mean and covariance of states, summed up batch by batch, and the map that whitens by them.

Shape legend: n states, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Of states of ``width`` E; sums are kept in float64."""

    def __init__(self, width: int):
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, states: Tensor) -> None:
        """Add states [n, E]."""
        states = states.detach().cpu().double()  # in float32 a mean far from 0 would take the covariance's digits
        self.count += len(states)
        self.total += states.sum(0)
        self.products += states.T @ states

    @property
    def mean(self) -> Tensor:
        """[E] float64."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """[E, E] float64."""
        return self.products / self.count - torch.outer(self.mean, self.mean)

    def whitening(self, shrinkage: float) -> Tensor:
        """The symmetric root of the inverse covariance [E, E] float64: (state - mean) @ it has unit covariance.

        It is symmetric, so that both sides of a product keep the same axes.

        Args:
            shrinkage: share of the mean variance in place of the measured covariance, since directions that a
                sample hardly shows would weigh most (Ledoit and Wolf 2004).
        """
        values, vectors = torch.linalg.eigh(self.covariance)
        values = values.clamp(min=0) * (1 - shrinkage) + values.mean() * shrinkage
        return (vectors * values.rsqrt()) @ vectors.T
