"""Rotary position embedding (half-split form, as in Llama and Qwen) and its long-context variants."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from msa.model.rope_scaling import RopeScaling


@lru_cache(maxsize=16)
def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None, device: torch.device) -> Tensor:
    """Radians per position, float32 [head_dim / 2]; not to be written to.

    Each is rounded as in transformers: at position 100,000 the last bit of a frequency is the second digit of an angle.
    """
    periods = theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    frequencies = 1.0 / periods
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "longrope":
        return 1.0 / (torch.tensor(scaling.divisors, device=device) * periods)
    if scaling.kind == "llama3":
        # turns within the original length: with few a frequency is divided, with many it is kept, else it lies between
        turns = scaling.original_positions / (2 * math.pi / frequencies)
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        between = (1 - kept) * frequencies / scaling.factor + kept * frequencies
        return torch.where(kept < 0, frequencies / scaling.factor, torch.where(kept > 1, frequencies, between))
    first, last = (
        head_dim * math.log(scaling.original_positions / (beta * 2 * math.pi)) / (2 * math.log(theta))
        for beta in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = torch.arange(head_dim // 2, device=device, dtype=torch.float32) - first
    kept = 1 - (ramp / (last - first if last != first else 0.001)).clamp(0, 1)
    return 1.0 / (scaling.factor * periods) * (1 - kept) + frequencies * kept


def rotary_angles(
    positions: Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [..., head_dim / 2], of integer positions [...] (paper section 3.2.3)."""
    angles = positions.float().unsqueeze(-1) * rotary_frequencies(head_dim, theta, scaling, positions.device)
    gain = 1.0 if scaling is None else scaling.attention_factor
    return angles.cos() * gain, angles.sin() * gain


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [..., heads, head_dim] by angles [..., head_dim / 2]; the dtype of ``x`` is kept."""
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
