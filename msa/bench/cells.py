"""What is measured: the grid of contexts, question tokens and batches, and the columns of a row."""

from __future__ import annotations

from dataclasses import dataclass

POOL_TOKENS = 64  # of the paper's model: tokens of a chunk
KEY_BYTES = 1024 * (4 + 4 + 2 + 1 + 1 + 4)  # a chunk: float32 twice (FAISS copies), bfloat16, int8 twice, room to make them
CONTEXTS = {"16K": 16_384, "128K": 131_072, "1M": 1_000_000, "10M": 10_000_000, "100M": 100_000_000}
COLUMNS = (
    "device", "threads", "context", "chunks", "question_tokens", "batch", "cache", "peer", "dtype", "status",
    "median_s", "p90_s", "n", "necessary_bytes", "flops", "bandwidth_bytes_per_s", "matmul_flops_per_s", "bandwidth_share",
    "matmul_share", "deficit", "extra_bytes",
)  # fmt: skip
KEY = ("context", "question_tokens", "batch", "cache", "peer", "dtype")


@dataclass(frozen=True)
class Cell:
    """One process: a context, questions of so many tokens, so many at once; ``cache``: cold (other memory was read before) or warm."""

    context: str
    question_tokens: int
    batch: int
    cache: str

    @property
    def chunks(self) -> int:
        """Chunks of the context."""
        return CONTEXTS[self.context] // POOL_TOKENS


def grid(full: bool, quick: bool, free_bytes: int) -> list[Cell]:
    """The cells of a run, the headline first.

    Args:
        full: every combination; else one question of 32 tokens at every context, every batch at 1M.
        quick: one small cell, cold and warm.
        free_bytes: contexts whose keys, in every precision side by side, take more are left out.
    """
    if quick:
        return [Cell("16K", 32, 1, cache) for cache in ("cold", "warm")]
    contexts = [name for name, tokens in CONTEXTS.items() if tokens // POOL_TOKENS * KEY_BYTES <= free_bytes]
    sizes = [(tokens, batch) for batch in (1, 8, 64) for tokens in (32, 256)]
    cells = [Cell("1M", 32, 1, "cold"), Cell("1M", 32, 1, "warm")]
    cells += [Cell(name, 32, 1, cache) for name in contexts for cache in ("cold", "warm")]
    cells += [Cell("1M", tokens, batch, "cold") for tokens, batch in sizes]
    if full:
        cells += [Cell(name, *size, cache) for name in contexts for size in sizes for cache in ("cold", "warm")]
    return [cell for cell in dict.fromkeys(cells) if cell.context in contexts]


def necessary(cell: Cell, dtype: str) -> tuple[int, int]:
    """Bytes that have to be read once and FLOPs that have to be done for one layer."""
    size = {"float32": 4, "bfloat16": 2}.get(dtype, 1)
    scales = 4 * cell.chunks if dtype.startswith("int8") else 0
    tokens = cell.batch * cell.question_tokens
    return cell.chunks * 1024 * size + scales + tokens * 1024 * 4, 2 * tokens * cell.chunks * 1024
