"""Tile sizes of the triton kernels by device and shape, in one place.

Ampere (sm_80: A100, A800) has 164 KB of shared memory a multiprocessor and copies into it asynchronously; Hopper
(sm_90: H100, H200) has 228 KB and multiplies straight from it. Routing has two regimes: with few tokens it waits for
the keys, so tiles are many and shallow and several lie on a multiprocessor; with many it waits for the products, so
tiles are as large as the accumulators allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

INTERPRETER = (0, 0)
FEW_TOKENS = 64  # question tokens of a batch up to which the keys' bytes, not the products, are the limit on any device


@dataclass(frozen=True)
class RoutingTile:
    """One tile of the routing kernel: ``chunks`` x ``tokens`` scores, ``width`` elements of a key at a time.

    ``programs``: persistent programs a multiprocessor; ``descriptor``: keys come through the bulk copy engine (Hopper);
    ``flatten``: the loop over tiles and the one over their width are one, so that the next tile's keys are on their way
    while this one's maximum is taken.
    """

    chunks: int
    tokens: int
    width: int
    warps: int
    stages: int
    programs: int
    descriptor: bool = False
    flatten: bool = False


@dataclass(frozen=True)
class AttentionTile:
    """One tile of the attention kernel: ``rows`` (tokens x heads of a KV head) x ``keys``."""

    rows: int
    keys: int
    warps: int
    stages: int


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; INTERPRETER for a processor."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else INTERPRETER


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; a few for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def padded(count: int, least: int = 16) -> int:
    """The next power of two, at least what the matrix units take."""
    return max(least, 1 << max(0, count - 1).bit_length())


def routing_tile(device: tuple[int, int], questions: int, tokens: int, key_bytes: int, query_bytes: int) -> RoutingTile:
    """The tile for a batch of questions of so many tokens each, keys and queries of so many bytes an element."""
    if device == INTERPRETER:
        return RoutingTile(chunks=32, tokens=32, width=64, warps=4, stages=1, programs=1)
    hopper, together = device >= (9, 0), questions * tokens
    width = 128 // max(key_bytes, query_bytes)  # the widest row that the bulk copy engine lays out for the matrix units
    if key_bytes >= 4:  # no matrix units: products take registers
        return RoutingTile(64, min(64, padded(together)), width, 4, 3, 2)
    if together <= FEW_TOKENS:
        return RoutingTile(128, padded(together), width, 4, 5 if hopper else 4, 2, descriptor=hopper)
    if hopper:
        return RoutingTile(128, 256, width, 8, 3, 1, descriptor=True, flatten=True)
    return RoutingTile(128, 128, width, 8, 3, 1)


def documents_block(device: tuple[int, int]) -> int:
    """Documents (or numbers of a merge) that one program orders at a time."""
    return 128 if device == INTERPRETER else 2048


def attention_tile(device: tuple[int, int], rows: int, head_dim: int, scaled: bool) -> AttentionTile:
    """The tile for so many rows (query tokens times query heads of a KV head); ``scaled``: the bank is quantised."""
    if device == INTERPRETER:
        return AttentionTile(16, 16, 4, 1)
    if rows <= 16:
        return AttentionTile(16, 64, 4, 3)
    hopper = device >= (9, 0)
    large = 64 if head_dim > 128 or rows <= 64 or (scaled and not hopper) else 128
    return AttentionTile(large, 64, 8 if large == 128 else 4, 3 if hopper else 2)
