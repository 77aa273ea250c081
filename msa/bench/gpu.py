"""What only a GPU can show: 100M tokens at the paper's shape on one card, routed through all 18 layers and attended to.

Shape legend: T chunks, G KV heads, D head_dim, W = G * D, M question tokens.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from msa.bench.measure import CONTEXTS, POOL_TOKENS, READ_BYTES, clock
from msa.bench.peers import CHUNKS_A_DOCUMENT, GROUPS, HEAD_DIM, HEADS, K
from msa.model import router
from msa.ops import dispatch
from msa.ops.keys import FLOAT8_SCALE, Keys
from msa.ops.reference import document_order
from msa.ops.route import Part, route

COLUMNS = (
    "memory", "context", "layers", "status", "key_bytes", "content_bytes", "routing_s", "p90_s", "n",
    "bandwidth_bytes_per_s", "bandwidth_share", "attention_s", "peak_bytes", "overlap_with_float32",
)  # fmt: skip
LAYERS, TOKENS, TURNS = 18, 32, 20
DRAWN = 1 << 16  # chunks made at a time
MEMORIES = {  # stored precision of the keys, and whether there is content in float8
    "bfloat16 keys alone": ("bfloat16", False),
    "bfloat16 keys, float8 content": ("bfloat16", True),
    "float8 keys and content": ("float8", True),
}


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """One row for each of ``MEMORIES``; with ``quick`` over 128K tokens and two layers."""
    device, context, layers = torch.device("cuda"), "128K" if quick else "100M", 2 if quick else LAYERS
    rows = []
    for name, (keys, content) in MEMORIES.items():
        row = {"memory": name, "context": context, "layers": layers}
        try:
            rows.append(row | _memory(CONTEXTS[context] // POOL_TOKENS, layers, keys, content, device))
        except torch.cuda.OutOfMemoryError as error:
            rows.append(row | {"status": f"out_of_memory: {str(error).splitlines()[0][:120]}"})
        torch.cuda.empty_cache()
    return rows


def drawn(chunks: int, layer: int, device: torch.device, start: int = 0) -> Tensor:
    """Unit routing keys of some chunks from ``start`` on [n, W], the same whenever they are drawn."""
    rng = torch.Generator(device).manual_seed(layer * 10**6 + start // DRAWN)
    rows = torch.randn(min(DRAWN, chunks - start), GROUPS, HEAD_DIM, generator=rng, device=device)
    return router.normalise_keys(rows)


def _keys(chunks: int, layer: int, dtype: str, device: torch.device) -> Keys:
    """One layer's keys in a stored precision."""
    parts = [Keys.store(drawn(chunks, layer, device, start), dtype) for start in range(0, chunks, DRAWN)]
    return replace(Keys.join(parts), norm=max(part.norm for part in parts))


def _memory(chunks: int, layers: int, key_dtype: str, has_content: bool, device: torch.device) -> dict[str, Any]:
    """Build a bank, route one question through all layers, attend to the winners."""
    torch.cuda.reset_peak_memory_stats()
    offsets = torch.arange(0, chunks + 1, CHUNKS_A_DOCUMENT, device=device)
    ids = torch.arange(len(offsets) - 1, device=device)
    order = document_order(ids)
    content = []
    for _ in range(layers if has_content else 0):
        content.append(torch.empty(chunks, 2, GROUPS, HEAD_DIM, dtype=torch.float8_e4m3fn, device=device))
        content[-1].view(torch.uint8).random_(0x7F)  # every byte below is a number
    keys = (_keys(int(offsets[-1]), layer, key_dtype, device) for layer in range(layers))
    parts = [Part(stored, offsets, ids, None, None, order) for stored in keys]
    torch.manual_seed(0)
    heads = torch.randn(1, TOKENS, HEADS, HEAD_DIM, device=device)
    folded, mask = router.fold_queries(heads, GROUPS), torch.ones(1, TOKENS, dtype=torch.bool, device=device)
    chosen = [route(folded, mask, [part], K) for part in parts]  # compiles
    timed, read = clock(device), torch.zeros(READ_BYTES, device=device)  # 2 GiB of float32
    seconds = sorted(timed(lambda: [route(folded, mask, [part], K) for part in parts]) for _ in range(TURNS))
    bandwidth = read.nbytes / statistics.median(timed(read.sum) for _ in range(TURNS))
    key_bytes, median = sum(part.keys.nbytes for part in parts), statistics.median(seconds)
    return {
        "status": "ok", "key_bytes": key_bytes, "content_bytes": sum(layer.nbytes for layer in content),
        "routing_s": median, "p90_s": seconds[int(0.9 * len(seconds))], "n": len(seconds),
        "bandwidth_bytes_per_s": bandwidth, "bandwidth_share": key_bytes / median / bandwidth,
        "attention_s": _attention(content, chosen, heads[:, -1:], timed) if content else "",
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "overlap_with_float32": _overlap(chosen[0].place[0], folded[0], parts[0]),
    }  # fmt: skip


def _attention(content: list[Tensor], chosen: list[Any], heads: Tensor, timed: Any) -> float:
    """Seconds of one new token's attention to the winners' chunks and 600 own tokens, all layers."""
    q, own = heads.bfloat16(), torch.randn(2, 1, 600, GROUPS, HEAD_DIM, device=heads.device).bfloat16()
    valid = torch.ones(1, 600, dtype=torch.bool, device=heads.device)
    scale = torch.tensor(FLOAT8_SCALE, device=heads.device)
    step = torch.arange(CHUNKS_A_DOCUMENT, device=heads.device)
    slots = [(one.place.unsqueeze(-1) * CHUNKS_A_DOCUMENT + step).flatten(1) for one in chosen]

    def run() -> None:
        for layer, chunks in zip(content, slots, strict=True):
            dispatch.attend_pieces(q, *own, valid, *layer.unbind(1), chunks, key_scales=scale, value_scales=scale)

    run()
    return statistics.median(timed(run) for _ in range(TURNS))


def _overlap(places: Tensor, folded: Tensor, part: Part) -> float:
    """Share of the first layer's chosen documents that float32 keys choose too, with scores in full float32."""
    torch.backends.cuda.matmul.allow_tf32 = False  # torch's default, but an environment variable may change it
    chunks = int(part.offsets[-1])
    keys = (drawn(chunks, 0, folded.device, start) for start in range(0, chunks, DRAWN))
    scores = [(folded.float() @ some.T).amax(0) for some in keys]
    best = torch.cat(scores).view(-1, CHUNKS_A_DOCUMENT).amax(1).topk(K).indices
    return float(torch.isin(places, best).float().mean())
