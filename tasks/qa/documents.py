"""From a set's passages to the documents of a corpus, and from a question's gold passages to its gold documents."""

from __future__ import annotations

import bisect
import itertools
import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.tables import read_corpus
from tasks.base import CorpusRequest, Gold, TaskRequest
from tasks.metrics import contains
from tasks.parts.chunking import SHORT_ID_DOCUMENTS, count_tokens, fits, make_documents, random_ids, text_budget
from tasks.parts.splitting import Strategy, split
from tasks.qa.data import Edition, find_set
from tasks.qa.records import QuestionRecord, SetData, text_key

BATCH = 4096  # passages whose tokens are counted at a time


@dataclass(frozen=True)
class Chunker:
    """Cuts passages into documents of a corpus's budget, the same for corpus, heads and gold."""

    tokenizer: Tokenizer
    strategy: Strategy
    document_tokens: int
    budget_tokens: int  # of a document's bare text, under ids of any length

    def chunks(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """The documents of each passage, in order."""
        waiting = list(texts)
        for start in range(0, len(waiting), BATCH):
            batch = waiting[start : start + BATCH]
            for text, tokens in zip(batch, count_tokens(self.tokenizer, batch), strict=True):
                whole = fits(text, tokens, self.budget_tokens)
                yield [text] if whole else split(self.tokenizer, text, self.budget_tokens, self.strategy)

    def notes(self, edition: Edition, data: SetData) -> dict[str, Any]:
        """What view.json and every result say of a set and how it was cut."""
        chunking = {"strategy": self.strategy, "document_tokens": self.document_tokens}
        return {"chunking": chunking, "source": edition.source(), "left_out": dict(data.left_out)}


def make_chunker(tokenizer: Tokenizer, strategy: Strategy, document_tokens: int, where: str) -> Chunker:
    """A chunker. Raises UserError: the budget is too small for any text."""
    budget_tokens = text_budget(tokenizer, document_tokens, SHORT_ID_DOCUMENTS, where)
    return Chunker(tokenizer, strategy, document_tokens, budget_tokens)


def load_set(request: CorpusRequest | TaskRequest, name: str, form: str | None) -> tuple[Edition, SetData]:
    """A set of the profile's data directory, checked and read.

    Raises UnavailableData: the machine lacks it. UserError: it is there and not as it should be.
    """
    edition = find_set(request.data, name, request.where, form)
    return edition, edition.read(f"{request.where}: {name}: {edition.form.name}")


def gold_chunks(chunks: Sequence[str], question: QuestionRecord) -> list[str]:
    """Which documents of a gold passage are gold: those with marked evidence, else with an answer, else all of them.

    What a boundary between two documents cuts makes both of them gold.
    """
    marked = {place for mark in question.evidence for place in _places(mark, chunks)}
    marked = marked or {place for place, chunk in enumerate(chunks) if contains(chunk, question.answers)}
    if not question.evidence:
        for place, (before, behind) in enumerate(itertools.pairwise(chunks)):
            joined = (before + joint + behind for joint in (" ", ""))
            if marked.isdisjoint((place, place + 1)) and any(contains(text, question.answers) for text in joined):
                marked |= {place, place + 1}
    return [chunks[place] for place in sorted(marked)] or list(chunks)


def _places(mark: str, chunks: Sequence[str]) -> Iterator[int]:
    """The documents that hold a part of some evidence: cutting loses white space alone."""
    bare = ["".join(unicodedata.normalize("NFD", text).split()) for text in (mark, *chunks)]
    wanted, whole = bare[0], "".join(bare[1:])
    ends = list(itertools.accumulate(map(len, bare[1:])))
    start = whole.find(wanted) if wanted else -1
    while start >= 0:
        first, last = (bisect.bisect_right(ends, at) for at in (start, start + len(wanted) - 1))
        yield from range(first, last + 1)
        start = whole.find(wanted, start + 1)


def shuffled_questions(data: SetData, seed: int, name: str) -> list[QuestionRecord]:
    """All questions in the order in which tasks ask them: the same whatever number is asked."""
    order = list(data.questions.values())
    random.Random(f"{seed}/{name}/questions").shuffle(order)
    return order


def unique_documents(tokenizer: Tokenizer, name: str, texts: Iterable[str]) -> Iterator[Document]:
    """Documents under random ids, the same text once."""
    kept = list(dict.fromkeys(text.strip() for text in texts))
    yield from make_documents(tokenizer, zip(random_ids(name, len(kept)), kept, strict=False))


class DocumentIds:
    """Where texts stand in a corpus: document ids by text."""

    def __init__(self, request: TaskRequest) -> None:
        self.ids = {text_key(document.text): document.doc_id for document in read_corpus(request.tail.path)}

    def gold(self, question: QuestionRecord, chunks_of: dict[str, list[str]], question_id: str) -> Gold | None:
        """Gold documents, and graded ones where people judged by degree; None where the corpus lacks a gold passage."""
        chunks = [chunk for key in question.gold for chunk in gold_chunks(chunks_of[key], question)]
        doc_ids = dict.fromkeys(self.ids.get(text_key(chunk)) for chunk in chunks)
        if None in doc_ids:
            return None
        grades = {
            self.ids[text_key(chunk)]: grade
            for key, grade in question.grades
            for chunk in chunks_of[key]
            if text_key(chunk) in self.ids
        }
        return Gold(question_id, list(question.answers), list(doc_ids), grades or None)


def check_enough(questions: Sequence[Any], request: TaskRequest, what: str) -> None:
    """Raise a UserError where a task is to ask more questions than there are."""
    if len(questions) < request.questions:
        wrong = f"{request.questions} questions are asked, {what} has {len(questions)}"
        raise UserError(f"{request.where}: {wrong}; lower the profile's number")
