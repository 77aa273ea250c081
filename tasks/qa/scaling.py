"""The scaling sweep on real text: the same questions, each with its head of passages, over a tail of distractors that grows.

A head holds the gold passages of its questions and the other passages that came with them; the tail holds passages of other
questions, then further real prose, each line once, and nothing that holds an answer.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from configs import prompts
from configs.errors import UserError
from configs.load import build
from configs.records import Document, Question
from tasks.base import Cell, CorpusRequest, Gold, TaskRequest, UnavailableData, base_documents
from tasks.chunking import count_tokens, counted, random_ids
from tasks.qa import DOCUMENT_TOKENS
from tasks.qa.data import Opened
from tasks.qa.distractors import DOCUMENTATION, GET_MORE, Leaks, Once, clean, source_texts
from tasks.qa.documents import Chunker, enough, gold_chunks, make_chunker, opened_set, shuffled_questions
from tasks.qa.records import QuestionRecord, SetData, text_key


@dataclass(frozen=True)
class SweepSpec:
    """Parameters of a corpus: the set, how its passages are cut, and where more text comes from, in order."""

    set: str
    form: str | None = None
    chunking: str = "sentences"
    document_tokens: int = DOCUMENT_TOKENS
    askable: int = 512  # questions that may be asked: their passages never enter the tail
    gold_passages: int = 8  # of a question in its head, the best first; further ones are nowhere
    other_passages: int = 8  # of a question in its head that are not gold
    fill: list[str] = field(default_factory=list)  # sets of the table, `prose`, `documentation`
    seed: int = 42


@dataclass(frozen=True)
class HeadSpec:
    """Parameters of a task."""

    head_tokens: int = 12_000  # of wrapped documents
    max_new_tokens: int = 32


@dataclass
class Sweep:
    """What corpus and task share: the askable questions and the passages of their heads."""

    opened: Opened
    data: SetData
    spec: SweepSpec
    questions: list[QuestionRecord]
    leaks: Leaks

    def gold(self, question: QuestionRecord) -> list[str]:
        """The gold passages of its head."""
        return list(question.gold[: self.spec.gold_passages])

    def others(self, question: QuestionRecord) -> list[str]:
        """The other passages of its head: none that is gold or graded for it, or that holds an answer to any question."""
        related = {*question.gold, *(key for key, _ in question.grades)}
        found = (key for key in question.own if key not in related and not self.leaks.holds(self.data.passages[key]))
        return [key for key, _ in zip(found, range(self.spec.other_passages), strict=False)]


def open_sweep(request: CorpusRequest | TaskRequest, spec: SweepSpec) -> Sweep:
    """Read the set and fix the questions, the same for every number of them that is asked."""
    opened, data = opened_set(request, spec.set, spec.form)
    questions = shuffled_questions(data, spec.seed, spec.set)[: spec.askable]
    leaks = Leaks(answer for question in questions for answer in question.answers)
    return Sweep(opened, data, spec, questions, leaks)


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream distractors until the tokens asked for are filled or no more text is there (tasks.base.CorpusModule)."""
    spec: SweepSpec = build(SweepSpec, dict(request.params), request.where)
    chunker = make_chunker(request.tokenizer, spec.chunking, spec.document_tokens, request.where)
    sweep = open_sweep(request, spec)
    once, dropped = Once(), Counter()
    reserved = {key for item in sweep.questions for key in (*item.gold, *item.own, *(name for name, _ in item.grades))}
    for key in reserved:
        once.text(sweep.data.passages[key])

    def texts() -> Iterator[str]:
        rest = [key for key in sweep.data.passages if key not in reserved]
        random.Random(f"{spec.seed}/{request.name}/passages").shuffle(rest)
        yield from (sweep.data.passages[key] for key in rest)
        for source in spec.fill:
            try:
                yield from source_texts(request, source)
            except UnavailableData as error:  # contexts beyond what there is become unavailable_data
                print(f"{request.where}: {error}", file=sys.stderr)

    chunks = clean(texts(), chunker, once, sweep.leaks, dropped)
    ids = random_ids(request.name, 2 * request.num_tokens // spec.document_tokens)
    total = 0
    for document in counted(request.tokenizer, zip(ids, chunks, strict=False)):
        yield document
        total += document.num_tokens
        if total >= request.num_tokens:
            break
    unchecked = len(sweep.leaks.unchecked)
    print(f"{request.name}: {sweep.leaks.checked:,} answers looked for, {unchecked:,} too common; left out: {dict(dropped)}", file=sys.stderr)


@dataclass
class Head:
    """Documents of some questions, and the gold of each."""

    overlay_id: str
    documents: list[Document]
    questions: list[tuple[QuestionRecord, Gold]]


def make_heads(request: TaskRequest, sweep: Sweep, spec: HeadSpec, chunker: Chunker) -> list[Head]:
    """Questions in order, as many to a head as fit.

    Raises:
        UserError: one question's passages do not fit a head.
    """
    asked = [item for item in sweep.questions if item.gold]
    enough(asked, request, f"set {sweep.spec.set} in its form {sweep.opened.form.name}")
    asked = asked[: request.questions]
    keys = list(dict.fromkeys(key for item in asked for key in (*sweep.gold(item), *sweep.others(item))))
    texts = chunker.chunks(sweep.data.passages[key] for key in keys)
    chunks_of = dict(zip(keys, texts, strict=True))
    pieces = list(dict.fromkeys(chunk for chunks in chunks_of.values() for chunk in chunks))
    ids = random_ids(f"heads/{request.name}", request.tail.id_documents, taken=request.tail.doc_ids.tolist())
    documents = {item.text: item for item in counted(request.tokenizer, zip(ids, pieces, strict=False))}
    heads: list[Head] = []
    for item in asked:
        own = [documents[chunk] for key in (*sweep.gold(item), *sweep.others(item)) for chunk in chunks_of[key]]
        head = _roomy(heads, own, spec.head_tokens)
        if head is None:
            heads.append(head := Head(f"head{len(heads)}", [], []))
        head.documents = list({document.doc_id: document for document in [*head.documents, *own]}.values())
        if sum(document.num_tokens for document in head.documents) > spec.head_tokens:
            raise UserError(f"{request.where}: key 'head_tokens': the passages of question {item.question_id} do not fit")
        head.questions.append((item, _gold(request, sweep, item, chunks_of, documents)))
    return heads


def _roomy(heads: list[Head], own: Sequence[Document], head_tokens: int) -> Head | None:
    """The last head, where it has room."""
    if not heads:
        return None
    both = {document.doc_id: document.num_tokens for document in [*heads[-1].documents, *own]}
    return heads[-1] if sum(both.values()) <= head_tokens else None


def _gold(
    request: TaskRequest, sweep: Sweep, item: QuestionRecord, chunks_of: dict[str, list[str]], documents: dict[str, Document]
) -> Gold:
    doc_ids = [documents[chunk].doc_id for key in sweep.gold(item) for chunk in gold_chunks(chunks_of[key], item)]
    grades = {documents[chunk].doc_id: grade for key, grade in item.grades if key in chunks_of for chunk in chunks_of[key]}
    return Gold(f"{request.name}-{item.question_id}", list(item.answers), list(dict.fromkeys(doc_ids)), grades or None)


def check_tail(request: TaskRequest, heads: list[Head]) -> None:
    """Raise a UserError where the tail and the heads share a text: the corpus was made from other data."""
    shared = {text_key(document.text) for head in heads for document in head.documents}
    for start in range(0, len(request.tail.ends), 8192):
        indices = set(range(start, min(start + 8192, len(request.tail.ends))))
        for document in request.tail.take(indices).values():
            if text_key(document.text) in shared:
                raise UserError(f"{request.tail.path}: document {document.doc_id} is a head's; delete the corpus and prepare it again")


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of the sweep (tasks.base.TaskModule)."""
    spec: HeadSpec = build(HeadSpec, dict(request.params), request.where)
    sweep_spec: SweepSpec = build(SweepSpec, dict(request.corpus_params), f"{request.where}: corpus")
    chunker = make_chunker(request.tokenizer, sweep_spec.chunking, sweep_spec.document_tokens, request.where)
    sweep = open_sweep(request, sweep_spec)
    heads = make_heads(request, sweep, spec, chunker)
    check_tail(request, heads)
    longest = max(count_tokens(request.tokenizer, [item.text for head in heads for item, _ in head.questions]))
    template = count_tokens(request.tokenizer, [prompts.TEMPLATE_HEAD + prompts.TEMPLATE_TAIL])[0]
    reserved = spec.head_tokens + longest + template + spec.max_new_tokens
    there = request.tail.tokens(len(request.tail.ends))
    for context, size in request.contexts.items():
        if there + sweep_spec.document_tokens < size - reserved:
            place = f"{request.data}/{DOCUMENTATION}"
            reason = f"the tail holds {there:,} tokens, context {context} needs {size - reserved:,}; {GET_MORE.format(place=place)}"
            yield Cell(context, 0, unavailable=reason)
            continue
        cell = Cell(context, base_documents(request, context, reserved))
        for head in heads:
            for item, gold in head.questions:
                cell.questions.append(Question(gold.question_id, item.text, "", spec.max_new_tokens, head.overlay_id))
                cell.gold.append(gold)
            cell.overlays[head.overlay_id] = head.documents
        cell.notes = {"chunking": chunker.record(), "source": sweep.opened.source(), "left_out": dict(sweep.data.left_out)}
        yield cell
