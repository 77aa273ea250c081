"""Measure one system's latency and memory, alone and one question at a time.

    python -m baselines.measure --profile tiny --system rag_bm25

The profile's ``latency`` names the task and the questions. Each context gets a process of its own, so that its peak
memory is its own; the first question warms up and does not count. Writes latency.json (results/README.md).
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from baselines.base import CellStatus, load_module
from baselines.planner import refuse_cell
from baselines.race import Cell, Race, spread
from baselines.supervise import CONTEXT, KILLED, in_child
from configs.errors import run_command
from configs.load import DIRECTORY, LatencySpec, load
from configs.paths import Paths
from configs.records import Answer


@dataclass(frozen=True)
class Measurement:
    """What a child reports of one context; times in seconds."""

    status: str
    reason: str = ""
    numbers: dict[str, Any] | None = None


def main() -> int:
    """Measure every context and write latency.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--system", required=True, help="an entry of systems.yaml")
    parser.add_argument("--threads", type=int, help="CPU threads (default: those of the profile's `latency`)")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results stand (default: results)")
    chosen = parser.parse_args()
    experiment = load(chosen.profile, chosen.configs)
    latency = LatencySpec(**experiment.profile.latency)
    race = Race(
        experiment,
        Paths.of(chosen.profile, chosen.results),
        chosen.system,
        latency.task,
        chosen.threads or latency.threads,
    )
    preload(race)
    contexts: dict[str, Any] = {}
    for cell in race.cells[: len(experiment.profile.contexts)]:
        receiver, sender = CONTEXT.Pipe(duplex=False)
        code = in_child(measure_cell, race, cell, latency.questions, sender)
        if code == KILLED:
            found = Measurement("out_of_memory", "the process was killed (signal 9)")
        elif code != 0:
            return code
        else:
            found = receiver.recv()
        contexts[cell.context] = {
            "context_tokens": race.context_tokens(cell),
            "status": found.status,
            "reason": found.reason,
            **(found.numbers or {}),
        }
    return in_child(write_latency, race, contexts)


def preload(race: Race) -> None:
    """Import once what every context's process would import again; it counts in the memory of each all the same."""
    load_module(race.spec.kind, f"systems.yaml: systems: {race.system}")
    if race.spec.model is not None:
        importlib.import_module("torch")


def measure_cell(race: Race, cell: Cell, count: int, sender: Any) -> None:
    """Measure one context in this process and send a :class:`Measurement`."""
    from baselines.run import expected_failure

    try:
        sender.send(Measurement("ok", numbers=measure(race, cell, count)))
    except (CellStatus, MemoryError, RuntimeError) as error:
        failure = expected_failure(error)
        sender.send(Measurement(failure.status, failure.reason))


def measure(race: Race, cell: Cell, count: int) -> dict[str, Any]:
    """Answer a warm-up and ``count`` questions one by one; medians and 90th percentiles."""
    from baselines.provenance import peak_device_bytes, peak_host_bytes
    from baselines.run import index_bytes, open_cell
    from configs.tables import read_corpus

    refuse_cell(race, cell, count + 1)
    start_s = perf_counter()
    gold: dict[str, list[int]] = {}
    view, questions = open_cell(race, cell, read_corpus(race.corpus), gold)
    warm_up, *timed = spread(questions, count + 1)
    read_s = perf_counter() - start_s
    system = race.open(cell.seed, gold)
    system.check_context(race.context_tokens(cell))
    open_s = perf_counter() - start_s - read_s
    system.ingest(view)
    ingest_s = perf_counter() - start_s - read_s - open_s
    system.answer([warm_up], view)
    answers = [system.answer([question], view)[0] for question in timed]
    numbers = {
        "n": len(answers),
        "open_s": open_s,
        "ingest_s": ingest_s,
        **timings(answers),
        "index_bytes": index_bytes(race, system, view),
        "kernels": system.kernels(),
        "peak_host_bytes": peak_host_bytes(),
        "peak_device_bytes": peak_device_bytes(),
    }
    system.close()
    return numbers


def timings(answers: list[Answer]) -> dict[str, Any]:
    """Median and 90th percentile of first token and total, median of each stage, where a question without it counts 0."""
    stages = sorted({stage for answer in answers for stage in answer.stage_s})
    return {
        "first_token_s": quantiles([answer.first_token_s for answer in answers]),
        "total_s": quantiles([answer.total_s for answer in answers]),
        "stage_s": {
            stage: quantiles([answer.stage_s.get(stage, 0.0) for answer in answers])["median"] for stage in stages
        },
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 90th percentile."""
    import numpy as np

    median, p90 = np.quantile(values, [0.5, 0.9])
    return {"median": float(median), "p90": float(p90)}


def write_latency(race: Race, contexts: dict[str, Any]) -> None:
    """Write latency.json with where its numbers come from."""
    from baselines.provenance import hardware, versions
    from configs.tables import write_json

    record = {
        "profile": race.experiment.name,
        "system": race.system,
        "task": race.task,
        "threads": race.threads,
        "batch": 1,
        "contexts": contexts,
        "inputs": race.system_inputs,
        "versions": versions(),
        "hardware": hardware(),
    }
    write_json(record, race.paths.latency(race.system))


if __name__ == "__main__":
    run_command(main)
