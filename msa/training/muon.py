"""Muon (Jordan et al. 2024) with its matrix products in a chosen precision; torch's own always takes bfloat16."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM, STEPS, EPS = 0.95, 5, 1e-7
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: the steepest slope at zero


def orthogonalise(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About the nearest orthogonal matrix [R, C], by Newton and Schulz: singular values end between 0.5 and 1.5."""
    a, b, c = COEFFICIENTS
    result = matrix.to(dtype)
    if matrix.shape[0] > matrix.shape[1]:
        result = result.T
    result = result / result.norm().clamp(min=EPS)  # no singular value is above 1
    for _ in range(STEPS):
        gram = result @ result.T
        update = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        result = torch.addmm(result, update, result, beta=a)
    return result.T if matrix.shape[0] > matrix.shape[1] else result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for matrices: ``torch.optim.Muon``, its products in ``dtype``.

    A tall matrix's learning rate is multiplied by sqrt(rows / columns); weight decay is decoupled, times the rate.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """One step for every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = self.state[matrix]["momentum_buffer"]
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalise(matrix.grad.lerp(momentum, MOMENTUM), self.dtype)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5)
