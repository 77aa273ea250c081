"""Rotary position embedding (half-split form, as in Llama and Qwen)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position.

    Args:
        positions: integer positions, any shape [...]. Document-wise RoPE counts from 0 in each document; global RoPE
            starts the question at (template head length) + k (paper section 3.2.3).

    Returns:
        cos and sin, float32 [..., head_dim / 2].
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions.float().unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [..., heads, head_dim] by angles [..., head_dim / 2]; the dtype of ``x`` is kept."""
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
