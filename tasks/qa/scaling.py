"""The scaling sweep on real text: the same questions, each with its passages, over distractors that grow in number.

A head holds the gold passages of its questions and the other passages that came with them; the tail holds passages of
other questions, then further real prose, each line once, and nothing that holds an answer.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document, Question
from msa_base.validate import Count, Names, Seed, Tokens, Whole, build
from tasks.base import CorpusRequest, Gold, PreparedCell, TaskRequest
from tasks.parts.chunking import count_prompts, count_tokens, make_documents, random_ids
from tasks.parts.splitting import Strategy
from tasks.parts.tail import UnavailableData
from tasks.qa import DOCUMENT_TOKENS
from tasks.qa.data import Edition
from tasks.qa.distractors import DOCUMENTATION, GET_MORE, Leaks, SeenLines, clean, source_texts
from tasks.qa.documents import Chunker, check_enough, gold_chunks, load_set, make_chunker, shuffled_questions
from tasks.qa.records import QuestionRecord, SetData, text_key


@dataclass(frozen=True)
class CorpusParams:
    """Parameters of a corpus: the set, how its passages are cut, and where more text comes from, in order."""

    set: str
    form: str | None = None
    chunking: Strategy = "sentences"
    document_tokens: Count = DOCUMENT_TOKENS
    askable: Count = 512  # questions that may be asked: their passages never enter the tail
    gold_passages: Count = 8  # of a question in its head, the best first; further ones are nowhere
    other_passages: Whole = 8  # of a question in its head that are not gold
    fill: Names = field(default_factory=list)  # sets of the table, `prose`, `documentation`
    seed: Seed = 42


@dataclass(frozen=True)
class Params:
    """Parameters of a task."""

    head_tokens: Tokens = 12_000  # of wrapped documents
    max_new_tokens: Count = 32


@dataclass
class Sweep:
    """What corpus and task share: the askable questions and the passages of their heads."""

    edition: Edition
    data: SetData
    params: CorpusParams
    questions: list[QuestionRecord]
    leaks: Leaks

    def gold(self, question: QuestionRecord) -> list[str]:
        """The gold passages of its head."""
        return list(question.gold[: self.params.gold_passages])

    def others(self, question: QuestionRecord) -> list[str]:
        """The other passages of its head: none is gold or graded for it, none holds an answer to any question."""
        related = {*question.gold, *(key for key, _ in question.grades)}
        found = (key for key in question.own if key not in related and not self.leaks.holds(self.data.passages[key]))
        return [key for key, _ in zip(found, range(self.params.other_passages), strict=False)]


def open_sweep(request: CorpusRequest | TaskRequest, params: CorpusParams) -> Sweep:
    """Read the set and fix the questions, the same for every number of them that is asked."""
    edition, data = load_set(request, params.set, params.form)
    questions = shuffled_questions(data, params.seed, params.set)[: params.askable]
    leaks = Leaks(answer for question in questions for answer in question.answers)
    return Sweep(edition, data, params, questions, leaks)


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream distractors until the tokens asked for are filled or no more text is there."""
    params = request.read(CorpusParams)
    chunker = make_chunker(request.tokenizer, params.chunking, params.document_tokens, request.where)
    sweep = open_sweep(request, params)
    once, dropped = SeenLines(), Counter()
    reserved = {key for item in sweep.questions for key in (*item.gold, *item.own, *(name for name, _ in item.grades))}
    for key in reserved:
        once.text(sweep.data.passages[key])

    def texts() -> Iterator[str]:
        rest = [key for key in sweep.data.passages if key not in reserved]
        random.Random(f"{params.seed}/{request.name}/passages").shuffle(rest)
        yield from (sweep.data.passages[key] for key in rest)
        for source in params.fill:
            try:
                yield from source_texts(request, source)
            except UnavailableData as error:  # contexts beyond what there is become unavailable_data
                print(f"{request.where}: {error}", file=sys.stderr)

    chunks = clean(texts(), chunker, once, sweep.leaks, dropped)
    yield from request.documents(chunks, 2 * request.num_tokens // params.document_tokens)
    unchecked = len(sweep.leaks.unchecked)
    found = f"{sweep.leaks.checked:,} answers looked for, {unchecked:,} too common; left out: {dict(dropped)}"
    print(f"{request.name}: {found}", file=sys.stderr)


@dataclass
class PassageHead:
    """Documents of some questions, and the gold of each."""

    overlay_id: str
    documents: list[Document]
    questions: list[tuple[QuestionRecord, Gold]]

    def add(self, documents: Sequence[Document], head_tokens: int) -> bool:
        """Take in documents, each once, where there is room for all of them; whether there was."""
        both = list({document.doc_id: document for document in [*self.documents, *documents]}.values())
        fits = sum(document.num_tokens for document in both) <= head_tokens
        self.documents = both if fits else self.documents
        return fits


def make_heads(request: TaskRequest, sweep: Sweep, params: Params, chunker: Chunker) -> list[PassageHead]:
    """Questions in order, as many to a head as fit. Raises UserError: one question's passages do not fit a head."""
    asked = [item for item in sweep.questions if item.gold]
    check_enough(asked, request, f"set {sweep.params.set} in its form {sweep.edition.form.name}")
    asked = asked[: request.questions]
    keys = list(dict.fromkeys(key for item in asked for key in (*sweep.gold(item), *sweep.others(item))))
    texts = chunker.chunks(sweep.data.passages[key] for key in keys)
    chunks_of = dict(zip(keys, texts, strict=True))
    pieces = list(dict.fromkeys(chunk for chunks in chunks_of.values() for chunk in chunks))
    ids = random_ids(f"heads/{request.name}", request.tail.id_documents, taken=request.tail.doc_ids.tolist())
    documents = {item.text: item for item in make_documents(request.tokenizer, zip(ids, pieces, strict=False))}
    heads: list[PassageHead] = []
    for item in asked:
        own = [documents[chunk] for key in (*sweep.gold(item), *sweep.others(item)) for chunk in chunks_of[key]]
        if not heads or not heads[-1].add(own, params.head_tokens):
            heads.append(PassageHead(f"head{len(heads)}", [], []))
            if not heads[-1].add(own, params.head_tokens):
                wrong = f"the passages of question {item.question_id} do not fit"
                raise UserError(f"{request.where}: key 'head_tokens': {wrong}")
        gold = [documents[chunk].doc_id for key in sweep.gold(item) for chunk in gold_chunks(chunks_of[key], item)]
        grades = {documents[chunk].doc_id: grade for key, grade in item.grades for chunk in chunks_of.get(key, ())}
        question_id, answers = f"{request.name}-{item.question_id}", list(item.answers)
        heads[-1].questions.append((item, Gold(question_id, answers, list(dict.fromkeys(gold)), grades or None)))
    for head in heads:  # systems meet them in random order
        random.Random(f"{request.name}/{head.overlay_id}").shuffle(head.documents)
    return heads


def check_tail(request: TaskRequest, heads: list[PassageHead]) -> None:
    """Raise a UserError where the tail and the heads share a text: the corpus was made from other data."""
    shared = {text_key(document.text) for head in heads for document in head.documents}
    for start in range(0, len(request.tail.ends), 8192):  # at 100M tokens nobody holds the corpus whole
        indices = set(range(start, min(start + 8192, len(request.tail.ends))))
        for document in request.tail.take(indices).values():
            if text_key(document.text) in shared:
                wrong = f"document {document.doc_id} is a head's"
                raise UserError(f"{request.tail.path}: {wrong}; delete the corpus and prepare it again")


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    """All contexts of the sweep; one beyond the text at hand is unavailable."""
    params = request.read(Params)
    corpus_params: CorpusParams = build(CorpusParams, dict(request.corpus_params), f"{request.where}: corpus")
    chunker = make_chunker(request.tokenizer, corpus_params.chunking, corpus_params.document_tokens, request.where)
    sweep = open_sweep(request, corpus_params)
    heads = make_heads(request, sweep, params, chunker)
    check_tail(request, heads)
    longest = max(count_tokens(request.tokenizer, [item.text for head in heads for item, _ in head.questions]))
    template = count_prompts(request.tokenizer, prompts.TEMPLATE_HEAD + prompts.TEMPLATE_TAIL, [""])[0]
    reserved = params.head_tokens + longest + template + params.max_new_tokens
    there = request.tail.tokens()
    for context, size in request.contexts.items():
        if there + corpus_params.document_tokens < size - reserved:
            more = GET_MORE.format(place=f"{request.data}/{DOCUMENTATION}")
            reason = f"the tail holds {there:,} tokens, context {context} needs {size - reserved:,}; {more}"
            yield PreparedCell(context, 0, unavailable=reason)
            continue
        cell = PreparedCell(context, request.base_documents(context, reserved))
        for head in heads:
            for item, gold in head.questions:
                cell.questions.append(Question(gold.question_id, item.text, "", params.max_new_tokens, head.overlay_id))
                cell.gold.append(gold)
            cell.overlays[head.overlay_id] = head.documents
        cell.notes = chunker.notes(sweep.edition, sweep.data)
        yield cell
