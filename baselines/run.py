"""Run one system at one task: every context and seed in one process, each cell written as it ends.

    python -m baselines.run --profile tiny --system rag_bm25 --task scaling_facts

A cell is predictions.jsonl, prompts.jsonl and run.json (results/README.md). A cell whose inputs did not change is left as it stands,
so an interrupted run goes on where it stopped. A cell that the system kills for memory becomes `out_of_memory`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from baselines.audit import audit, outcome, write_audit
from baselines.base import CellStatus, System
from baselines.planner import REFUSED, refuse_cell
from baselines.race import BATCH, Cell, Race, spread
from baselines.supervise import supervise
from configs.errors import run_command
from configs.load import DIRECTORY, load
from configs.paths import Paths
from configs.records import Answer, CorpusView, Document, Question


def main() -> int:
    """Run the cells under supervision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--system", required=True, help="an entry of systems.yaml")
    parser.add_argument("--task", required=True, help="a task of the profile")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results stand (default: results)")
    chosen = parser.parse_args()
    experiment = load(chosen.profile, chosen.configs)
    race = Race(experiment, Paths.of(chosen.profile, chosen.results), chosen.system, chosen.task, chosen.threads)
    return supervise(partial(answer_cells, race), partial(record_kill, race), len(race.cells))


def answer_cells(race: Race, current: Any) -> None:
    """Answer every cell that is not done; ``current.value`` says which one is at work."""
    from configs.tables import read_corpus

    corpus: Sequence[Document] | None = None
    opened: tuple[int, System] | None = None
    gold: dict[str, list[int]] = {}
    for position, cell in enumerate(race.cells):
        current.value = position
        if is_done(race, cell):
            continue
        clear(cell)
        if opened is None or opened[0] != cell.seed:
            close(opened)
            opened = None
        try:
            refuse_cell(race, cell)
            corpus = corpus if corpus is not None else read_corpus(race.corpus)
            if opened is None:
                opened = cell.seed, race.open(cell.seed, gold)
            answer_cell(race, cell, opened[1], corpus, gold)
        except (CellStatus, MemoryError, RuntimeError) as error:
            failure = expected_failure(error)
            write_record(race, cell, failure.status, failure.reason)
    close(opened)


def close(opened: tuple[int, System] | None) -> None:
    """Close a system that was opened for a seed."""
    if opened is not None:
        opened[1].close()


def is_done(race: Race, cell: Cell) -> bool:
    """Whether the cell ended, well or in an expected failure, from the inputs of today; what a plan refused is planned anew."""
    from configs.tables import read_json

    path = cell.directory / "run.json"
    if not path.exists():
        return False
    record = read_json(path)
    return record.get("inputs") == race.inputs(cell) and not record["reason"].startswith(REFUSED)


def clear(cell: Cell) -> None:
    """Drop what an earlier run left, record first, so that no record ever stands beside another run's answers."""
    for pattern in ("run.json", "predictions.jsonl", "prompts.jsonl", "judgments.jsonl", "scores.parquet", ".*.tmp"):
        for path in cell.directory.glob(pattern):
            path.unlink()


def expected_failure(error: Exception) -> CellStatus:
    """The status an error means; an error that is none is raised again."""
    if isinstance(error, CellStatus):
        return error
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return CellStatus("out_of_memory", str(error).split("\n")[0] or "the process found no more memory")
    raise error


def answer_cell(race: Race, cell: Cell, system: System, corpus: Sequence[Document], gold: dict[str, list[int]]) -> None:
    """Answer one cell and write its files, the record last."""
    from configs.tables import write_predictions

    system.check_context(race.context_tokens(cell))
    view, questions = open_cell(race, cell, corpus, gold)
    start_s = perf_counter()
    system.ingest(view)
    ingest_s = perf_counter() - start_s
    answers = answer_in_batches(system, questions, view, f"{race.system} {race.task} {cell.context}")
    numbers = {
        "n": len(answers),
        "failures": sum(answer.status != "ok" for answer in answers),
        "truncated": sum(answer.truncated for answer in answers),
        "ingest_s": ingest_s,
        "wall_s": perf_counter() - start_s,
        "index_bytes": index_bytes(race, system, view),
        "usage": system.take_usage(),
        "kernels": system.kernels(),
    }
    audited = audit(system, questions, answers, view)
    numbers["left_out"] = sum(bool(answer.left_out_doc_ids) for answer in answers)
    numbers["audit"] = outcome(audited)
    write_audit(audited, cell.directory / "prompts.jsonl")
    write_predictions(answers, cell.directory / "predictions.jsonl")
    write_record(race, cell, "ok", "", **numbers)


def open_cell(
    race: Race, cell: Cell, corpus: Sequence[Document], gold: dict[str, list[int]]
) -> tuple[CorpusView, list[Question]]:
    """The view and the questions of a cell; ``gold`` is refilled for a system that reads it."""
    from configs.tables import read_questions, read_table, read_view

    prepared = race.paths.prepared(race.task, cell.context)
    if race.spec.reads_gold:
        gold.clear()
        gold.update({row["question_id"]: row["gold_doc_ids"] for row in read_table("gold", prepared / "gold.parquet")})
    questions = spread(read_questions(prepared / "questions.parquet"), race.spec.max_questions)
    return read_view(prepared, corpus), questions


def answer_in_batches(system: System, questions: list[Question], view: CorpusView, label: str) -> list[Answer]:
    """All answers, in order, behind a progress bar."""
    from tqdm import tqdm

    answers: list[Answer] = []
    with tqdm(total=len(questions), desc=label, unit="question") as bar:
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            found = system.answer(batch, view)
            if [answer.question_id for answer in found] != [question.question_id for question in batch]:
                raise RuntimeError(f"{label}: the system did not answer its questions one by one, in order")
            answers += found
            bar.update(len(batch))
    return answers


def index_bytes(race: Race, system: System, view: CorpusView) -> int:
    """Bytes of the index directory and of what the system keeps for the view beside it."""
    return (index_record(race) or {}).get("index_bytes", 0) + system.memory_bytes(view)


def index_record(race: Race) -> dict[str, Any] | None:
    """index.json of the system's index, or None."""
    from configs.tables import read_json

    directory = race.resources(seed=0).index
    return read_json(directory / "index.json") if directory else None


def write_record(race: Race, cell: Cell, status: str, reason: str, **numbers: Any) -> None:
    """Write run.json; what a failed cell never measured is null."""
    from baselines.provenance import hardware, peak_device_bytes, peak_host_bytes, versions
    from configs.tables import write_json

    names = ("n", "failures", "truncated", "left_out", "audit", "ingest_s", "wall_s", "index_bytes", "usage", "kernels")
    measured = dict.fromkeys(names)
    record = {
        "profile": race.experiment.name,
        "system": race.system,
        "task": race.task,
        "context": cell.context,
        "context_tokens": race.context_tokens(cell),
        "chunking": race.view(cell).get("chunking"),
        "seed": cell.seed,
        "status": status,
        "reason": reason,
        **measured,
        "build_s": (index_record(race) or {}).get("build_s"),
        "peak_host_bytes": peak_host_bytes(),
        "peak_device_bytes": peak_device_bytes(),
        **numbers,
        "threads": race.threads,
        "inputs": race.inputs(cell),
        "versions": versions(),
        "hardware": hardware(),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(record, cell.directory / "run.json")


def record_kill(race: Race, position: int) -> None:
    """Write the status of a cell whose process was killed; what it had used by then is unknown."""
    reason = "the process was killed (signal 9), which is what a system does when memory runs out"
    write_record(race, race.cells[position], "out_of_memory", reason, peak_host_bytes=None, peak_device_bytes=None)


if __name__ == "__main__":
    run_command(main)
