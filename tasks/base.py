"""What a task is: one file of tasks/ with a class and a function or two, named by ``kind`` in configs/tasks.yaml.

::

    class CorpusParams: ...             # the keys that a `corpora` entry may have under `params`, with their defaults
    def make_corpus(request): ...       # yields the documents of the memory, in order, until it is large enough
    class Params: ...                   # the keys that a `tasks` entry may have under `params`
    def prepare(request): ...           # yields a PreparedCell a context: questions, right answers, added documents

A *corpus* is a memory that grows: every context is a prefix of it. Several tasks may share one, so a module may have
``make_corpus``, ``prepare`` or both. A *cell* is a task at one context: how many documents of the corpus it holds,
its questions, their gold answers, and *overlays*: documents that questions add to the corpus or replace in it.
Both functions are deterministic: the same request gives the same documents and questions, and a question has the same
id in every context. Systems never see the gold. Texts that the machine lacks are an UnavailableData (tasks.parts.tail),
a context too small for the task's own documents a UserError.

``kind: multihop`` is tasks/multihop.py, the smallest example; ``kind: mypackage.mytask`` is any other module. The entry
of a task names its corpus, its metric (tasks/metrics.py) and its role in the report (configs/tasks.yaml has them all).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document, Question
from msa_base.validate import build
from tasks.parts.chunking import count_prompts, make_documents, random_ids, text_budget
from tasks.parts.tail import Tail

OWN_MEMORY = "own"  # the context that is a set's own memory, whatever its size
DOCUMENT_TOKENS = 96  # default size of a document: room for a needle of two UUIDs
P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What both functions get."""

    name: str  # of the entry
    params: Mapping[str, Any]
    where: str  # file and entry, for messages
    tokenizer: Tokenizer
    prose: Path  # directory of the machine's prose
    data: Path | None = None  # the profile's data directory

    def read(self, cls: type[P]) -> P:
        """The entry's params as ``cls``. Raises UserError: an unknown, missing, ill-typed or too small value."""
        return build(cls, dict(self.params), self.where)


@dataclass(frozen=True, kw_only=True)
class CorpusRequest(Request):
    """What ``make_corpus`` gets."""

    num_tokens: int  # the largest context; the last document may pass it

    def documents(self, texts: Iterable[str], expected: int) -> Iterator[Document]:
        """Texts as documents under random ids until the tokens are filled; ``expected`` documents size the ids."""
        total = 0
        for document in make_documents(self.tokenizer, zip(random_ids(self.name, expected), texts, strict=False)):
            yield document
            total += document.num_tokens
            if total >= self.num_tokens:
                return


@dataclass(frozen=True, kw_only=True)
class TaskRequest(Request):
    """What ``prepare`` gets."""

    corpus: str  # name of the corpus entry
    corpus_params: Mapping[str, Any]
    tail: Tail  # the corpus on disk
    contexts: Mapping[str, int]  # name -> tokens
    questions: int

    @property
    def document_tokens(self) -> int:
        """The size of the corpus's documents, which overlay documents keep too."""
        return int(self.corpus_params.get("document_tokens", DOCUMENT_TOKENS))

    @property
    def text_tokens(self) -> int:
        return text_budget(self.tokenizer, self.document_tokens, self.tail.id_documents, self.where)

    def prompt_tokens(self, questions: Sequence[str], prefix: str = "") -> int:
        """Tokens of the longest prompt without its documents."""
        template = prompts.TEMPLATE_HEAD + prompts.TEMPLATE_TAIL + prompts.REPEAT_QUESTION + prompts.GIVE_ANSWER
        texts = [f" {prompts.question(text)} {text} {prefix}" for text in questions]
        return max(count_prompts(self.tokenizer, template, texts), default=0)

    def base_documents(self, context: str, reserved_tokens: int, least: int = 0) -> int:
        """How many leading documents of the tail fit a context beside the task's own documents, prompt and answer.

        Raises UserError: fewer than ``least`` fit.
        """
        size = self.contexts[context]
        number = self.tail.prefix(size - reserved_tokens) if size >= reserved_tokens else -1
        if number < least:
            needs = f"head or needles, prompt and answer need {reserved_tokens:,} tokens and {least} documents"
            wrong = f"context {context} ({size:,} tokens) is below the smallest head: {needs}"
            raise UserError(f"{self.where}: {wrong}; remove the context or lower the task's size")
        return number


@dataclass(frozen=True)
class Gold:
    """The right answers of a question and the documents that hold them, in hop order where there are several hops.

    ``rejected`` answers make a reply wrong whatever else it says (an outdated value). Questions of one ``group`` ask
    the same thing in other words. ``grades`` are by document where people judged by degree.
    """

    question_id: str
    answers: list[str]
    gold_doc_ids: list[int]
    grades: Mapping[int, float] | None = None
    rejected: list[str] = field(default_factory=list)
    group: str | None = None


@dataclass
class PreparedCell:
    """A task at one context: the first ``base_documents`` of the tail, questions, overlays (id -> documents) and gold.

    ``unavailable`` says why there is nothing to ask on a machine without the data. ``floor`` is the accuracy of
    ``floor_of``, a way to answer without the memory; empty where nothing can be guessed. ``notes`` go to view.json.
    """

    context: str
    base_documents: int
    unavailable: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    floor: float = 0.0
    floor_of: str = ""
    questions: list[Question] = field(default_factory=list)
    overlays: dict[str, list[Document]] = field(default_factory=dict)
    gold: list[Gold] = field(default_factory=list)

    def ask(self, question: Question, answers: list[str], gold_doc_ids: list[int], **gold: Any) -> None:
        """Add a question with its right answers and the documents that hold them; ``gold`` as in Gold."""
        self.questions.append(question)
        self.gold.append(Gold(question.question_id, answers, gold_doc_ids, **gold))
