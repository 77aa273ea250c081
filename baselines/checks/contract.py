"""Check that a system keeps its contract, on a few prepared questions: one line a clause, exit 1 where one is broken.

    python -m baselines.checks.contract --profile tiny --system rag_bm25
    python -m baselines.checks.contract --profile tiny --system mine --task two_hop --context 16K

The task must be prepared, and the system's models and index made (`make reproduce` does both). To compare a question's
answer with that on its rebuilt corpus, the system's own index is built anew over that corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from baselines.base import CellStatus
from baselines.drivers.evaluation import Cell, Evaluation
from baselines.drivers.questions import open_cell, spread
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.options import add_number
from msa_base.records import Answer, CorpusView, Question, without_costs
from msa_base.tables import read_corpus
from msa_base.validate import check_known

Clause = tuple[str, list[str]]  # what is demanded, and how it is broken


def check(evaluation: Evaluation, cell: Cell, count: int) -> Iterator[Clause]:
    """Every clause of :class:`baselines.base.System`, with what breaks it; a CellStatus where the cell is beyond it."""
    gold: dict[str, list[int]] = {}
    prepared = evaluation.paths.prepared(evaluation.task, cell.context)
    view, questions = open_cell(prepared, evaluation.spec, read_corpus(evaluation.corpus), gold)
    questions = spread(questions, count)
    system = evaluation.open(cell.seed, gold)
    try:
        system.check_context(evaluation.experiment.contexts[cell.context])
        system.ingest(view)
        answers = system.answer(questions, view)
        asked, answered = ([item.question_id for item in items] for items in (questions, answers))
        fault = [] if asked == answered else [f"asked {asked}, answered {answered}"]
        yield "one answer a question, in order", fault
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
        fault = [] if isinstance(size, int) and size >= 0 else [f"memory_bytes gives {size!r}"]
        yield "memory is a number of bytes", fault
        rebuilt = [rebuilt_answer(evaluation, cell, question, view, gold) for question in questions]
        yield "an overlay is answered as the rebuilt corpus is", differing(answers, rebuilt)
    finally:
        system.close()


def malformed(answer: Answer) -> list[str]:
    """What is wrong with the fields of an answer."""
    counts = {name: getattr(answer, name) for name in ("rounds", "input_tokens", "output_tokens")}
    times = {"first_token_s": answer.first_token_s, "total_s": answer.total_s, **answer.stage_s}
    ids = [*answer.cited_doc_ids, *(doc_id for ranked in answer.routed_doc_ids.values() for doc_id in ranked)]
    faults = [f"{name} is {value!r}" for name, value in counts.items() if type(value) is not int or value < 0]
    for name, value in times.items():
        is_time = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
        faults += [] if is_time else [f"{name} is {value!r}"]
    if not faults and answer.first_token_s > answer.total_s + 1e-6:
        faults.append(f"first_token_s {answer.first_token_s} is above total_s {answer.total_s}")
    faults += [f"document id {doc_id!r}" for doc_id in ids if type(doc_id) is not int]
    faults += [f"text is {answer.text!r}"] if not isinstance(answer.text, str) else []
    for stage, ranked in answer.routed_doc_ids.items():
        faults += [f"{stage} ranks a document twice"] if len(set(ranked)) < len(ranked) else []
    return [f"{answer.question_id}: {fault}" for fault in faults]


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
        for one, other, a, b in zip(first, second, without_costs(first), without_costs(second), strict=True)
        if a != b
    ]


def rebuilt_answer(
    evaluation: Evaluation, cell: Cell, question: Question, view: CorpusView, gold: dict[str, list[int]]
) -> Answer:
    """The answer of the system, opened anew, over the question's corpus written out, without an overlay."""
    documents = list(view.documents(question))
    with (
        evaluation.resources_over(documents, cell.seed) as resources,
        closing(evaluation.plugin.open(evaluation.spec, resources, gold)) as system,
    ):
        return system.answer([replace(question, overlay_id=None)], CorpusView(documents, {}))[0]


def main() -> int:
    parser = experiment_parser(__doc__, threads=1, system="an entry of systems.yaml")
    parser.add_argument("--task", help="a task of the profile (default: that of its latency)")
    parser.add_argument("--context", help="a context of the profile (default: its first)")
    add_number(parser, "--questions", 4, "how many are asked (default: 4)")
    chosen = parser.parse_args()
    if chosen.questions < 1:
        raise UserError("--questions: ask one at least")
    experiment, paths = open_experiment(chosen)
    task, context = chosen.task or experiment.profile.latency.task, chosen.context or experiment.profile.contexts[0]
    check_known([context], experiment.profile.contexts, "--context", experiment.file)
    evaluation = Evaluation(experiment, paths, chosen.system, task, chosen.threads)
    cell = next(cell for cell in evaluation.cells if cell.context == context)
    broken = 0
    try:
        for clause, faults in check(evaluation, cell, chosen.questions):
            print(f"{'BROKEN' if faults else 'kept'}: {clause}")
            for fault in faults[:4]:
                print(f"    {fault}")
            broken += bool(faults)
    except CellStatus as refusal:
        mend = "; choose a context that the system takes" if refusal.status == "unsupported_context" else ""
        print(f"refused: {refusal}{mend}")
        return 1
    return 1 if broken else 0


if __name__ == "__main__":
    run_command(main)
