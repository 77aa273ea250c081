"""Measure one system's latency and memory, alone and one question at a time.

    python -m baselines.drivers.measure --profile tiny --system rag_bm25

The profile's ``latency`` names the task and the questions. Each context gets a process of its own, so that its peak
memory is its own; the first question warms up and does not count. Writes latency.json (results/README.md).
"""

from __future__ import annotations

import importlib
from time import perf_counter
from typing import Any

from baselines.base import CellStatus, planned_failure
from baselines.drivers.evaluation import Cell, Evaluation
from baselines.drivers.provenance import peak_device_bytes, peak_host_bytes
from baselines.drivers.questions import open_cell, spread
from baselines.drivers.run import index_bytes
from baselines.drivers.supervise import OutOfMemory, expected_failure, in_child
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import run_command
from msa_base.options import add_threads
from msa_base.records import Answer
from msa_base.stage_records import ContextLatency, LatencyRecord
from msa_base.stages import Stages
from msa_base.tables import read_corpus


def main() -> None:
    parser = experiment_parser(__doc__, system="an entry of systems.yaml")
    add_threads(parser, None, "CPU threads (default: those of the profile's `latency`)")
    chosen = parser.parse_args()
    experiment, paths = open_experiment(chosen)
    latency = experiment.profile.latency
    evaluation = Evaluation(experiment, paths, chosen.system, latency.task, chosen.threads or latency.threads)
    cells = evaluation.cells[: len(experiment.profile.contexts)]
    data = {name: digest for cell in cells for name, digest in evaluation.made_from(cell).data.items()}
    made_from = Stages(experiment).latency(chosen.system).model_copy(update={"data": data})
    before = LatencyRecord.current(paths.latency(chosen.system), made_from)
    contexts = {name: found for name, found in before.contexts.items() if not found.refused} if before else {}
    if before and len(contexts) == len(cells):
        return
    refused = in_child(evaluation.refused_contexts, latency.questions + 1)
    # imported once, what every context's process would import again; it counts in the memory of each all the same
    _ = evaluation.plugin
    if evaluation.spec.model is not None:
        importlib.import_module("torch")
    for cell in cells:
        if cell.context in contexts:
            continue
        if cell.context in refused:
            found = planned_failure(*refused[cell.context]).outcome
        else:
            try:
                found = in_child(measure_cell, evaluation, cell, latency.questions)
            except OutOfMemory as failure:
                found = CellStatus("out_of_memory", str(failure)).outcome
        contexts[cell.context] = ContextLatency(context_tokens=evaluation.view(cell).context_tokens, **found)
    record = LatencyRecord(made_from=made_from, contexts=contexts, **evaluation.described)
    record.write(paths.latency(chosen.system))


def measure_cell(evaluation: Evaluation, cell: Cell, count: int) -> dict[str, Any]:
    """Measure one context in this process; the fields of its :class:`ContextLatency`."""
    try:
        return {"status": "ok", **measure(evaluation, cell, count)}
    except Exception as error:
        return expected_failure(error).outcome


def measure(evaluation: Evaluation, cell: Cell, count: int) -> dict[str, Any]:
    """Answer a warm-up and ``count`` questions one by one; medians and 90th percentiles."""
    start_s = perf_counter()
    gold: dict[str, list[int]] = {}
    prepared = evaluation.paths.prepared(evaluation.task, cell.context)
    view, questions = open_cell(prepared, evaluation.spec, read_corpus(evaluation.corpus), gold)
    warm_up, *timed = spread(questions, count + 1)
    read_s = perf_counter() - start_s
    system = evaluation.open(cell.seed, gold)
    system.check_context(evaluation.view(cell).context_tokens)
    open_s = perf_counter() - start_s - read_s
    system.ingest(view)
    ingest_s = perf_counter() - start_s - read_s - open_s
    system.answer([warm_up], view)
    # a cell of one question times its second answer to it
    answers = [system.answer([question], view)[0] for question in timed or [warm_up]]
    numbers = {
        "n": len(answers),
        "open_s": open_s,
        "ingest_s": ingest_s,
        **timings(answers),
        "index_bytes": index_bytes(evaluation, system, view),
        "kernels": system.kernels(),
        "peak_host_bytes": peak_host_bytes(),
        "peak_device_bytes": peak_device_bytes(),
    }
    system.close()
    return numbers


def timings(answers: list[Answer]) -> dict[str, Any]:
    """First token and total of each answer, their median and 90th percentile; median of each stage (0 without it)."""
    import numpy as np

    def quantiles(values: list[float]) -> dict[str, float]:
        return dict(zip(("median", "p90"), np.quantile(values, [0.5, 0.9]).tolist(), strict=True))

    each = {name: [getattr(answer, name) for answer in answers] for name in ("first_token_s", "total_s")}
    stages = sorted({stage for answer in answers for stage in answer.stage_s})
    by_stage = {stage: [answer.stage_s.get(stage, 0.0) for answer in answers] for stage in stages}
    return {
        **{name: quantiles(seconds) for name, seconds in each.items()},
        "timings_s": each,
        "stage_s": {stage: quantiles(seconds)["median"] for stage, seconds in by_stage.items()},
    }


if __name__ == "__main__":
    run_command(main)
