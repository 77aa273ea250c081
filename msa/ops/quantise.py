"""Quantised routing keys and queries, with the error that their scores can have at most.

Shape legend: Q questions, M tokens of a question, T chunks, W = KV heads * head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 8192  # rows quantised at a time: what is wide is never the whole bank
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
QUANTISED = tuple(LARGEST)


@dataclass(frozen=True)
class RoutingKeys:
    """Routing keys of one layer as they are stored.

    ``values`` [T, W]; ``scales`` float32 and contiguous [T], or [] where one scale serves all rows, or None; ``norm``: no row, scaled,
    is longer than this; ``error``: no row, scaled, is farther from the key that was quantised than this.
    """

    values: Tensor
    scales: Tensor | None = None
    norm: float = 0.0
    error: float = 0.0

    def part(self, chosen: Tensor | slice) -> RoutingKeys:
        """Some of the keys."""
        scales = self.scales[chosen] if self.scales is not None and self.scales.dim() else self.scales
        # index_select is three times as fast as an index in brackets
        bytes_alone = self.values.view(torch.int8) if self.values.dtype.itemsize == 1 else self.values  # fp8 cannot be indexed
        values = self.values[chosen] if isinstance(chosen, slice) else bytes_alone.index_select(0, chosen).view(self.values.dtype)
        return RoutingKeys(values, scales, self.norm, self.error)

    def exact(self, chosen: Tensor | slice) -> Tensor:
        """What some of the stored keys stand for, in float64."""
        some = self.part(chosen)
        return some.values.double() if some.scales is None else some.values.double() * some.scales.double().unsqueeze(-1)


def plain_keys(keys: Tensor) -> RoutingKeys:
    """Keys [T, W] of a floating dtype as they are, measured."""
    norm = max((float(part.double().norm(dim=-1).max()) for part in keys.split(ROWS) if len(part)), default=0.0)
    return RoutingKeys(keys, None, norm)


def quantise_keys(keys: Tensor, dtype: torch.dtype = torch.int8, scale: float | None = None) -> RoutingKeys:
    """Quantise keys [T, W] to int8 or float8_e4m3fn.

    Args:
        scale: one scale for every row (what is larger than it times the dtype's largest value saturates); without it
            each row's largest element takes the dtype's largest value.

    Returns:
        Keys with measured ``norm`` and ``error``; a row of zeros has the scale 1.
    """
    largest = LARGEST[dtype]
    values = torch.empty(keys.shape, dtype=dtype, device=keys.device)
    scales = torch.empty(len(keys), device=keys.device) if scale is None else torch.tensor(scale, device=keys.device)
    norm = error = 0.0
    for start in range(0, len(keys), ROWS):
        part = keys[start : start + ROWS].double()
        if scale is None:
            scales[start : start + ROWS] = row_scales(part.float(), largest)
        by = scales[start : start + ROWS].unsqueeze(-1) if scale is None else scales
        stored = (part.float() / by).clamp(-largest, largest)
        stored = stored.round().to(dtype) if dtype == torch.int8 else stored.to(dtype)
        values[start : start + ROWS] = stored
        meant = stored.double() * by.double()
        norm = max(norm, float(meant.norm(dim=-1).max()))
        error = max(error, float((meant - part).norm(dim=-1).max()))
    return RoutingKeys(values, scales, norm, error)


def row_scales(rows: Tensor, largest: float) -> Tensor:
    """Scale of every row [..., W] that puts its largest element on ``largest``; 1 for a row of zeros."""
    peak = rows.abs().amax(-1)
    return torch.where(peak > 0, peak / largest, 1.0)


def round_queries(folded: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Folded queries [..., W] in the dtype that a kernel multiplies in, with their scales [...] where that is int8 or fp8."""
    if dtype not in QUANTISED:
        return folded.to(dtype), None
    scales = row_scales(folded.float(), LARGEST[dtype])
    scaled = folded.float() / scales.unsqueeze(-1)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scales


def score_error(folded: Tensor, routing_mask: Tensor, keys: RoutingKeys, dtype: torch.dtype) -> Tensor:
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
