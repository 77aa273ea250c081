"""Measures routing and the whole engine against what could be used instead; writes CSV, goes on after an interruption.

    python -m msa.bench                              about ten minutes on two cores; `make bench` draws the roofline
    python -m msa.bench --quick                      one small cell, half a minute
    python -m msa.bench --full --seconds 5           every context, batch and question length
    python -m msa.bench --only ours --out /tmp/mine  some peers alone
    python -m msa.bench --gpu                        checks every kernel, measures, writes under reports/bench/

Each row of routing.csv is one peer in one dtype on one cell; rows that are there are not measured again (delete the
file to start afresh). Each cell has a process of its own in which peers take turns. engine.csv is the whole engine with
a trained model and bank. `make bench ISA=avx2` measures as on a processor without AVX-512 and AMX. A library that is
not installed (pip install -e '.[suite,peers]') stands there as "not measured".
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
from tqdm import tqdm

from msa.bench import engine, gpu
from msa.bench.measure import COLUMNS, BenchCase, grid, in_process
from msa.bench.rows import read, write
from msa.ops import check, dispatch
from msa_base.errors import UserError, run_command
from msa_base.machine import processor
from msa_base.options import add_number, add_threads, given_path
from msa_base.tables import write_json

SHARE = 0.5  # of free memory


def routing(cells: list[BenchCase], out: Path, options: dict[str, Any]) -> None:
    """Measure every cell that has rows missing and write them as each cell ends."""
    rows: list[dict[str, Any]] = read(out, COLUMNS)
    bar = tqdm(cells, desc="routing", unit="cell")
    for cell in bar:
        mine = {column: str(value) for column, value in asdict(cell).items()}
        here = [row for row in rows if mine.items() <= row.items()]
        again = [row for row in here if row["peer"] == "all" or row["status"].startswith("not measured")]
        rows = [row for row in rows if row not in again]
        done = {(row["peer"], row["dtype"]) for row in here if row not in again}
        bar.set_postfix_str(f"{cell.context}, {cell.batch} x {cell.question_tokens} tokens, {cell.cache}")
        found = in_process(cell, done, options)
        if isinstance(found, int):
            if found > 0:
                raise UserError(f"the measurement of {cell} failed; its own message stands above")
            status = f"killed by signal {-found}" + (", as when memory runs out" if found == -9 else "")
            found = [{**mine, "chunks": cell.chunks, "peer": "all", "status": status}]
        rows += [{column: str(row.get(column, "")) for column in COLUMNS} for row in found]
        write(out, rows, COLUMNS)


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    own = processor()
    name = torch.cuda.get_device_name(0) if device == "cuda" else own
    kernels = dispatch.chosen(torch.empty(1, 1024, dtype=torch.bfloat16, device=device))
    return {
        "name": name, "processor": own, "threads": threads, "torch": torch.__version__, "kernels": kernels,
    }  # fmt: skip


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(
        prog="python -m msa.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small cell")
    parser.add_argument("--full", action="store_true", help="every combination of context, batch and question length")
    parser.add_argument("--gpu", action="store_true", help="check, then measure on a GPU")
    parser.add_argument("--only", default="", help="peers and dtypes whose names contain this, such as 'ours int8'")
    add_number(
        parser,
        "--seconds",
        None,
        "time for each peer of a cell (default: 1.5; 0.2 with --quick)",
        least=1e-3,
        most=1e6,
        kind=float,
    )
    add_number(parser, "--repetitions", None, "turns at most (default: 15; 3 with --quick)")
    cores = psutil.cpu_count(logical=False) or 1
    add_threads(parser, cores, "CPU threads (default: every core)")
    model, bank = Path("results/tiny/_models/msa"), Path("results/tiny/_indexes/bank/facts")
    parser.add_argument("--model", type=given_path, default=model, help="trained model of the engine's rows")
    parser.add_argument("--bank", type=given_path, default=bank, help="and its bank")
    parser.add_argument("--out", type=given_path, help="directory (default: results/bench or reports/bench/HARDWARE)")
    chosen = parser.parse_args()
    if chosen.gpu:
        return _on_gpu(chosen)
    out = chosen.out or Path("results/bench")
    _measure(chosen, "cpu", out, int(psutil.virtual_memory().available * SHARE))
    started = perf_counter()
    if (chosen.model / "config.json").exists() and (chosen.bank / "bank.json").exists():
        rows = engine.measure(chosen.model, chosen.bank, chosen.threads, 3 if chosen.quick else 16)
        write(out / "engine.csv", rows, engine.COLUMNS)
        print(f"{out / 'engine.csv'}: {len(rows)} rows ({perf_counter() - started:.0f} s)")
    else:
        print(f"engine: not measured, no {chosen.model} or {chosen.bank} (make reproduce, or --model and --bank)")
    return 0


def _measure(chosen: argparse.Namespace, device: str, out: Path, free_bytes: int) -> None:
    started = perf_counter()
    options = {
        "device": device, "threads": chosen.threads, "only": chosen.only,
        "seconds": chosen.seconds or (0.2 if chosen.quick else 1.5),
        "repetitions": chosen.repetitions or (3 if chosen.quick else 15),
    }  # fmt: skip
    write_json(machine(device, chosen.threads), out / "machine.json")
    routing(grid(chosen.full, chosen.quick, free_bytes), out / "routing.csv", options)
    print(f"{out / 'routing.csv'} ({perf_counter() - started:.0f} s)")


def _on_gpu(chosen: argparse.Namespace) -> int:
    """Check every kernel against its oracle; only then measure."""
    if not torch.cuda.is_available():
        raise UserError("--gpu: torch finds no CUDA device here; run it where there is one")
    if check.run_cases(torch.device("cuda")):
        return 1
    name = torch.cuda.get_device_name(0)
    out = chosen.out or Path("reports/bench") / "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    _measure(chosen, "cuda", out, int(torch.cuda.mem_get_info()[0] * SHARE))
    rows = gpu.measure(quick=chosen.quick)
    write(out / "gpu.csv", rows, gpu.COLUMNS)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    run_command(main)
