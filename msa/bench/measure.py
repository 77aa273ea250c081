"""Measures one cell: every peer in turn on the same tensors, A B A B, with the machine's ceilings in the same turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from msa.bench import peers
from msa.bench.cells import Cell, necessary

DEFICIT_TOKENS = 512  # of a cell: float64 over all chunks costs more than what is measured
MATMUL = 2048
READ_BYTES = 1 << 29  # between two calls of a cold cell too: more than a cache holds
CEILING_TURNS = 5
SLOW = 5  # times the seconds that a peer has: it is called once


def clock(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """Seconds of one call: perf_counter on a processor, events on a GPU."""

    def host(job: Callable[[], Any]) -> float:
        started = perf_counter()
        job()
        return perf_counter() - started

    def cuda(job: Callable[[], Any]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        job()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return cuda if device.type == "cuda" else host


def ceilings(device: torch.device) -> dict[str, tuple[Callable[[], Any], float]]:
    """Jobs that run into the machine's limits, each with its bytes or FLOPs: reading memory, and products of each dtype.

    A product's ceiling is the best of torch's and, on a processor, of this project's own loop over keys in the cache.
    """
    size = MATMUL if device.type == "cpu" else 8192
    read = torch.zeros(READ_BYTES // 4, device=device)
    found: dict[str, tuple[Callable[[], Any], float]] = {"bandwidth": (lambda: read.sum(), float(READ_BYTES))}
    for dtype in ("float32", "bfloat16", "int8"):
        if dtype == "int8":
            a = torch.randint(-9, 9, (size, size), dtype=torch.int8, device=device)
            found["int8"] = (lambda a=a: torch._int_mm(a, a.T), 2.0 * size**3)
        else:
            a = torch.randn(size, size, device=device).to(peers.TORCH[dtype])
            found[dtype] = (lambda a=a: a @ a.T, 2.0 * size**3)
        own = peers.own_rate(dtype) if device.type == "cpu" and dtype != "float32" else None
        if own is not None:
            found[f"{dtype} own"] = (own, 8 * 2.0 * 512 * 512 * 1024)
    return found


def rates(times: dict[str, list[float]], limits: dict[str, tuple[Callable[[], Any], float]]) -> dict[str, float]:
    """Bytes or FLOPs a second of the ceilings by their medians."""
    found = {name: work / statistics.median(times[name]) for name, (_, work) in limits.items()}
    return {name: max(rate, found.get(f"{name} own", 0.0)) for name, rate in found.items() if not name.endswith(" own")}


def _once(
    run: peers.Peer, device: torch.device, timed: Callable[[Callable[[], Any]], float]
) -> tuple[float, torch.Tensor, int | None]:
    """Seconds, result and extra bytes of one call."""
    kept: list[Any] = []
    extra = extra_bytes(lambda: kept.append(timed(lambda: kept.append(run()))), device)
    return kept[1], kept[0], extra


def extra_bytes(job: Callable[[], Any], device: torch.device) -> int | None:
    """How far memory rises while a job runs; None where that cannot be seen."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before
    status = Path("/proc/self/status")
    try:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = _status(status, "VmRSS")
        job()
        return max(0, _status(status, "VmHWM") - before)
    except OSError:
        job()
        return None


def _status(path: Path, field: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith(field))


def measure(cell: Cell, done: set[tuple[str, str]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a cell's peers that are not ``done``; options: device, threads, seconds a peer, repetitions, only."""
    torch.set_num_threads(options["threads"])
    device = torch.device(options["device"])
    task = peers.Task.random(cell.chunks, cell.batch, cell.question_tokens, device)
    timed, limits, rows, running, slow = clock(device), ceilings(device), [], {}, {}
    common = {
        "device": device.type, "threads": options["threads"], "context": cell.context, "chunks": cell.chunks,
        "question_tokens": cell.question_tokens, "batch": cell.batch, "cache": cell.cache,
    }  # fmt: skip
    for name, make in peers.ways(task, options["threads"], options["only"]).items():
        if name in done:
            continue
        row = common | dict(zip(("peer", "dtype"), name, strict=True))
        try:
            run = make()
            first, answer, extra = _once(run, device, timed)  # compiles, allocates
            estimate = first
            if first < SLOW * options["seconds"]:
                estimate, answer, extra = min(first, timed(run)), *_once(run, device, timed)[1:]
            count = max(1, DEFICIT_TOKENS // cell.question_tokens)
            row |= {"deficit": peers.deficit(task, answer, count), "extra_bytes": extra}
        except (RuntimeError, MemoryError) as error:
            rows.append(row | {"status": f"failed: {str(error).splitlines()[0][:120]}"})
            continue
        turns = max(1, min(options["repetitions"], int(options["seconds"] / estimate)))
        running[name] = row, run, 0 if estimate >= SLOW * options["seconds"] else turns
        slow[name] = first
    times: dict[Any, list[float]] = {name: [] for name in (*running, *limits)}
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
    for name, (_, _, count) in running.items():
        if not count:  # so slow that its one call is the measurement
            times[name].append(slow[name])
    ceiling = rates(times, limits) if running else {}
    return rows + [row | _figures(cell, name[1], sorted(times[name]), ceiling) for name, (row, _, _) in running.items()]


def _figures(cell: Cell, dtype: str, seconds: list[float], ceiling: dict[str, float]) -> dict[str, Any]:
    """The measured columns of a row."""
    median = statistics.median(seconds)
    read, flops = necessary(cell, dtype)
    matmul = ceiling.get(dtype.split(",")[0], ceiling["bfloat16"])
    return {
        "status": "ok",
        "median_s": median,
        "p90_s": seconds[min(len(seconds) - 1, int(0.9 * len(seconds)))],
        "n": len(seconds),
        "necessary_bytes": read,
        "flops": flops,
        "bandwidth_bytes_per_s": ceiling["bandwidth"],
        "matmul_flops_per_s": matmul,
        "bandwidth_share": read / median / ceiling["bandwidth"],
        "matmul_share": flops / median / matmul,
    }
