"""How fast each stage of a workflow works, in runs of one kernel that the same call measures: figures of any machine.

    python -m msa.bench.workflow --profile smoke --results results/bench    what `make bench-workflow` does
    python -m msa.bench.workflow --profile tiny                             reads a finished run, or goes on with it

A row of workflow.csv is one job: its seconds as Snakemake notes them, the seconds of the work itself where the stage
records them (train.jsonl, index.json, run.json), and what it made. What is left of a job is start-up: importing,
opening, writing. The kernel is a float32 product on one core. Rows that are there stay: delete the file, and what lies
below --results, to start afresh.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow.parquet as pq
import torch

from msa.bench.measure import MATMUL, repeated
from msa.bench.rows import read, write
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.json_lines import read_json_lines
from msa_base.load import Experiment
from msa_base.machine import processor
from msa_base.options import given_path
from msa_base.paths import Paths
from msa_base.stage_records import IndexRecord, LatencyRecord, RunRecord

COLUMNS = (
    "profile", "stage", "job", "status", "seconds", "work_s", "unit", "count", "units_per_s", "kernel_s",
    "kernels_per_unit", "kernel_of", "cores", "processor", "ended",
)  # fmt: skip
METADATA = Path(".snakemake", "metadata")  # of the working directory: a JSON file for each output of a job
# commands whose start-up is timed, by asking for their help
STARTED = ("tasks.stages.score", "baselines.drivers.run", "msa.training.train", "reports.build")
KERNEL_TURNS = 5
START_TURNS = 3


class Work(NamedTuple):
    """What a job made, and the seconds that its stage recorded of it."""

    unit: str
    count: int
    seconds: float | None = None


class NotedJob(NamedTuple):
    """A job as Snakemake noted it; ``name`` is that of its log, as ``run.msa.two_hop``; seconds since the epoch."""

    name: str
    start_s: float
    end_s: float


def noted(logs: Path, metadata: Path = METADATA) -> Iterator[NotedJob]:
    """The jobs whose logs are in a directory, the first to end first; one with several outputs counts once."""
    found = {}
    for path in metadata.rglob("*"):
        content = json.loads(path.read_text()) if path.is_file() else {}
        log = Path((content.get("log") or [""])[0])
        if log.parent == logs and content.get("endtime"):
            found[log.stem] = NotedJob(log.stem, content["starttime"], content["endtime"])
    yield from sorted(found.values(), key=lambda job: job.end_s)


def work(name: str, experiment: Experiment, paths: Paths) -> Work:
    """What the job with such a log made, by the records of its stage; a UserError or OSError where one is missing."""
    contexts, cells = experiment.profile.contexts, list(product(experiment.profile.contexts, experiment.profile.seeds))
    match _parts(name, experiment):
        case ["train", model]:
            steps = [step for _, step in read_json_lines(paths.model(model) / "train.jsonl")]
            trained = sum(step.get("tokens", 0) for step in steps)
            return Work("token", trained, steps[-1].get("seconds")) if trained else Work("step", len(steps))
        case ["samples", samples]:
            return Work("sample", _rows(paths.samples(samples) / "samples.parquet"))
        case ["corpus", corpus]:
            return Work("document", _rows(paths.corpus(corpus)))
        case ["prepare", task]:
            return Work("question", sum(_rows(paths.prepared(task, it) / "questions.parquet") for it in contexts))
        case ["index", index, corpus]:
            record = IndexRecord.read(paths.index(index, corpus) / "index.json")
            return Work("document", _rows(paths.corpus(corpus)), record.build_s)
        case ["run", system, task]:
            records = [RunRecord.read(paths.cell(system, task, *cell) / "run.json") for cell in cells]
            return Work("answer", sum(it.n or 0 for it in records), sum(it.wall_s or 0.0 for it in records))
        case ["latency", system]:
            measured = LatencyRecord.read(paths.latency(system)).contexts.values()
            return Work("answer", sum(context.n or 0 for context in measured))
        case ["score", system, task]:
            tables = [paths.cell(system, task, *cell) / "scores.parquet" for cell in cells]
            return Work("answer", sum(_rows(table) for table in tables if table.exists()))
        case _:
            return Work("job", 1)


def _parts(name: str, experiment: Experiment) -> list[str]:
    """A rule and its wildcards, which may have dots, from the name of a log."""
    stage, _, rest = name.partition(".")
    known = {"run": experiment.tasks, "score": experiment.tasks, "index": experiment.corpora}.get(stage, ())
    last = max((it for it in known if rest.endswith(f".{it}")), key=len, default=None)
    return [stage, rest] if last is None else [stage, rest.removesuffix(f".{last}"), last]


def _rows(table: Path) -> int:
    return pq.read_metadata(table).num_rows


def kernel() -> list[float]:
    """Seconds of each of some float32 products on one core."""
    threads, factor = torch.get_num_threads(), torch.randn(MATMUL, MATMUL)
    torch.set_num_threads(1)
    try:
        return repeated({"kernel": lambda: factor @ factor.T}, KERNEL_TURNS)["kernel"]
    finally:
        torch.set_num_threads(threads)


def start(module: str) -> None:
    """Start a command to no purpose."""
    subprocess.run([sys.executable, "-m", module, "--help"], check=True, capture_output=True)


def row(name: str, seconds: float, done: Work | Exception, kernel_s: float) -> dict[str, Any]:
    """The measured columns of a job; of one that went on with what another had done, a status in their place."""
    found = {"stage": name.split(".")[0], "job": name, "seconds": seconds, "kernel_s": kernel_s}
    if isinstance(done, Exception):
        return {**found, "status": f"not measured: {done}"}
    found |= {"work_s": done.seconds, "unit": done.unit, "count": done.count}
    if not done.count:
        return {**found, "status": "not measured: it made nothing"}
    if (done.seconds or 0.0) > seconds:
        return {**found, "status": "not measured: an earlier job did a part of it"}
    per_unit = seconds / done.count
    return {**found, "status": "ok", "units_per_s": 1 / per_unit, "kernels_per_unit": per_unit / kernel_s}


def run(places: list[str]) -> int:
    """Run the workflow; its exit code."""
    return subprocess.run([sys.executable, "-m", "msa_base.workflow", *places]).returncode


def measure(chosen: Namespace) -> list[dict[str, Any]] | int:
    """Run the workflow between two measurements of the kernel; a row a job, or the code that it failed with."""
    experiment, paths = open_experiment(chosen)
    began_s, before = time.time(), kernel()
    places = ["--profile", chosen.profile, "--results", str(chosen.results), "--configs", str(chosen.configs)]
    places += ["--systems", chosen.systems, *(["--data", chosen.data] if chosen.data else [])]
    if code := run(places):
        return code
    after = kernel()
    first, last = statistics.median(before), statistics.median(after)
    kernel_s = statistics.median(before + after)
    print(f"kernel: {first:.3f} s before, {last:.3f} s after" + ("; not quiet" if abs(last / first - 1) > 0.2 else ""))
    rows = []
    for job in noted(paths.root / "_logs"):
        ended = {"ended": datetime.fromtimestamp(job.end_s, UTC).isoformat(timespec="seconds")}
        when = {"kernel_of": "same run" if job.start_s >= began_s else "later"}
        try:
            done: Work | Exception = work(job.name, experiment, paths)
        except (UserError, OSError) as error:  # of an entry that is no longer there
            done = error
        rows.append(row(job.name, job.end_s - job.start_s, done, kernel_s) | ended | when)
    if not rows:
        raise UserError(f"{METADATA.resolve()}: notes no job of {paths.root}; start where the workflow ran")
    spent = repeated({module: lambda module=module: start(module) for module in STARTED}, START_TURNS)
    now = {"kernel_of": "same run", "ended": datetime.now(UTC).isoformat(timespec="seconds")}
    rows += [row(f"start.{it}", statistics.median(spent[it]), Work("process", 1), kernel_s) | now for it in STARTED]
    machine = {"cores": psutil.cpu_count(logical=False) or 1, "processor": processor(), "profile": experiment.name}
    return [{column: str(found.get(column, "")) for column in COLUMNS} for found in (each | machine for each in rows)]


def merged(rows: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of earlier calls and new ones: a job that did not run again keeps its row, and its kernel."""
    kept = {(it["profile"], it["job"]): it for it in rows}
    for it in found:
        before = kept.get((it["profile"], it["job"]))
        if before is None or before["ended"] != it["ended"]:
            kept[it["profile"], it["job"]] = it
    return list(kept.values())


def main() -> int:
    """Run, read, write."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--systems", default="main", help="main (default), all, or names with commas between")
    parser.add_argument("--out", type=given_path, default="results/bench", help="directory (default: results/bench)")
    chosen = parser.parse_args()
    out = chosen.out / "workflow.csv"
    earlier = read(out, COLUMNS)  # a file of another version is said before anything runs
    found = measure(chosen)
    if isinstance(found, int):
        return found
    write(out, merged(earlier, found), COLUMNS)
    print(f"{out}: {len(found)} jobs")
    return 0


if __name__ == "__main__":
    run_command(main)
