"""The grid of cells, and how one is measured: peers in turn on the same tensors, the machine's ceilings between them.

A cell has a process of its own, so that its memory, caches and compiled code are its own too.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import torch

from msa.bench import peers

POOL_TOKENS = 64  # of the paper's model: tokens of a chunk
# of a chunk: float32 twice (FAISS copies), bfloat16, int8 twice, room to make them
KEY_BYTES = 1024 * (4 + 4 + 2 + 1 + 1 + 4)
CONTEXTS = {"16K": 16_384, "128K": 131_072, "1M": 1_000_000, "10M": 10_000_000, "100M": 100_000_000}
COLUMNS = (
    "device", "threads", "context", "chunks", "question_tokens", "batch", "cache", "peer", "dtype", "status",
    "median_s", "p90_s", "n", "necessary_bytes", "flops", "bandwidth_bytes_per_s", "matmul_flops_per_s",
    "bandwidth_share",
    "matmul_share", "deficit", "extra_bytes",
)  # fmt: skip
DEFICIT_TOKENS = 512  # of a cell: float64 over all chunks costs more than what is measured
MATMUL = 2048
READ_BYTES = 1 << 29  # between two calls of a cold cell too: more than a cache holds
CEILING_TURNS = 5
WRONG = 0.01  # a deficit that no rounding explains: int8 moves a score by less than 0.001
SLOW = 5  # times the seconds that a peer has: it is called once
Job = Callable[[], Any]
Clock = Callable[[Job], float]


@dataclass(frozen=True)
class BenchCase:
    """What one process measures; ``batch``: questions at once; ``cache``: warm, or cold (other memory was read)."""

    context: str
    question_tokens: int
    batch: int
    cache: str

    @property
    def chunks(self) -> int:
        """Chunks of the context."""
        return CONTEXTS[self.context] // POOL_TOKENS


def grid(full: bool, quick: bool, free_bytes: int) -> list[BenchCase]:
    """The cells of a run, the headline first.

    Args:
        full: every combination; else one question of 32 tokens at every context, every batch at 1M.
        quick: one small cell, cold and warm.
        free_bytes: contexts whose keys, in every precision side by side, take more are left out.
    """
    if quick:
        return [BenchCase("16K", 32, 1, cache) for cache in ("cold", "warm")]
    contexts = [name for name, tokens in CONTEXTS.items() if tokens // POOL_TOKENS * KEY_BYTES <= free_bytes]
    sizes = [(tokens, batch) for batch in (1, 8, 64) for tokens in (32, 256)]
    cells = [BenchCase("1M", 32, 1, "cold"), BenchCase("1M", 32, 1, "warm")]
    cells += [BenchCase(name, 32, 1, cache) for name in contexts for cache in ("cold", "warm")]
    cells += [BenchCase("1M", tokens, batch, "cold") for tokens, batch in sizes]
    if full:
        cells += [BenchCase(name, *size, cache) for name in contexts for size in sizes for cache in ("cold", "warm")]
    return [cell for cell in dict.fromkeys(cells) if cell.context in contexts]


def necessary(cell: BenchCase, dtype: str) -> tuple[int, int]:
    """Bytes that have to be read once and FLOPs that have to be done for one layer."""
    size = {"float32": 4, "bfloat16": 2}.get(dtype, 1)
    scales = 4 * cell.chunks if dtype.startswith("int8") else 0
    tokens = cell.batch * cell.question_tokens
    return cell.chunks * 1024 * size + scales + tokens * 1024 * 4, 2 * tokens * cell.chunks * 1024


def in_process(cell: BenchCase, done: set[tuple[str, str]], options: dict[str, Any]) -> list[dict[str, Any]] | int:
    """What :func:`measure` gives in a process of its own; the exit code where it died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(cell, done, options, sender))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = None
    child.join()
    return child.exitcode if found is None else found


def _child(cell: BenchCase, done: set[tuple[str, str]], options: dict[str, Any], sender: Connection) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(options["threads"])  # of maxsim-cpu, which has no argument for it
    Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    sender.send(measure(cell, done, options))


def _leave_with(parent: Any) -> None:
    """A cell that nobody waits for would slow down what is measured next."""
    parent.join()
    os._exit(1)


def clock(device: torch.device) -> Clock:
    """Seconds of one call: perf_counter on a processor, events on a GPU."""

    def host(job: Job) -> float:
        started = perf_counter()
        job()
        return perf_counter() - started

    def cuda(job: Job) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        job()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return cuda if device.type == "cuda" else host


def repeated(jobs: dict[Any, Job], repetitions: int) -> dict[Any, list[float]]:
    """Seconds on a processor of jobs run in turns, after one turn to warm up."""
    timed = clock(torch.device("cpu"))
    turns = [{name: timed(job) for name, job in jobs.items()} for _ in range(repetitions + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in jobs}


def ceilings(device: torch.device) -> dict[str, tuple[Job, float]]:
    """Jobs that run into the machine's limits, each with its bytes or FLOPs: reading memory, products of each dtype.

    A product's ceiling is the best of torch's and, on a processor, of this project's own loop over keys in the cache.
    """
    size = MATMUL if device.type == "cpu" else 8192
    read = torch.zeros(READ_BYTES // 4, device=device)
    found: dict[str, tuple[Job, float]] = {"bandwidth": (read.sum, float(READ_BYTES))}
    for dtype, kept in peers.TORCH.items():
        a = torch.randn(size, size, device=device).to(kept)
        found[dtype] = (lambda a=a: a @ a.T, 2.0 * size**3)
    a = torch.randint(-9, 9, (size, size), dtype=torch.int8, device=device)
    found["int8"] = (lambda a=a: torch._int_mm(a, a.T), 2.0 * size**3)
    for dtype in ("bfloat16", "int8") if device.type == "cpu" else ():
        if own := peers.own_rate(dtype):
            found[f"{dtype} own"] = (own, 8 * 2.0 * 512 * 512 * 1024)
    return found


def rates(times: dict[str, list[float]], limits: dict[str, tuple[Job, float]]) -> dict[str, float]:
    """Bytes or FLOPs a second of the ceilings by their medians."""
    found = {name: work / statistics.median(times[name]) for name, (_, work) in limits.items()}
    return {name: max(rate, found.get(f"{name} own", 0.0)) for name, rate in found.items() if not name.endswith(" own")}


def _once(run: peers.Peer, device: torch.device, timed: Clock) -> tuple[float, torch.Tensor, int | None]:
    """Seconds, result and extra bytes of one call."""
    kept: list[Any] = []
    extra = extra_bytes(lambda: kept.append(timed(lambda: kept.append(run()))), device)
    return kept[1], kept[0], extra


def extra_bytes(job: Job, device: torch.device) -> int | None:
    """How far memory rises while a job runs; None where that cannot be seen."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        job()
        return max(0, _status("VmHWM") - before)
    except OSError:
        job()
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(cell: BenchCase, done: set[tuple[str, str]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a cell's peers that are not ``done``; options: device, threads, seconds a peer, repetitions, only."""
    torch.set_num_threads(options["threads"])
    device = torch.device(options["device"])
    task = peers.Task.random(cell.chunks, cell.batch, cell.question_tokens, device)
    timed, limits, rows, running = clock(device), ceilings(device), [], {}
    times: dict[Any, list[float]] = {name: [] for name in limits}
    common = {"device": device.type, "threads": options["threads"], "chunks": cell.chunks} | asdict(cell)
    for name, make in peers.ways(task, options["threads"], options["only"]).items():
        if name in done:
            continue
        row = common | dict(zip(("peer", "dtype"), name, strict=True))
        try:
            run = make()
            first, answer, extra = _once(run, device, timed)  # compiles, allocates
            slow = first >= SLOW * options["seconds"]  # then its one call is the measurement
            if not slow:
                estimate, answer, extra = min(first, timed(run)), *_once(run, device, timed)[1:]
            count = max(1, DEFICIT_TOKENS // cell.question_tokens)
            row |= {"deficit": peers.deficit(task, answer, count), "extra_bytes": extra}
            if row["deficit"] > WRONG:
                raise RuntimeError(f"a document that it chose scores {row['deficit']:.3f} below the right ones")
        except peers.NotMeasured as error:
            rows.append(row | {"status": f"not measured: {error}"})
            continue
        except (RuntimeError, MemoryError) as error:
            rows.append(row | {"status": f"failed: {str(error).splitlines()[0][:120]}"})
            continue
        times[name] = [first] if slow else []
        turns = 0 if slow else max(1, min(options["repetitions"], int(options["seconds"] / estimate)))
        running[name] = row, run, turns
    evict = limits["bandwidth"][0] if cell.cache == "cold" else None
    for turn in range(max((count for _, _, count in running.values()), default=0)):
        for name, (_, run, count) in running.items():
            if turn < count:
                if evict:
                    evict()
                times[name].append(timed(run))
        for name, (job, _) in limits.items():
            if turn < CEILING_TURNS:
                times[name].append(timed(job))
    ceiling = rates(times, limits) if running else {}
    return rows + [row | _figures(cell, name[1], sorted(times[name]), ceiling) for name, (row, _, _) in running.items()]


def _figures(cell: BenchCase, dtype: str, seconds: list[float], ceiling: dict[str, float]) -> dict[str, Any]:
    """The measured columns of a row."""
    median = statistics.median(seconds)
    read, flops = necessary(cell, dtype)
    matmul = ceiling.get(dtype.split(",")[0], ceiling["bfloat16"])
    return {
        "status": "ok", "median_s": median, "p90_s": seconds[int(0.9 * len(seconds))], "n": len(seconds),
        "necessary_bytes": read, "flops": flops,
        "bandwidth_bytes_per_s": ceiling["bandwidth"], "bandwidth_share": read / median / ceiling["bandwidth"],
        "matmul_flops_per_s": matmul, "matmul_share": flops / median / matmul,
    }  # fmt: skip
