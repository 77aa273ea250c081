"""Routing keys as they are stored and queries as they are multiplied, and how far rounding can move a score.

Shape legend: T chunks, W = KV heads x head_dim, Q questions, M question tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST = {torch.int8: 127.0, torch.int16: 8191.0, torch.float8_e4m3fn: 448.0}  # of a rounded row
FLOAT8_SCALE = 2.0**-8  # unit vectors then use the whole range of e4m3 without a scale per row
ROWS = 8192  # rows in float64 at a time: what is wide is never the whole bank


@dataclass(frozen=True)
class Keys:
    """Routing keys [T, W] of one layer in a stored precision.

    ``scale`` multiplies the rows: float32 [T] of int8, [] (one for all) of float8, else None. ``norm``: no row, scaled,
    is longer than this (None: not measured); ``error``: rounding moved no row farther than this.
    """

    values: Tensor
    scale: Tensor | None = None
    norm: float | None = None
    error: float = 0.0

    @classmethod
    def store(cls, keys: Tensor, dtype: str) -> Keys:
        """Round float keys [T, W] to a stored precision of ``DTYPES``, measured; a row of zeros has the scale 1.

        Float8 takes keys whose heads are unit vectors; elements beyond 1.75 saturate.
        """
        kept = DTYPES[dtype]
        values = torch.empty(keys.shape, dtype=kept, device=keys.device)
        scale = torch.tensor(FLOAT8_SCALE, device=keys.device) if dtype == "float8" else None
        if dtype == "int8":
            scale = torch.empty(len(keys), device=keys.device)
        stored, norm, error = cls(values, scale), 0.0, 0.0
        for start in range(0, len(keys), ROWS):
            part = slice(start, start + ROWS)
            given = keys[part].float()
            if dtype == "int8":
                scale[part] = row_scales(given, LARGEST[kept])
                values[part] = (given / scale[part].unsqueeze(-1)).round().to(kept)
            elif dtype == "float8":
                values[part] = (given / scale).clamp(-LARGEST[kept], LARGEST[kept]).to(kept)
            else:
                values[part] = given
            meant = stored[part].exact()
            norm = max(norm, float(meant.norm(dim=-1).max()))
            error = max(error, float((meant - keys[part].double()).norm(dim=-1).max()))
        return replace(stored, norm=norm, error=error)

    @classmethod
    def read(cls, values: Tensor, scale: Tensor | None) -> Keys:
        """Keys as a bank holds them: the one scale of float8 is not written."""
        if scale is None and values.dtype == torch.float8_e4m3fn:
            scale = torch.tensor(FLOAT8_SCALE)
        return cls(values, scale)

    @property
    def dtype(self) -> str:
        """Name of the stored precision."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.values.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and their scales; one scale for all of them is a constant that is not stored."""
        scales = self.scale is not None and self.scale.dim()
        return self.values.nbytes + (self.scale.nbytes if scales else 0)

    def __getitem__(self, chosen: slice | Tensor) -> Keys:
        """Some of the rows; a slice shares storage."""
        scale = self.scale[chosen] if self.scale is not None and self.scale.dim() else self.scale
        if isinstance(chosen, slice):
            return replace(self, values=self.values[chosen], scale=scale)
        # float8 has no index kernel; index_select is three times as fast as an index in brackets
        plain = self.values.view(torch.int8) if self.values.dtype.itemsize == 1 else self.values
        return replace(self, values=plain.index_select(0, chosen).view(self.values.dtype), scale=scale)

    def exact(self) -> Tensor:
        """The keys that the stored precision stands for, in float64 [T, W]."""
        return self.values.double() if self.scale is None else self.values.double() * self.scale.double().unsqueeze(-1)

    def measured(self) -> Keys:
        """The same with their ``norm``."""
        parts = (self[start : start + ROWS].exact().norm(dim=-1).max() for start in range(0, len(self.values), ROWS))
        return replace(self, norm=float(max(parts, default=0.0)))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Keys:
        """The same in other memory."""
        return replace(self, values=move(self.values), scale=None if self.scale is None else move(self.scale))

    @staticmethod
    def join(parts: list[Keys]) -> Keys:
        """Keys one after another in one piece of memory, unmeasured; all of one precision."""
        scale = parts[0].scale
        if scale is not None and scale.dim():
            scale = torch.cat([part.scale for part in parts])
        return Keys(torch.cat([part.values for part in parts]), scale)


def row_scales(rows: Tensor, largest: float) -> Tensor:
    """Scale of every row [..., W] that puts its largest element on ``largest``; 1 for a row of zeros."""
    peak = rows.abs().amax(-1)
    return torch.where(peak > 0, peak / largest, 1.0)


@dataclass(frozen=True)
class Queries:
    """Folded routing queries of a batch: ``tokens`` [Q, M, W] float32, and which of them take part in routing [Q, M].

    A question without such a token finds nothing.
    """

    tokens: Tensor
    mask: Tensor

    @classmethod
    def of(cls, folded: Tensor, routing_mask: Tensor) -> Queries:
        """From folded queries [Q, any, W]: the tokens that take part [Q, any] first, cut to the longest question."""
        longest = max(1, int(routing_mask.sum(1).max()))
        order = (~routing_mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        tokens = folded.detach().float().gather(1, order.unsqueeze(-1).expand(-1, -1, folded.shape[-1]))
        return cls(tokens, routing_mask.gather(1, order))


def round_queries(folded: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Folded queries [..., W] in the dtype that a kernel multiplies in; of int8, int16, fp8 their scales [...] too."""
    if dtype not in LARGEST:
        return folded.to(dtype), None
    scales = row_scales(folded.float(), LARGEST[dtype])
    scaled = folded.float() / scales.unsqueeze(-1)
    return (scaled if dtype.is_floating_point else scaled.round()).to(dtype), scales


def score_error(folded: Tensor, routing_mask: Tensor, keys: Keys, dtype: torch.dtype) -> Tensor:
    """How far a chunk score computed from ``keys`` and from queries rounded to ``dtype`` can be from the true one [Q].

    With q', k' for what is multiplied, <q, k> - <q', k'> = <q, k - k'> + <q - q', k'>, so by Cauchy and Schwarz it is
    at most |q| * error + |q - q'| * norm for every pair; a maximum over tokens is off by no more than its worst term.
    Products summed in float32 add at most W * 2^-22 of |q'| * norm, whatever their order and even if each sum is cut,
    not rounded; 2^-18 of it covers scaling and the rounding of this bound itself.
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
    """The part of :func:`score_error` that arithmetic adds, relative to |q'| * norm; whole numbers sum exactly."""
    return 2.0**-18 + (0.0 if not dtype.is_floating_point else width * 2.0**-22)
