"""Routing and attention on a processor: tiles of keys against all tokens, one float a chunk and question kept.

What multiplies is chosen by the dtype of the keys and by what the processor has (`variants`): AMX, AVX-512 or AVX2
code of routing.c, else (ARM among others) torch's own matrix products, tile by tile.

Shape legend: Q questions, M tokens of a question, T chunks, N documents, W = KV heads * head_dim, B rows, H query
heads, G KV heads, D head_dim, S memory slots, A own tokens, E template tokens.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msa.ops import reference
from msa.ops.keys import LARGEST, Keys, round_queries, score_error, summing_error
from msa.ops.native import Routing, Settle, native
from msa.ops.precision import fast_bfloat16
from msa.ops.reference import DocumentOrder

TILE_CHUNKS, LEAST_CHUNKS = 2048, 256  # of torch's matrix products
TILE_SCORES = 2**18  # of one of them: they stay in the cache
THREAD_CHUNKS = 1024  # fewer are not worth a second thread
CODES = {torch.bfloat16: 0, torch.int8: 1, torch.float32: 2, torch.float8_e4m3fn: 3, torch.int16: 4}  # in routing.c
STORED = (torch.bfloat16, torch.int8, torch.float32, torch.float8_e4m3fn)
WIDEST_INT16 = (2**31 - 1) // int(128 * LARGEST[torch.int16])  # wider keys could overflow sums in int32
ROUNDED = 2.0**-9 * 1.01  # of a row's length, float32 read in bfloat16
WIDE_KEYS = 512  # KV heads x head_dim from which copying keys costs more than several calls
BAD_OFFSETS = "offsets of documents must rise from 0 to the number of chunks"
STEP_BYTES = 64  # native code reads a key in whole steps


@dataclass(frozen=True)
class Way:
    """How one scoring function of routing.c multiplies: the dtype of its products, and the tokens of a packed tile.

    ``offset`` is added to packed numbers.
    """

    dtype: torch.dtype
    lanes: int = 16
    offset: int = 0


# best first; keys of other dtypes than a way's own are converted a few rows at a time
WAYS = {
    "amx_int8": Way(torch.int8),
    "avx512_vnni": Way(torch.int8, offset=128),
    "amx_bf16": Way(torch.bfloat16),
    "avx512_bf16": Way(torch.bfloat16),
    "avx2_int16": Way(torch.int16, lanes=8),
    "avx2_float32": Way(torch.float32, lanes=8),
}


def variants(keys: Tensor) -> list[str]:
    """What can score such keys [T, W] here, best first; "tiles" can always."""
    width = keys.shape[1]

    def fits(name: str, way: Way) -> bool:
        if name not in native().features or width * way.dtype.itemsize % STEP_BYTES:
            return False
        if way.dtype == torch.bfloat16 and not fast_bfloat16(keys.device):
            return False
        return way.dtype.is_floating_point or (
            keys.dtype == torch.int8 and (way.dtype == torch.int8 or width <= WIDEST_INT16)
        )

    readable = width > 0 and keys.stride(1) == 1 and keys.device.type == "cpu" and keys.dtype in STORED
    return [*(name for name, way in WAYS.items() if readable and fits(name, way)), "tiles"]


def query_dtype(keys: Tensor, variant: str | None = None) -> torch.dtype:
    """What folded queries are rounded to when such keys are scored."""
    variant = variant or variants(keys)[0]
    return _tile_dtype(keys.dtype) if variant == "tiles" else WAYS[variant].dtype


def scores_with_error(
    folded: Tensor, routing_mask: Tensor, keys: Keys, rows: Tensor | None = None, variant: str | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`msa.ops.dispatch.scores_with_error`; ``variant`` is one of :func:`variants`, by default the first."""
    variant = variant or variants(keys.values)[0]
    dtype = query_dtype(keys.values, variant)
    if variant != "tiles":
        packed = _Packed(folded, _tokens(routing_mask), keys, variant)
        return packed.scores(rows), packed.error
    return _score_tiles(folded, routing_mask, keys, rows, dtype), score_error(folded, routing_mask, keys, dtype)


class _Packed:
    """The routing tokens of some questions, rounded and packed for keys as routing.c reads them.

    ``error``: the bound of :func:`msa.ops.keys.score_error` for each question [Q]. Numpy where torch would do: a
    call of torch costs more than these few numbers.
    """

    def __init__(self, folded: Tensor, tokens: list[np.ndarray], keys: Keys, variant: str):
        self.keys, self.variant, self.width = keys, variant, folded.shape[-1]
        dtype, lanes, offset = WAYS[variant].dtype, WAYS[variant].lanes, WAYS[variant].offset
        source = folded.float().contiguous()
        tiles = [-(-len(part) // lanes) for part in tokens]
        self.tile_at = np.array([0, *accumulate(tiles)], np.int64)
        # tokens that fill up a tile repeat one, so that no maximum changes
        filled = [part[np.minimum(np.arange(lanes * n), len(part) - 1)] for part, n in zip(tokens, tiles, strict=True)]
        chosen = filled[0] if len(filled) == 1 else np.concatenate([np.zeros(0, np.int64), *filled])
        self.packed = torch.empty(len(chosen) * self.width * dtype.itemsize, dtype=torch.uint8)
        self.scales, self.error = np.empty(len(chosen), np.float32), torch.empty(len(tokens))
        off = keys.norm * ROUNDED if keys.values.dtype == torch.float32 and dtype == torch.bfloat16 else 0.0
        native().library.msa_pack(
            source.data_ptr(), chosen.ctypes.data, self.tile_at.ctypes.data, len(tokens), self.width,
            CODES[dtype], lanes, LARGEST.get(dtype, 1.0), offset, keys.norm + off, keys.error + off,
            summing_error(self.width, dtype),
            self.packed.data_ptr(), self.scales.ctypes.data, self.error.data_ptr(),
        )  # fmt: skip

    def argument(self, first: int, questions: int) -> Routing:
        """What routing.c needs to know to score the keys for some questions; this object keeps it alive."""
        values, scales = self.keys.values, self.keys.scale
        return Routing(
            keys=values.data_ptr(), stride=values.stride(0) * values.element_size(),
            steps=self.width * WAYS[self.variant].dtype.itemsize // STEP_BYTES,
            stored=CODES[values.dtype], packed=self.packed.data_ptr(),
            questions=questions, tile_at=self.tile_at.ctypes.data + 8 * first,
            query_scales=None if WAYS[self.variant].dtype.is_floating_point else self.scales.ctypes.data,
            key_scales=None if scales is None else scales.data_ptr(),
            key_scale_step=0 if scales is None else scales.dim(),
        )  # fmt: skip

    def scores(self, rows: Tensor | None) -> Tensor:
        """Chunk scores of all questions, the chunks shared by the threads."""
        rows = None if rows is None else rows.contiguous()
        count, questions = len(self.keys.values if rows is None else rows), len(self.error)
        out = torch.full((questions, count), -torch.inf)
        call = getattr(native().library, f"msa_{self.variant}")

        def part(first: int, last: int) -> None:
            argument = self.argument(0, questions)
            argument.first, argument.last = first, last
            argument.rows = None if rows is None else rows.data_ptr()
            argument.out, argument.out_stride = out.data_ptr(), count
            call(argument)

        _in_threads(part, count, THREAD_CHUNKS)
        return out


def _tokens(routing_mask: Tensor) -> list[np.ndarray]:
    """Rows of the flattened folded queries [Q * M, W] that take part in routing, question by question."""
    return [np.flatnonzero(row) + place * routing_mask.shape[1] for place, row in enumerate(routing_mask.numpy())]


def ranks_exactly(keys: Keys) -> bool:
    """Whether :func:`best_documents` takes such stored keys: routing.c ranks them exactly, given AVX2."""
    values = keys.values
    return bool(native().features) and values.dtype in STORED and values.shape[1] % 16 == 0 and values.stride(1) == 1


def best_documents(
    folded: Tensor, routing_mask: Tensor, keys: Keys, scanned: Keys, offsets: Tensor, doc_ids: Tensor, k: int,
    visible: Tensor | None, least: list[float],
) -> tuple[Tensor, Tensor, Tensor, int]:  # fmt: skip
    """Places, ids and exact scores [Q, k] of one part's best documents, and how many chunks were scored exactly.

    See :class:`msa.ops.route.Part` for what goes in (``scanned`` is read first), and msa_settle in routing.c; ``k`` is
    at least 1, and documents that score below ``least`` [Q] may be left out.
    """
    tokens = _tokens(routing_mask)
    scores, error = scores_with_error(folded, routing_mask, scanned)
    packed = None
    if scanned.values.dtype == torch.int8:
        # bfloat16 rounds queries less than int8 does: after a second pass in it fewer chunks need an exact score
        variant = variants(torch.empty(0, keys.values.shape[1], dtype=torch.bfloat16))[0]
        packed = None if variant == "tiles" else _Packed(folded, tokens, keys, variant)
    library, count, values = native().library, len(folded), keys.values
    source, error = folded.float().contiguous(), error.tolist()
    between_error = packed.error.tolist() if packed else error
    offsets, doc_ids = offsets.long().contiguous(), doc_ids.long().contiguous()
    seen = None if visible is None else visible.contiguous().view(torch.uint8)
    (place, ids), best = torch.empty(2, count, k, dtype=torch.long), torch.empty(count, k)
    rescored = [0] * count

    def part(first: int, last: int) -> None:
        for number in range(first, last):
            between = packed.argument(number, 1) if packed else None
            call = ctypes.cast(getattr(library, f"msa_{packed.variant}"), ctypes.c_void_p) if packed else None
            settling = Settle(
                scores=scores.data_ptr() + number * scores.shape[1] * 4, chunks=scores.shape[1],
                error=error[number], least=least[number], k=k,
                offsets=offsets.data_ptr(), ids=doc_ids.data_ptr(), documents=len(doc_ids),
                visible=None if seen is None else seen.data_ptr() + number * len(doc_ids),
                between=call, between_error=between_error[number],
                routing=ctypes.pointer(between) if packed else None,
                keys=values.data_ptr(), stride=values.stride(0) * values.element_size(), width=values.shape[1],
                stored=CODES[values.dtype],
                key_scales=None if keys.scale is None else keys.scale.data_ptr(),
                key_scale_step=0 if keys.scale is None else keys.scale.dim(),
                tokens=source.data_ptr(), index=tokens[number].ctypes.data, count=len(tokens[number]),
                best=place.data_ptr() + number * k * 8, best_ids=ids.data_ptr() + number * k * 8,
                values=best.data_ptr() + number * k * 4,
            )  # fmt: skip
            rescored[number] = library.msa_settle(settling)

    _in_threads(part, count, 1)
    if min(rescored, default=0) < 0:
        raise ValueError(BAD_OFFSETS)
    return place, ids, best, sum(rescored)


def _in_threads(part: Callable[[int, int], None], count: int, least: int) -> None:
    """Call ``part`` on ranges that cover ``count``, in as many threads as torch uses; C code runs without the lock."""
    parts = max(1, min(torch.get_num_threads(), count // least))
    size = -(-count // parts)
    ranges = [(start, min(start + size, count)) for start in range(0, count, size or 1)]
    others = [_pool(parts - 1).submit(part, *bounds) for bounds in ranges[1:]]
    if ranges:
        part(*ranges[0])
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: to start one costs as much as a thousand chunks."""
    return ThreadPoolExecutor(threads, "routing")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _tile_dtype(stored: torch.dtype) -> torch.dtype:
    """What torch multiplies such keys in. Not bfloat16, to which it would round products: equal scores would abound."""
    fast = stored == torch.int8 and torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX"))
    return stored if fast or stored == torch.float64 else torch.float32


def _score_tiles(folded: Tensor, routing_mask: Tensor, keys: Keys, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Chunk scores by matrix products of torch, a tile of chunks against the tokens of all questions at a time."""
    tokens, stored = _tokens(routing_mask), keys.values
    out = torch.full((len(folded), len(stored if rows is None else rows)), -torch.inf)
    routed = [number for number, part in enumerate(tokens) if len(part)]
    if not routed or not out.shape[1]:
        return out
    longest = max(map(len, tokens))
    # shorter questions repeat a token, so that no maximum changes
    chosen = [tokens[number][np.minimum(np.arange(longest), len(tokens[number]) - 1)] for number in routed]
    values, query_scales = round_queries(folded.flatten(0, 1)[torch.from_numpy(np.concatenate(chosen))], dtype)
    best = out if len(routed) == len(out) else out.new_empty(len(routed), out.shape[1])
    size = min(TILE_CHUNKS, max(LEAST_CHUNKS, TILE_SCORES // len(values)))
    for start in range(0, out.shape[1], size):
        part = slice(start, min(start + size, out.shape[1]))
        tile = stored[part] if rows is None else keys[rows[part]].values
        products = torch._int_mm(values, tile.T) if dtype == torch.int8 else values @ tile.to(dtype).T
        products = products if query_scales is None else products * query_scales.unsqueeze(1)
        best[:, part] = products.view(len(routed), longest, -1).amax(1)
    if keys.scale is not None:
        best.mul_(keys.scale if rows is None or not keys.scale.dim() else keys.scale[rows])
    if best is not out:
        out[routed] = best
    return out


def top_documents(
    scores: Tensor, offsets: Tensor, doc_ids: Tensor, k: int, visible: Tensor | None = None,
    order: DocumentOrder | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See :func:`msa.ops.reference.top_documents`."""
    library = native().library
    if library is None:
        return reference.top_documents(scores, offsets, doc_ids, k, visible, order)
    scores, offsets, doc_ids = scores.float().contiguous(), offsets.long().contiguous(), doc_ids.long().contiguous()
    seen = None if visible is None else visible.contiguous().view(torch.uint8)
    best, values = torch.empty(len(scores), k, dtype=torch.long), torch.empty(len(scores), k)
    statuses = []

    def part(first: int, last: int) -> None:
        statuses.append(library.msa_top_documents(
            scores.data_ptr(), scores.shape[1], offsets.data_ptr(), doc_ids.data_ptr(), len(doc_ids),
            None if seen is None else seen.data_ptr(), k, first, last, best.data_ptr(), values.data_ptr(),
        ))  # fmt: skip

    _in_threads(part, len(scores), max(1, THREAD_CHUNKS * 16 // max(1, scores.shape[1])))
    if any(statuses):
        raise ValueError(BAD_OFFSETS)
    return best, values


def reads_in_place(tokens: int, width: int) -> bool:
    """Whether :func:`attend_pieces` reads pieces where they lie: for one new token of wide keys."""
    return tokens == 1 and width >= WIDE_KEYS


def attend_pieces(
    q: Tensor, own_keys: Tensor, own_values: Tensor, own_valid: Tensor, bank_keys: Tensor, bank_values: Tensor,
    chunks: Tensor, *, reads_memory: Tensor | None = None, template_keys: Tensor | None = None,
    template_values: Tensor | None = None, key_scales: Tensor | None = None, value_scales: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See :func:`msa.ops.reference.attend_pieces`; float32 products.

    One new token a row of wide keys reads every piece where it lies: only the weights are joined. Elsewhere torch's
    fused attention over joined pieces is faster, since keys are then read many times or joining costs less than the
    calls.
    """
    (rows, tokens, _, head_dim), groups = q.shape, own_keys.shape[2]
    pieces = []
    if template_keys is not None:
        pieces.append((template_keys.expand(rows, -1, -1, -1), template_values.expand(rows, -1, -1, -1)))
    if chunks.shape[1]:
        pieces.append((_picked(bank_keys, key_scales, chunks), _picked(bank_values, value_scales, chunks)))
    pieces.append((own_keys, own_values))

    fixed = 0 if template_keys is None else len(template_keys)
    seen = reference.seen_pieces(own_valid, chunks, reads_memory, tokens, fixed)
    if not reads_in_place(tokens, groups * head_dim):
        keys, values = (torch.cat(part, 1).float().transpose(1, 2) for part in zip(*pieces, strict=True))
        out = F.scaled_dot_product_attention(
            q.float().transpose(1, 2), keys, values, attn_mask=seen.unsqueeze(1), enable_gqa=True
        )
        return out.transpose(1, 2).to(q.dtype)

    # the query heads of a KV head stand together: one product a row and KV head
    grouped = (q.float() * head_dim**-0.5).view(rows, groups, -1, head_dim)
    logits = grouped.new_empty(*grouped.shape[:3], seen.shape[2])
    ends = torch.tensor([0, *(keys.shape[1] for keys, _ in pieces)]).cumsum(0).tolist()
    spans = [(piece, *span) for piece, span in zip(pieces, pairwise(ends), strict=True)]
    for (keys, _), start, end in spans:
        logits[..., start:end] = grouped @ keys.float().permute(0, 2, 3, 1)
    weights = logits.masked_fill_(~seen.unsqueeze(1), -torch.inf).softmax(-1)
    parts = (weights[..., start:end] @ values.float().permute(0, 2, 1, 3) for (_, values), start, end in spans)
    return sum(parts).view(q.shape).to(q.dtype)


def _picked(bank: Tensor, scales: Tensor | None, chunks: Tensor) -> Tensor:
    """Rows of a bank [T, G, D], scaled: [B, S, G, D]; zeros for none."""
    if not len(bank):
        return bank.new_zeros(*chunks.shape, *bank.shape[1:])
    index = chunks.clamp(min=0)
    rows = bank.index_select(0, index.flatten()).view(*index.shape, *bank.shape[1:])
    if bool((chunks < 0).any()):
        rows[chunks < 0] = 0
    return rows if scales is None else rows.float() * scales.expand(bank.shape[:2])[index].unsqueeze(-1)
