"""Routing keys at rest: stored precisions, a coarser scan over them, and the error bound that keeps the scan exact.

Scores are always those of the stored keys, summed in float64 and rounded once to float32, so that they do not depend
on tiles, segments, shards or tiers. The scan only proposes documents: everything within its error bound of the k-th
best is rescored.

Shape legend: T chunks, W = KV heads x head_dim, M question tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn, "int8": torch.int8}
FLOAT8_SCALE = 256.0  # unit vectors use the whole range of e4m3 (448) without a scale per row
BFLOAT16_ERROR = 2.0**-9  # largest relative error of rounding to bfloat16


@dataclass
class Keys:
    """Routing keys [T, W] in a stored precision; ``scale`` [T] multiplies the rows of int8 keys."""

    values: Tensor
    scale: Tensor | None = None

    @classmethod
    def store(cls, keys: Tensor, dtype: str) -> Keys:
        """Round float keys [T, W], whose heads are unit vectors, to a stored precision of ``DTYPES``."""
        if dtype == "int8":
            scale = keys.float().abs().amax(-1).clamp_min(1e-12) / 127
            return cls((keys.float() / scale.unsqueeze(-1)).round().to(torch.int8), scale)
        if dtype == "float8":
            return cls((keys.float() * FLOAT8_SCALE).to(torch.float8_e4m3fn))
        return cls(keys.to(DTYPES[dtype]))

    @property
    def dtype(self) -> str:
        """Name of the stored precision."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.values.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and their scales."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def __getitem__(self, chosen: slice | Tensor) -> Keys:
        """Some of the rows; a slice shares storage."""
        if isinstance(chosen, Tensor) and self.values.dtype == torch.float8_e4m3fn:  # gathers bytes: float8 has no index kernel
            values = self.values.view(torch.uint8)[chosen].view(torch.float8_e4m3fn)
        else:
            values = self.values[chosen]
        return Keys(values, None if self.scale is None else self.scale[chosen])

    def exact(self) -> Tensor:
        """The keys that the stored precision stands for, in float64 [T, W]."""
        values = self.values.double()
        if self.scale is not None:
            return values * self.scale.double().unsqueeze(-1)
        return values / FLOAT8_SCALE if self.values.dtype == torch.float8_e4m3fn else values

    def error_from(self, keys: Tensor, tile: int = 65536) -> float:
        """Largest distance of a stored row from the row of ``keys`` [T, W] that it was rounded from."""
        worst = 0.0
        for start in range(0, len(keys), tile):
            part = slice(start, start + tile)
            worst = max(worst, float((self[part].exact() - keys[part].double()).norm(dim=-1).max()))
        return worst

    def longest(self, tile: int = 65536) -> float:
        """Length of the longest row."""
        parts = (self[start : start + tile].exact().norm(dim=-1).max() for start in range(0, len(self.values), tile))
        return float(max(parts, default=0.0))

    @staticmethod
    def join(parts: list[Keys]) -> Keys:
        """Keys one after another in one piece of memory."""
        scales = [part.scale for part in parts if part.scale is not None]
        return Keys(torch.cat([part.values for part in parts]), torch.cat(scales) if scales else None)


@dataclass
class Queries:
    """Folded routing queries of a batch, padded with copies of a real token: a maximum over tokens needs no mask.

    ``tokens`` [Q, M, W] float32; ``empty`` [Q] marks questions without a routing token, which find nothing.
    """

    tokens: Tensor
    empty: Tensor

    @classmethod
    def of(cls, folded: Tensor, routing_mask: Tensor) -> Queries:
        """From folded queries [Q, M, W] and the tokens that take part in routing [Q, M]."""
        longest = max(1, int(routing_mask.sum(1).max()))
        order = (~routing_mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]  # real tokens first
        real = routing_mask.gather(1, order)
        order = torch.where(real, order, order[:, :1])
        tokens = folded.float().gather(1, order.unsqueeze(-1).expand(-1, -1, folded.shape[-1]))
        return cls(tokens, ~routing_mask.any(1))

    def rows(self, chosen: Tensor) -> Queries:
        """Some of the questions."""
        return Queries(self.tokens[chosen], self.empty[chosen])


class Scan:
    """A first pass over keys: rough chunk scores, and a bound on how far they are from the exact ones.

    Args:
        keys: what is read; the stored keys themselves or a coarser copy of them.
        error: largest distance of a row from its stored row (0 for the stored keys themselves).
        longest: no stored row is longer; unit heads give sqrt(KV heads).
    """

    TILE = 2048  # chunks at a time: their scores of all tokens stay in the cache

    def __init__(self, keys: Keys, error: float, longest: float):
        self.keys, self.error, self.longest = keys, error, longest + error
        self.fast = fast_bfloat16(keys.values.device)

    def bound(self, queries: Queries) -> Tensor:
        """Largest difference of a rough score from the exact one, for each question [Q].

        Cauchy-Schwarz on the three roundings (of the queries, of the keys, of the product) and on a float32 sum.
        """
        norm = queries.tokens.double().norm(dim=-1)
        reach = norm * self.longest
        bound = norm * self.error + reach * self.keys.values.shape[1] * 2.0**-23
        if self.fast:
            rounded = queries.tokens.bfloat16().double()
            bound += (rounded - queries.tokens.double()).norm(dim=-1) * self.longest + reach * BFLOAT16_ERROR * 1.01
            if self.keys.values.dtype == torch.float32:
                bound += reach * BFLOAT16_ERROR
        return bound.amax(1).float()

    def scores(self, queries: Queries) -> Tensor:
        """Rough scores [Q, T]: the maximum over a question's tokens, tile by tile."""
        count, length = queries.tokens.shape[:2]
        dtype = torch.bfloat16 if self.fast else torch.float32
        flat = queries.tokens.to(self.keys.values.device, dtype).flatten(0, 1)
        out = flat.new_empty(count, len(self.keys.values), dtype=torch.float32)
        for start in range(0, out.shape[1], self.TILE):
            tile = self.keys[start : start + self.TILE]
            product = (flat @ tile.values.to(dtype).T).view(count, length, -1).amax(1)
            if tile.scale is not None:
                product = product.float() * tile.scale
            out[:, start : start + self.TILE] = product
        return out.div_(FLOAT8_SCALE) if self.keys.values.dtype == torch.float8_e4m3fn else out


def fast_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 faster than float32."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda"
