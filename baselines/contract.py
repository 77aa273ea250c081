"""Check that a system keeps its contract, on a few prepared questions: one line a clause, exit 1 where one is broken.

    python -m baselines.contract --profile tiny --system rag_bm25
    python -m baselines.contract --profile tiny --system mine --task two_hop --context 16K     # kind: mypackage.mysystem

The task must be prepared, and the system's models and index made (`make reproduce` does both). To compare a question's answer
with that on its rebuilt corpus, the system's own index is built anew over that corpus.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from baselines.base import CellStatus, IndexResources, System, load_module
from baselines.compare import said
from baselines.race import Cell, Race, spread
from baselines.run import open_cell
from configs.errors import UserError, run_command
from configs.load import DIRECTORY, check_known, load
from configs.paths import Paths
from configs.records import Answer, CorpusView, Document, Question
from configs.tables import read_corpus, write_table

Clause = tuple[str, list[str]]  # what is demanded, and how it is broken


def check(race: Race, cell: Cell, count: int) -> Iterator[Clause]:
    """Every clause of :class:`baselines.base.System`, with what breaks it.

    Raises:
        CellStatus: the cell is beyond the system.
    """
    gold: dict[str, list[int]] = {}
    view, questions = open_cell(race, cell, read_corpus(race.corpus), gold)
    questions = spread(questions, count)
    system = race.open(cell.seed, gold)
    try:
        system.check_context(race.experiment.contexts[cell.context])
        system.ingest(view)
        answers = system.answer(questions, view)
        yield "one answer a question, in order", _order(questions, answers)
        if len(answers) != len(questions):
            return
        yield "answers are well-formed", [fault for answer in answers for fault in malformed(answer)]
        yield "only documents of the question's own corpus are named", _strangers(questions, answers, view)
        alone = [system.answer([question], view)[0] for question in questions]
        yield "an answer does not depend on the questions beside it", differing(answers, alone)
        half = CorpusView(view.base[: len(view.base) // 2], view.overlays)
        system.ingest(half)
        system.answer(questions[:1], half)
        system.ingest(view)
        yield "another view in between leaves no trace", differing(answers, system.answer(questions, view))
        size = system.memory_bytes(view)
        yield (
            "memory is a number of bytes",
            [] if isinstance(size, int) and size >= 0 else [f"memory_bytes gives {size!r}"],
        )
        rebuilt = [rebuilt_answer(race, cell, question, view, gold) for question in questions]
        yield "an overlay is answered as the rebuilt corpus is", differing(answers, rebuilt)
    finally:
        system.close()


def _order(questions: Sequence[Question], answers: Sequence[Answer]) -> list[str]:
    asked, found = [item.question_id for item in questions], [item.question_id for item in answers]
    return [] if asked == found else [f"asked {asked}, answered {found}"]


def malformed(answer: Answer) -> list[str]:
    """What is wrong with the fields of an answer."""
    counts = {name: getattr(answer, name) for name in ("rounds", "input_tokens", "output_tokens")}
    times = {"first_token_s": answer.first_token_s, "total_s": answer.total_s, **answer.stage_s}
    ids = [*answer.cited_doc_ids, *(doc_id for ranked in answer.routed_doc_ids.values() for doc_id in ranked)]
    faults = [f"{name} is {value!r}" for name, value in counts.items() if type(value) is not int or value < 0]
    faults += [f"{name} is {value!r}" for name, value in times.items() if not _is_time(value)]
    if not faults and answer.first_token_s > answer.total_s + 1e-6:
        faults.append(f"first_token_s {answer.first_token_s} is above total_s {answer.total_s}")
    faults += [f"document id {doc_id!r}" for doc_id in ids if type(doc_id) is not int]
    faults += [f"text is {answer.text!r}"] if not isinstance(answer.text, str) else []
    for stage, ranked in answer.routed_doc_ids.items():
        faults += [f"{stage} ranks a document twice"] if len(set(ranked)) < len(ranked) else []
    return [f"{answer.question_id}: {fault}" for fault in faults]


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def _strangers(questions: Sequence[Question], answers: Sequence[Answer], view: CorpusView) -> list[str]:
    faults = []
    for question, answer in zip(questions, answers, strict=True):
        known = {document.doc_id for document in view.documents(question)}
        named = {*answer.cited_doc_ids, *(doc_id for ranked in answer.routed_doc_ids.values() for doc_id in ranked)}
        if strange := sorted(named - known):
            faults.append(f"{question.question_id}: documents {strange[:4]} are not in its corpus")
    return faults


def differing(first: Sequence[Answer], second: Sequence[Answer]) -> list[str]:
    """Questions that two lists of answers answer differently, times and costs aside."""
    return [
        f"{one.question_id}: {one.text!r}, ids {one.cited_doc_ids} against {other.text!r}, ids {other.cited_doc_ids}"
        for one, other, a, b in zip(first, second, said(list(first)), said(list(second)), strict=True)
        if a != b
    ]


def rebuilt_answer(race: Race, cell: Cell, question: Question, view: CorpusView, gold: dict[str, list[int]]) -> Answer:
    """The answer of the system, opened anew, over the question's corpus written out, without an overlay."""
    documents: list[Document] = list(view.documents(question))
    resources = race.resources(cell.seed)
    module = load_module(race.spec.kind, f"systems.yaml: systems: {race.system}")
    with TemporaryDirectory() as folder:
        if race.index_spec is not None:
            corpus, index = Path(folder) / "corpus.parquet", Path(folder) / "index"
            index.mkdir()
            write_table("corpus", [vars(document) for document in documents], corpus)
            builder = load_module(race.index_spec.kind, f"systems.yaml: indexes: {race.spec.index}")
            builder.build_index(race.index_spec, IndexResources(resources.index_model, corpus, race.threads), index)
            resources = replace(resources, index=index)
        extra = {"gold": gold} if race.spec.reads_gold else {}
        system: System = module.make(race.spec, resources, **extra)
        try:
            return system.answer([replace(question, overlay_id=None)], CorpusView(documents, {}))[0]
        finally:
            system.close()


def main() -> int:
    """Check one system at one task and context."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--system", required=True, help="an entry of systems.yaml")
    parser.add_argument("--task", help="a task of the profile (default: that of its latency)")
    parser.add_argument("--context", help="a context of the profile (default: its first)")
    parser.add_argument("--questions", type=int, default=4, help="how many are asked (default: 4)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results stand (default: results)")
    chosen = parser.parse_args()
    if chosen.questions < 1:
        raise UserError("--questions: ask one at least")
    experiment = load(chosen.profile, chosen.configs)
    task, context = chosen.task or experiment.profile.latency["task"], chosen.context or experiment.profile.contexts[0]
    check_known([context], experiment.profile.contexts, "--context", chosen.configs / f"profiles/{chosen.profile}.yaml")
    race = Race(experiment, Paths.of(chosen.profile, chosen.results), chosen.system, task, chosen.threads)
    cell = next(cell for cell in race.cells if cell.context == context)
    broken = 0
    try:
        for clause, faults in check(race, cell, chosen.questions):
            print(f"{'BROKEN' if faults else 'kept'}: {clause}")
            for fault in faults[:4]:
                print(f"    {fault}")
            broken += bool(faults)
    except CellStatus as refusal:
        print(f"refused: {refusal}; choose a context that the system takes")
        return 1
    return 1 if broken else 0


if __name__ == "__main__":
    run_command(main)
