"""Token rows of documents, questions, retrieval rounds and answers, built alike for training and for generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from configs import prompts
from configs.errors import UserError
from configs.records import Document
from msa.loss import IGNORE


@dataclass
class Row:
    """One token row: ids, which tokens take part in routing, and next-token targets (``IGNORE`` where none)."""

    ids: list[int] = field(default_factory=list)
    routing: list[bool] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def add(self, ids: list[int], routing: bool = False, learn: bool = False) -> Row:
        """Append tokens; ``learn`` makes each of them the target of the token before it."""
        if learn and self.ids:
            self.targets[-1] = ids[0] if ids else self.targets[-1]
        self.ids += ids
        self.routing += [routing] * len(ids)
        self.targets += [*ids[1:], IGNORE] if learn and ids else [IGNORE] * len(ids)
        return self


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a tokenizer.json, or the one of a directory."""
    path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        return guarded(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception for a missing or corrupt file
        raise UserError(f"{path}: not a readable tokenizer file ({error})") from None


def guarded(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer whose texts never turn into the special tokens of prompts: this module alone places those."""
    known = [token for token in prompts.SPECIAL_TOKENS if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens(known)  # foreign tokenizers have some of them as ordinary added tokens
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Prompter:
    """Builds rows with one tokenizer.

    Raises:
        UserError: the tokenizer lacks one of ``configs.prompts.SPECIAL_TOKENS``.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.special = special = {token: tokenizer.token_to_id(token) for token in prompts.SPECIAL_TOKENS}
        for token, index in special.items():
            if index is None:
                raise UserError(
                    f"the tokenizer has no token {token}; build it with every special token of configs/prompts.py, "
                    "or let `python -m msa.checkpoint convert` or `export` add it"
                )
        self.pad = special[prompts.END_OF_TEXT]
        self.im_start, self.im_end = special[prompts.IM_START], special[prompts.IM_END]
        self.object_ref_end = special[prompts.OBJECT_REF_END]
        self.end_of_retrieve = special[prompts.END_OF_RETRIEVE]
        self.head = self.encode(prompts.TEMPLATE_HEAD)
        self.tail = self.encode(prompts.TEMPLATE_TAIL)
        self.repeat_question = self.encode(prompts.REPEAT_QUESTION)
        self.give_answer = self.encode(prompts.GIVE_ANSWER)

    def encode(self, template: str) -> list[int]:
        """Tokens of a template string of ours, special tokens included."""
        self.tokenizer.encode_special_tokens = False
        ids = self.tokenizer.encode(template, add_special_tokens=False).ids
        self.tokenizer.encode_special_tokens = True
        return ids

    def text(self, text: str) -> list[int]:
        """Tokens of foreign text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def texts(self, texts: list[str]) -> list[list[int]]:
        """Tokens of many foreign texts at once."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def documents(self, documents: list[Document]) -> list[list[int]]:
        """Wrapped documents as the memory holds them (paper section 3.2.1)."""
        bodies = self.texts([f"[{document.doc_id}]. {document.text}[{document.doc_id}]" for document in documents])
        return [[self.im_start, *body, self.im_end] for body in bodies]

    def opening(self, question: str) -> Row:
        """Template head, question text (routing tokens), template tail."""
        row = Row().add(self.head)
        return row.add(self.text(prompts.question(question)), routing=True).add(self.tail)

    def citation(self, doc_ids: list[int]) -> list[int]:
        """``[17][4]<|object_ref_end|>``, id by id as constrained decoding spells it."""
        return [token for doc_id in doc_ids for token in self.text(f"[{doc_id}]")] + [self.object_ref_end]

    def fetched(self, document: Document) -> list[int]:
        """A document as text in a prompt."""
        return self.text(prompts.fetched(document.doc_id, document.text))

    def add_fetched(self, row: Row, documents: list[Document]) -> Row:
        """Append the text of fetched documents: they and the question are the next routing tokens."""
        for index in range(self.question_end(row), len(row.routing)):
            row.routing[index] = False
        for document in documents:
            row.add(self.fetched(document), routing=True)
        return row.add([self.object_ref_end])

    def question_end(self, row: Row) -> int:
        """Index just behind the question text."""
        return row.routing.index(False, len(self.head))

    def add_answer_request(self, row: Row, question: str, answer_prefix: str) -> Row:
        """Append the repeated question and the opening of the answer."""
        row.add(self.repeat_question).add(self.text(question))
        return row.add(self.give_answer).add(self.text(answer_prefix))

    def message(self, text: str) -> Row:
        """A prompt that is one message of a user, up to where the reply begins."""
        return Row().add(self.head).add(self.text(text)).add(self.tail)

    def reading(self, documents: list[Document], question: str, answer_prefix: str) -> Row:
        """A plain reader's prompt: documents' text, question, opening of the answer."""
        return self.add_reader_question(self.reading_documents(documents), question, answer_prefix)

    def reading_documents(self, documents: list[Document]) -> Row:
        """The part of a reader's prompt up to its question."""
        row = Row().add(self.head)
        for tokens in self.texts([prompts.fetched(document.doc_id, document.text) for document in documents]):
            row.add(tokens)
        return row.add([self.object_ref_end])

    def asking(self, document: Document) -> Row:
        """A document, up to where a question stands that it answers."""
        return self.reading_documents([document]).add(self.repeat_question)

    def add_reader_question(self, row: Row, question: str, answer_prefix: str) -> Row:
        """The part of a reader's prompt behind its documents; it ends as a row of MSA ends that has fetched them."""
        return self.add_answer_request(row.add([self.end_of_retrieve]), question, answer_prefix)


def pad_rows(rows: list[list[int]], value: int, multiple: int = 1) -> Tensor:
    """Right-pad integer rows to one tensor [rows, longest], or to the next ``multiple`` of a width."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def own_positions(lengths_at: int, head: int, top_k: int) -> Tensor:
    """Global RoPE positions [lengths_at] of a row: the template head from 0, everything behind it from head + k.

    Source: paper section 3.2.3; the offset k makes room for the chosen documents.
    """
    positions = torch.arange(lengths_at)
    return torch.where(positions < head, positions, positions + top_k)
