"""Run one system at one task: every context and seed in one process, each cell written as it ends.

    python -m baselines.drivers.run --profile tiny --system rag_bm25 --task scaling_facts

A cell is predictions.jsonl, prompts.jsonl and run.json (results/README.md). A cell that holds, made from the code,
configuration and data of today, is left as it stands; of any other the output says why it runs. So an interrupted run
goes on where it stopped. A cell that the system kills for memory becomes `out_of_memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import Any

from baselines.base import System, planned_failure
from baselines.drivers.audit import audit, write_audit
from baselines.drivers.evaluation import Cell, Evaluation
from baselines.drivers.provenance import peak_device_bytes, peak_host_bytes
from baselines.drivers.questions import answer_in_batches, open_cell
from baselines.drivers.supervise import expected_failure, in_child, supervise
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import run_command
from msa_base.records import CorpusView, Document
from msa_base.seal import sealed, write_seal
from msa_base.stage_records import RunRecord
from msa_base.stages import Stages
from msa_base.tables import read_corpus, write_predictions


def main() -> None:
    chosen = experiment_parser(
        __doc__, threads=1, system="an entry of systems.yaml", task="a task of the profile"
    ).parse_args()
    experiment, paths = open_experiment(chosen)
    evaluation = Evaluation(experiment, paths, chosen.system, chosen.task, chosen.threads)
    _ = evaluation.plugin  # what both processes would import by themselves is imported once
    refused = in_child(evaluation.refused_contexts)
    supervise(partial(answer_cells, evaluation, refused), partial(record_kill, evaluation))
    # cells.json is the output that Snakemake knows: every cell has ended, with these records
    directory = paths.task(chosen.system, chosen.task)
    names = [str((cell.directory / "run.json").relative_to(directory)) for cell in evaluation.cells]
    write_seal(directory / "cells.json", Stages(experiment).system(chosen.system), names)


def answer_cells(evaluation: Evaluation, refused: dict[str, tuple[str, str]], current: Any) -> None:
    """Answer every cell that is not done; ``current.value`` says which one is at work.

    ``refused``: status and reason of contexts that the plan says cannot run.
    """
    corpus: Sequence[Document] | None = None
    system, seed = None, None
    gold: dict[str, list[int]] = {}
    for position, cell in enumerate(evaluation.cells):
        current.value = position
        before = RunRecord.current(cell.directory / "run.json", evaluation.made_from(cell))
        if before is not None and not before.refused:
            continue
        if before is None:
            clear(cell)
        try:
            if cell.context in refused:
                raise planned_failure(*refused[cell.context])
            if system is not None and seed != cell.seed:
                system.close()
                system = None
            corpus = corpus if corpus is not None else read_corpus(evaluation.corpus)
            if system is None:
                system, seed = evaluation.open(cell.seed, gold), cell.seed
            answer_cell(evaluation, cell, system, corpus, gold)
        except Exception as error:
            failure = expected_failure(error)
            if before is None or (before.status, before.reason) != (failure.status, failure.reason):
                clear(cell)
                write_record(evaluation, cell, **failure.outcome)
    if system is not None:
        system.close()


def clear(cell: Cell) -> None:
    """Drop what an earlier run left, record first, so that no record ever stands beside another run's answers."""
    for pattern in ("run.json", "predictions.jsonl", "prompts.jsonl", "judgments.jsonl", "scores.parquet", ".*.tmp"):
        for path in cell.directory.glob(pattern):
            path.unlink()


def answer_cell(
    evaluation: Evaluation, cell: Cell, system: System, corpus: Sequence[Document], gold: dict[str, list[int]]
) -> None:
    """Answer one cell and write its files, the record last."""
    system.check_context(evaluation.view(cell).context_tokens)
    prepared = evaluation.paths.prepared(evaluation.task, cell.context)
    view, questions = open_cell(prepared, evaluation.spec, corpus, gold)
    start_s = perf_counter()
    system.enter(evaluation.task, cell.context, questions, view)
    system.ingest(view)
    ingest_s = perf_counter() - start_s
    answers = answer_in_batches(system, questions, view, f"{evaluation.system} {evaluation.task} {cell.context}")
    numbers = {
        "n": len(answers),
        "failures": sum(answer.status != "ok" for answer in answers),
        "truncated": sum(answer.truncated for answer in answers),
        "left_out": sum(bool(answer.left_out_doc_ids) for answer in answers),
        "ingest_s": ingest_s,
        "wall_s": perf_counter() - start_s,
        "index_bytes": index_bytes(evaluation, system, view),
        "usage": system.pop_usage(),
        "kernels": system.kernels(),
    }
    numbers["audit"] = write_audit(audit(system, questions, answers, view), cell.directory / "prompts.jsonl")
    write_predictions(answers, cell.directory / "predictions.jsonl")
    write_record(evaluation, cell, "ok", "", **numbers)


def index_bytes(evaluation: Evaluation, system: System, view: CorpusView) -> int:
    """Bytes of the index directory and of what the system keeps for the view beside it."""
    record = evaluation.index_record
    return (record.index_bytes if record else 0) + system.memory_bytes(view)


def write_record(evaluation: Evaluation, cell: Cell, status: str, reason: str, **numbers: Any) -> None:
    """Write run.json; what a failed cell never measured is null."""
    peaks = {"peak_host_bytes": peak_host_bytes(), "peak_device_bytes": peak_device_bytes()}
    view, index = evaluation.view(cell), evaluation.index_record
    files = [name for name in ("predictions.jsonl", "prompts.jsonl") if (cell.directory / name).exists()]
    record = RunRecord(
        made_from=evaluation.made_from(cell),
        files=sealed(cell.directory, files),
        context=cell.context,
        context_tokens=view.context_tokens,
        chunking=view.chunking,
        seed=cell.seed,
        status=status,
        reason=reason,
        build_s=index.build_s if index else None,
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        **evaluation.described,
        **{**peaks, **numbers},
    )
    record.write(cell.directory / "run.json")


def record_kill(evaluation: Evaluation, position: int, reason: str) -> None:
    """Write the status of a cell whose process was killed for memory; what it had used by then is unknown."""
    cell = evaluation.cells[position]
    write_record(evaluation, cell, "out_of_memory", reason, peak_host_bytes=None, peak_device_bytes=None)


if __name__ == "__main__":
    run_command(main)
