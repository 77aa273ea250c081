"""Routing queries as a kernel multiplies them, and how far a score computed from rounded queries and keys can be off.

Shape legend: Q questions, M tokens of a question, W = KV heads * head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa.keys import LARGEST, Keys, row_scales

QUANTISED = tuple(LARGEST)


def round_queries(folded: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Folded queries [..., W] in the dtype that a kernel multiplies in, with their scales [...] where that is int8 or fp8."""
    if dtype not in QUANTISED:
        return folded.to(dtype), None
    scales = row_scales(folded.float(), LARGEST[dtype])
    scaled = folded.float() / scales.unsqueeze(-1)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scales


def score_error(folded: Tensor, routing_mask: Tensor, keys: Keys, dtype: torch.dtype) -> Tensor:
    """How far a chunk score computed from ``keys`` and from queries rounded to ``dtype`` can be from the true one [Q].

    With q', k' for what is multiplied, <q, k> - <q', k'> = <q, k - k'> + <q - q', k'>, so by Cauchy and Schwarz it is at
    most |q| * error + |q - q'| * norm for every pair; a maximum over tokens is off by no more than its worst term. Products
    summed in float32 add at most W * 2^-22 of |q'| * norm, whatever their order and even if each sum is cut, not rounded;
    2^-18 of it covers scaling and the rounding of this bound itself.
    """
    if not folded.shape[1]:
        return folded.new_zeros(len(folded), dtype=torch.float32)
    true = folded.float()
    rounded, scales = round_queries(true, dtype)
    meant = rounded.float() if scales is None else rounded.float() * scales.unsqueeze(-1)
    length, gap, kept = (torch.linalg.vector_norm(x, dim=-1) for x in (true, true - meant, meant))
    bound = length * keys.error + gap * keys.norm + kept * (keys.norm * summing_error(folded.shape[-1], dtype))
    return bound.masked_fill(~routing_mask, 0.0).amax(-1)


def summing_error(width: int, dtype: torch.dtype) -> float:
    """The part of :func:`score_error` that arithmetic adds, relative to |q'| * norm; sums of int8 products are whole."""
    return 2.0**-18 + (0.0 if dtype == torch.int8 else width * 2.0**-22)
