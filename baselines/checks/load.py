"""Many clients ask while the memory is edited: is every answer true of its moment, how many come a second, how late?

    python -m baselines.checks.load --profile tiny --systems msa,rag_bm25,rag_dense
    python -m baselines.checks.load --profile tiny --systems msa --clients 4 --questions 1000 --questions-per-edit 5

Client threads ask one opened system, which answers together what waits. Meanwhile an editor replaces, removes and adds
documents that questions are read from, one document an edit, an edit with every 20th question. The edits run in a
circle of states, so that each state's answers are known: those of the system opened anew over an index of that state
alone. An answer is right if it is, with all its document ids, that of a state that stood at some time between its
question and itself. Blocks with and without edits take turns, and each client asks as many questions as any other.

The task must be prepared, and the models and the index made (`make reproduce`). Writes load.csv; exit 1 where an answer
is wrong.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter, process_time
from typing import Any

from tqdm import tqdm

from baselines.base import BATCH, System
from baselines.drivers.evaluation import Cell, Evaluation
from baselines.drivers.provenance import computed_with
from baselines.drivers.questions import open_cell
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, given_path
from msa_base.records import CorpusView, Document, Question, without_costs
from msa_base.tables import read_corpus, whole_file
from msa_base.validate import check_known

BLOCKS = 8  # of questions with edits, and as many without, in turns
SEED = 1234  # of the order of questions
SHOWN = 4  # wrong answers that are printed
COLUMNS = (
    "system", "documents", "tokens", "clients", "edits", "questions", "wrong", "telling", "questions_per_s", "p50_s",
    "p99_s", "processor_s", "edit_p50_s", "share_of_unedited", "threads", "processor",
)  # fmt: skip
Said = tuple  # of msa_base.records.without_costs


@dataclass(frozen=True)
class Scene:
    """The states of a memory, the questions that are asked of it, and the right answer to each in each state."""

    states: list[CorpusView]
    questions: list[Question]
    right: list[dict[str, Said]]

    def is_telling(self, state: int, question_id: str) -> bool:
        """Whether an answer of the state before would be seen to be stale."""
        return self.right[state][question_id] != self.right[state - 1][question_id]


@dataclass(frozen=True)
class Asked:
    """One question, the moments between which it was answered, and the answer."""

    question: Question
    start_s: float
    end_s: float
    said: Said


class ServedSystem:
    """A system that is asked by many threads while one other edits its memory.

    A thread of its own answers together all questions that wait, over the memory as it stands when they are taken.
    """

    def __init__(self, system: System, view: CorpusView) -> None:
        self._now = system.over(view), view
        self._waiting: SimpleQueue[tuple[Question, Future[Said]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._answer_all, daemon=True)
        self._thread.start()

    def answer(self, question: Question) -> Said:
        """The answer, costs left out, once it is there."""
        answer: Future[Said] = Future()
        self._waiting.put((question, answer))
        return answer.result()

    def edit(self, view: CorpusView) -> None:
        """Let the questions from here on see ``view``."""
        self._now = self._now[0].over(view), view

    def close(self) -> None:
        """End the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _answer_all(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            self._answer([item for item in batch if item is not None])
            if batch[-1] is None:
                return

    def _answer(self, batch: list[tuple[Question, Future[Said]]]) -> None:
        system, view = self._now
        try:
            # two clients may have the same question, and answers are told apart by their question's id
            said = without_costs(system.answer([question for question, _ in batch], view))
            for (_, answer), found in zip(batch, said, strict=True):
                answer.set_result(found)
        except BaseException as error:  # the clients raise it
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)


@dataclass
class Editor:
    """Takes a served memory from state to state, and notes when.

    ``switches``: the moments between which each edit was made, and the state that it made.
    """

    served: ServedSystem
    states: list[CorpusView]
    switches: list[tuple[float, float, int]] = field(default_factory=lambda: [(0.0, 0.0, 0)])

    @contextmanager
    def at_work(self, edits: int) -> Iterator[threading.Semaphore]:
        """Make so many edits, each when the block releases it or ends; what goes wrong is raised then."""
        due = threading.Semaphore(0)
        with ThreadPoolExecutor(1, "editor") as pool:
            made = pool.submit(self._edit, edits, due)
            try:
                yield due
            finally:
                due.release(max(1, edits))
            made.result()

    def _edit(self, edits: int, due: threading.Semaphore) -> None:
        for _ in range(edits):
            due.acquire()
            state = (self.switches[-1][2] + 1) % len(self.states)
            start_s = perf_counter()
            self.served.edit(self.states[state])
            self.switches.append((start_s, perf_counter(), state))

    def standing(self, start_s: float, end_s: float) -> list[int]:
        """The states that may have stood at some time between two moments, newest first."""
        ends = [after[1] for after in self.switches[1:]] + [end_s]
        pairs = zip(self.switches, ends, strict=True)
        return [state for (begun, _, state), ended in pairs if begun <= end_s and ended >= start_s][::-1]


def circle(documents: Sequence[Document], edited: Sequence[int]) -> list[list[Document]]:
    """The states that edits go round through, each one document from the next: of every edited id the document is
    replaced, then removed, then added again. Some are replaced while others are gone, and no two states are equal.
    """
    by_id = {document.doc_id: document for document in documents}
    known = [by_id[doc_id] for doc_id in edited]
    changed = {one.doc_id: _mixed(one, other) for one, other in zip(known, known[1:] + known[:1], strict=True)}
    steps = sorted((place + wait, place, phase) for place in range(len(known)) for phase, wait in enumerate((0, 2, 4)))
    state, states = dict(by_id), [list(documents)]
    for _, place, phase in steps:
        doc_id = edited[place]
        if phase == 0:
            state[doc_id] = changed[doc_id]
        elif phase == 1:
            del state[doc_id]
        else:
            state[doc_id] = by_id[doc_id]
        states.append(list(state.values()))
    return states[:-1]


def _mixed(one: Document, other: Document) -> Document:
    """The first half of a document's words, then the second half of another's."""
    first, second = one.text.split(), other.text.split()
    text = " ".join([*first[: len(first) // 2], *second[len(second) // 2 :]])
    return Document(one.doc_id, text, (one.num_tokens + other.num_tokens) // 2)


def open_scene(evaluation: Evaluation, cell: Cell, edited: int) -> Scene:
    """The questions of the overlay that most questions see, over its corpus; documents that answers are read from
    change.
    """
    prepared = evaluation.paths.prepared(evaluation.task, cell.context)
    view, asked = open_cell(prepared, evaluation.spec, read_corpus(evaluation.corpus), {})
    overlays = [question.overlay_id for question in asked]
    common = max(dict.fromkeys(overlays), key=overlays.count)
    questions = [replace(question, overlay_id=None) for question in asked if question.overlay_id == common]
    documents = list(view.documents(next(question for question in asked if question.overlay_id == common)))
    first = right_answers(evaluation, cell, questions, documents)
    read = [said[2] or [doc_id for ranked in said[3].values() for doc_id in ranked[:1]] for said in first.values()]
    ids = list(dict.fromkeys(doc_id for doc_ids in read for doc_id in doc_ids))[:edited]
    if len(ids) < 2:
        raise UserError(f"--systems {evaluation.system}: its answers cite {len(ids)} documents; name one that reads")
    states = circle(documents, ids)
    rest = tqdm(states[1:], desc=f"{evaluation.system}: right answers", unit="state")
    right = [first, *(right_answers(evaluation, cell, questions, state) for state in rest)]
    return Scene([CorpusView(state, {}) for state in states], questions, right)


def right_answers(
    evaluation: Evaluation, cell: Cell, questions: list[Question], documents: list[Document]
) -> dict[str, Said]:
    """What the system says, opened anew over an index of these documents, one question after another."""
    view = CorpusView(documents, {})
    with (
        evaluation.resources_over(documents, cell.seed) as resources,
        closing(evaluation.plugin.open(evaluation.spec, resources, {})) as system,
    ):
        return {item.question_id: without_costs(system.answer([item], view))[0] for item in questions}


def ask(
    served: ServedSystem, questions: Sequence[Question], clients: int, bar: tqdm, begun: Callable[[int], None]
) -> list[Asked]:
    """Have questions answered by so many threads, each of which asks its next one when it has its answer.

    ``begun`` is told the place of each question when it is asked.
    """
    turns, lock = enumerate(questions), threading.Lock()

    def client(_: int) -> list[Asked]:
        found = []
        while True:
            with lock:
                place, question = next(turns, (None, None))
            if question is None:
                return found
            begun(place)
            start_s = perf_counter()
            said = served.answer(question)
            found.append(Asked(question, start_s, perf_counter(), said))
            bar.update()

    with ThreadPoolExecutor(clients, "client") as pool:
        return [item for found in pool.map(client, range(clients)) for item in found]


def wrong(scene: Scene, editor: Editor, asked: Sequence[Asked]) -> list[str]:
    """Answers that are of no state that stood, and what they are instead."""
    faults = []
    for item in asked:
        name, states = item.question.question_id, editor.standing(item.start_s, item.end_s)
        if item.said not in [scene.right[state][name] for state in states]:
            stale = [state for state, right in enumerate(scene.right) if right[name] == item.said]
            is_of = f"is that of state {stale[0]}" if stale else "is of no state"
            faults.append(f"{name}: {item.said[1]!r}, ids {item.said[2]}: {is_of}; there stood {states}")
    return faults


def measure(
    served: ServedSystem, scene: Scene, clients: int, count: int, per_edit: int, name: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Two rows, without edits and with them, and the wrong answers."""
    draw, editor = random.Random(SEED), Editor(served, scene.states)
    served.edit(scene.states[0])
    sizes = [count // BLOCKS + (place < count % BLOCKS) for place in range(BLOCKS)]
    asked: dict[bool, list[Asked]] = {False: [], True: []}
    spent_s, processor_s = ({False: 0.0, True: 0.0} for _ in range(2))
    with tqdm(total=2 * count, desc=f"{name}, {clients} clients", unit="question") as bar:
        for size, edits in itertools.product(sizes, (False, True)):
            block, before = draw.choices(scene.questions, k=size), len(asked[True])
            start_s, used_s = perf_counter(), process_time()
            with editor.at_work(((before + size) // per_edit - before // per_edit) * edits) as due:

                def begun(place: int, due: threading.Semaphore = due, before: int = before) -> None:
                    if (before + place + 1) % per_edit == 0:
                        due.release()

                asked[edits] += ask(served, block, clients, bar, begun)
            spent_s[edits] += perf_counter() - start_s
            processor_s[edits] += process_time() - used_s
    rows, faults = [], []
    for edits, found in asked.items():
        bad = wrong(scene, editor, found)
        faults += bad
        rows.append({"clients": clients, "edits": (len(editor.switches) - 1) * edits, "wrong": len(bad)})
        rows[-1] |= timings(found, spent_s[edits]) | {"processor_s": processor_s[edits]}
        told = [scene.is_telling(editor.standing(a.start_s, a.end_s)[0], a.question.question_id) for a in found]
        rows[-1]["telling"] = sum(told)
    if switches := editor.switches[1:]:
        rows[1]["edit_p50_s"] = sorted(end - begun for begun, end, _ in switches)[len(switches) // 2]
    rows[1]["share_of_unedited"] = rows[1]["questions_per_s"] / rows[0]["questions_per_s"]
    return rows, faults


def timings(asked: Sequence[Asked], spent_s: float) -> dict[str, Any]:
    """Questions a second, and the median and the 99th percentile of the seconds that a client waited."""
    import numpy as np

    p50, p99 = np.quantile([item.end_s - item.start_s for item in asked], [0.5, 0.99]).tolist()
    return {"questions": len(asked), "questions_per_s": len(asked) / spent_s, "p50_s": p50, "p99_s": p99}


def load_system(evaluation: Evaluation, cell: Cell, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of one system; wrong answers are printed as they are found."""
    prepared = evaluation.paths.prepared(evaluation.task, cell.context)
    tail, _ = open_cell(prepared, evaluation.spec, read_corpus(evaluation.corpus), {})
    with closing(evaluation.open(cell.seed, {})) as system, ExitStack() as closing_down:
        system.ingest(tail)
        system.over(tail)  # one that cannot says so at once
        scene = open_scene(evaluation, cell, chosen.edited)
        served = ServedSystem(system, scene.states[0])
        closing_down.callback(served.close)
        for question in scene.questions:  # warms up
            served.answer(question)
        for clients in chosen.clients:
            count = -(-chosen.questions * clients // sum(chosen.clients))
            rows, faults = measure(served, scene, clients, count, chosen.questions_per_edit, evaluation.system)
            for fault in faults[:SHOWN]:
                print(f"WRONG: {fault}")
            memory = scene.states[0].base
            size = {"documents": len(memory), "tokens": sum(document.num_tokens for document in memory)}
            yield from ({"system": evaluation.system, **size, **row} for row in rows)


def main() -> int:
    parser = experiment_parser(__doc__, threads=1)
    parser.add_argument("--systems", required=True, help="entries of systems.yaml, with commas between")
    parser.add_argument("--task", help="a task of the profile (default: that of its latency)")
    parser.add_argument("--context", help="a context of the profile (default: its first)")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16], help="threads that ask (default: 1 4 16)")
    add_number(parser, "--questions", 10_000, "of a system with edits, and as many without (default: 10,000)")
    add_number(parser, "--questions-per-edit", 20, "an edit comes with every so many questions (default: 20)")
    add_number(parser, "--edited", 8, "documents that change (default: 8)", least=2)
    parser.add_argument(
        "--out", type=given_path, default=Path("results/bench"), help="directory (default: results/bench)"
    )
    chosen = parser.parse_args()
    if min(chosen.clients) < 1 or max(chosen.clients) > 1024:
        raise UserError("--clients: give numbers from 1 to 1,024, such as 1 4 16")
    experiment, paths = open_experiment(chosen)
    task, context = chosen.task or experiment.profile.latency.task, chosen.context or experiment.profile.contexts[0]
    check_known([context], experiment.profile.contexts, "--context", experiment.file)
    processor = computed_with()["hardware"].cpu
    rows = []
    for name in chosen.systems.split(","):
        evaluation = Evaluation(experiment, paths, name, task, chosen.threads)
        cell = next(cell for cell in evaluation.cells if cell.context == context)
        for row in load_system(evaluation, cell, chosen):
            rows.append({**row, "threads": chosen.threads, "processor": processor})
            print(", ".join(f"{key} {_short(rows[-1][key])}" for key in COLUMNS if key in rows[-1]), flush=True)
            chosen.out.mkdir(parents=True, exist_ok=True)
            with whole_file(chosen.out / "load.csv") as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, restval="")
                writer.writeheader()
                writer.writerows(rows)
    count = sum(row["wrong"] for row in rows)
    print(f"{count} of {sum(row['questions'] for row in rows):,} answers are wrong or stale; {chosen.out / 'load.csv'}")
    return 1 if count else 0


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    run_command(main)
