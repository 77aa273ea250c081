"""From a set's passages to the documents of a corpus, and from a question's gold passages to its gold documents."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from configs.errors import UserError
from configs.records import Document
from configs.tables import read_corpus
from tasks.base import CorpusRequest, Gold, TaskRequest
from tasks.chunking import SHORT_ID_DOCUMENTS, count_tokens, counted, random_ids, text_budget
from tasks.metrics import contains
from tasks.qa.data import Opened, open_set
from tasks.qa.readers import read_set
from tasks.qa.records import QuestionRecord, SetData, squeezed, text_key
from tasks.splitting import checked_strategy, split

BATCH = 4096  # passages whose tokens are counted at a time


@dataclass(frozen=True)
class Chunker:
    """Cuts passages into documents of a corpus's budget, the same for corpus, heads and gold."""

    tokenizer: Tokenizer
    strategy: str
    document_tokens: int
    where: str

    @property
    def budget_tokens(self) -> int:
        """Tokens of a document's bare text, under ids of any length."""
        return text_budget(self.tokenizer, self.document_tokens, SHORT_ID_DOCUMENTS, self.where)

    def chunks(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """The documents of each passage, in order."""
        budget, waiting = self.budget_tokens, list(texts)
        for start in range(0, len(waiting), BATCH):
            batch = waiting[start : start + BATCH]
            for text, tokens in zip(batch, count_tokens(self.tokenizer, batch), strict=True):
                yield [text] if tokens <= budget else split(self.tokenizer, text, budget, self.strategy)

    def record(self) -> dict[str, Any]:
        """What view.json and every result say of it."""
        return {"strategy": self.strategy, "document_tokens": self.document_tokens}


def make_chunker(tokenizer: Tokenizer, strategy: str, document_tokens: int, where: str) -> Chunker:
    """A chunker whose strategy and budget are possible.

    Raises:
        UserError: an unknown strategy, or a budget too small for any text.
    """
    chunker = Chunker(tokenizer, checked_strategy(strategy, where), document_tokens, where)
    text_budget(tokenizer, document_tokens, SHORT_ID_DOCUMENTS, where)
    return chunker


def opened_set(request: CorpusRequest | TaskRequest, name: str, form: str | None) -> tuple[Opened, SetData]:
    """A set of the profile's data directory, checked and read.

    Raises:
        UnavailableData: the machine lacks it.
        UserError: it is there and not as it should be.
    """
    opened = open_set(request.data, name, request.where, form)
    return opened, read_set(opened.form.reader, opened.files, f"{request.where}: {name}: {opened.form.name}")


def gold_chunks(chunks: Sequence[str], question: QuestionRecord) -> list[str]:
    """Which documents of a gold passage are gold: those with marked evidence, else with an answer, else all of them."""
    for marks in ([squeezed(item) for item in question.evidence], None):
        if marks is not None:
            found = [chunk for chunk in chunks if any(mark and mark in squeezed(chunk) for mark in marks)]
        else:
            found = [chunk for chunk in chunks if question.answers and contains(chunk, question.answers)]
        if found:
            return found
    return list(chunks)


def shuffled_questions(data: SetData, seed: int, name: str) -> list[QuestionRecord]:
    """All questions in the order in which tasks ask them: the same whatever number is asked."""
    order = list(data.questions.values())
    random.Random(f"{seed}/{name}/questions").shuffle(order)
    return order


def numbered(tokenizer: Tokenizer, name: str, texts: Iterable[str]) -> Iterator[Document]:
    """Documents under random ids, texts that say the same once."""
    kept = list({text_key(text): text for text in texts}.values())
    yield from counted(tokenizer, zip(random_ids(name, len(kept)), kept, strict=False))


class Places:
    """Where texts stand in a corpus: document ids by text."""

    def __init__(self, request: TaskRequest) -> None:
        self.ids = {text_key(document.text): document.doc_id for document in read_corpus(request.tail.path)}

    def gold(self, question: QuestionRecord, chunks_of: dict[str, list[str]], question_id: str) -> Gold | None:
        """Gold documents, and graded ones where people judged by degree; None where the corpus lacks a gold passage."""
        doc_ids: dict[int, None] = {}
        for key in question.gold:
            for chunk in gold_chunks(chunks_of[key], question):
                doc_id = self.ids.get(text_key(chunk))
                if doc_id is None:
                    return None
                doc_ids[doc_id] = None
        grades = {
            self.ids[text_key(chunk)]: grade
            for key, grade in question.grades
            for chunk in chunks_of[key]
            if text_key(chunk) in self.ids
        }
        return Gold(question_id, list(question.answers), list(doc_ids), grades or None)


def enough(questions: Sequence[Any], request: TaskRequest, what: str) -> None:
    """Raise a UserError where a task is to ask more questions than there are."""
    if len(questions) < request.questions:
        raise UserError(
            f"{request.where}: {request.questions} questions are asked, {what} has {len(questions)}; lower the profile's number"
        )
