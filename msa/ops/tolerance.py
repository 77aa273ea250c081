"""The one table of tolerances that every kernel is held to, and the comparison that uses it."""

from __future__ import annotations

import torch
from torch import Tensor

# relative to 1 + |expected|, by the dtype that products are taken in; sums are float32 throughout
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def require_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    """Every element within the tolerance of ``dtype``; infinities must agree, and NaN is never right.

    Raises:
        AssertionError: with the worst element.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    actual, expected = actual.detach().double(), expected.detach().double()
    if bool(expected.isnan().any()):
        raise AssertionError(f"{what}: the expected result itself is not a number")
    gap = torch.where(actual == expected, 0.0, (actual - expected).abs() / (1 + expected.abs()))
    gap = torch.where(gap.isnan(), torch.inf, gap)
    if gap.numel() and float(gap.max()) > TOLERANCES[dtype]:
        worst = int(gap.argmax())
        raise AssertionError(
            f"{what}: {float(actual.flatten()[worst]):.8g} in place of {float(expected.flatten()[worst]):.8g} at {worst}, "
            f"{float(gap.max()):.2g} apart, {TOLERANCES[dtype]:.0g} allowed"
        )
