"""Token rows of documents, questions, retrieval rounds and answers, built alike for training and for generation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from msa.model.losses import IGNORE
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document


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
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception for a missing or corrupt file, and panics of Rust are not even that
        raise UserError(f"{path}: not a readable tokenizer file ({error})") from None


def guarded(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer whose texts never turn into special tokens: this module alone places those of prompts.

    Special are those that tokenizer.json marks so, and those of prompts. Added tokens without the mark are vocabulary.
    """
    known = [token for token in prompts.SPECIAL_TOKENS if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens(known)  # foreign tokenizers have some of them as ordinary added tokens
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Spelling:
    """Turns texts into tokens and back with one tokenizer.

    Args:
        rows: of the model's embedding; a text with a token beyond them is refused. None where no model is meant.
        ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, rows: int | None = None, ends: Iterable[int] = ()):
        self.tokenizer, self.rows, self.ends = tokenizer, rows, frozenset(ends)
        self.where = "the tokenizer"  # in messages
        added = tokenizer.get_added_tokens_decoder()  # what ends a text may not stand in one, marked as special or not
        tokenizer.add_special_tokens([added[token].content for token in self.ends & added.keys()])

    def encode(self, template: str) -> list[int]:
        """Tokens of a template string of ours, special tokens included."""
        self.tokenizer.encode_special_tokens = False
        try:
            return self.texts([template])[0]
        finally:
            self.tokenizer.encode_special_tokens = True

    def text(self, text: str) -> list[int]:
        """Tokens of foreign text."""
        return self.texts([text])[0]

    def texts(self, texts: list[str]) -> list[list[int]]:
        """Tokens of many foreign texts at once.

        Raises:
            UserError: a text is no Unicode, the tokenizer fails on one, or the model has no row for a token of one.
        """
        try:
            rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except BaseException as error:
            raise _spelling_error(texts, error) from None
        if self.rows is not None and max(map(max, filter(None, rows)), default=0) >= self.rows:
            token = next(token for row in rows for token in row if token >= self.rows)
            raise UserError(
                f"{self.where}: spells a text with token {token} ({self.tokenizer.id_to_token(token)!r}), and the model"
                f" has rows for {self.rows}; use the tokenizer.json that the model was trained with"
            )
        return rows

    def decode(self, ids: list[int]) -> str:
        """The text of generated tokens; special tokens are left out."""
        return self.tokenizer.decode(ids)


class Prompter(Spelling):
    """Builds rows of MSA, and of readers that were trained on this project's wording.

    Args:
        ends: tokens that end an answer, beside ``<|im_end|>``: what the checkpoint's configuration names.
        released: ask in the words of the released checkpoints in place of this project's.
        query_tokens: of a request, which take part in routing (msa.model.router_form.RouterForm).

    Raises:
        UserError: the tokenizer lacks one of ``msa_base.prompts.SPECIAL_TOKENS``, or the model has no row for one.
    """

    def __init__(
        self, tokenizer: Tokenizer, rows: int | None = None, ends: Iterable[int] = (), released: bool = False,
        query_tokens: str = "wording",
    ):  # fmt: skip
        self.released, self.query_tokens = released, query_tokens
        self.special = special = {token: tokenizer.token_to_id(token) for token in prompts.SPECIAL_TOKENS}
        for token, index in special.items():
            if index is None:
                mend = "let `python -m msa.checkpoints convert` or `export` add it"
                raise UserError(
                    f"the tokenizer has no token {token} of msa_base/prompts.py; build it with all, or {mend}"
                )
            if rows is not None and index >= rows:
                raise UserError(
                    f"the model has rows for {rows} tokens, and the tokenizer has special tokens beyond them ({token});"
                    " `python -m msa.checkpoints convert` adds rows"
                )
        self.pad = special[prompts.END_OF_TEXT]
        self.im_start, self.im_end = special[prompts.IM_START], special[prompts.IM_END]
        super().__init__(tokenizer, rows, {self.im_end, *ends})
        self.object_ref_end = special[prompts.OBJECT_REF_END]
        self.end_of_retrieve = special[prompts.END_OF_RETRIEVE]
        self.head, self.tail = self.encode(prompts.TEMPLATE_HEAD), self.encode(prompts.TEMPLATE_TAIL)
        self.repeat_question, self.give_answer = map(self.encode, (prompts.REPEAT_QUESTION, prompts.GIVE_ANSWER))

    def documents(self, documents: list[Document]) -> list[list[int]]:
        """Wrapped documents as the memory holds them (paper section 3.2.1)."""
        bodies = self.texts([f"[{document.doc_id}]. {document.text}[{document.doc_id}]" for document in documents])
        return [[self.im_start, *body, self.im_end] for body in bodies]

    def opening(self, question: str) -> Row:
        """Template head, question text (routing tokens), template tail."""
        wording, row = prompts.released_question if self.released else prompts.question, Row().add(self.head)
        if self.query_tokens == "wording":
            return row.add(self.text(wording(question)), routing=True).add(self.tail)
        before, _, behind = wording("\0").partition("\0")
        lead = before[len(before.rstrip(" ")) :]  # byte-level tokenizers spell a space with the word behind it
        row.add(self.text(before.removesuffix(lead))).add(self.text(lead + question), routing=True)
        return row.add(self.text(behind)).add(self.tail)

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
        return row.routing.index(False, row.routing.index(True) if any(row.routing) else len(self.head))

    def add_answer_request(self, row: Row, question: str, answer_prefix: str) -> Row:
        """Append the repeated question and the opening of the answer.

        The released engine puts tokens around the repeated question (src/msa/generate.py), and its models write the
        opening of the answer themselves, so that what follows it begins with a space.
        """
        if self.released:
            row.add([self.im_start]).add(self.text(f"{prompts.REPEAT_QUESTION}{question}\n")).add([self.object_ref_end])
            opening = f"{prompts.GIVE_ANSWER}{answer_prefix.lstrip()}"
            return row.add(self.text(opening.rstrip()))
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


def _spelling_error(texts: list[str], error: BaseException) -> BaseException:
    """What the library raised, as a UserError: bare Exception, TypeError, or a panic of Rust that is neither."""
    if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
        return error
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):  # a lone surrogate, which UTF-8 cannot hold
            return UserError(f"the text {text[:60]!r} is not valid Unicode; give it as UTF-8")
    return UserError(f"the tokenizer cannot spell a text ({error}); its tokenizer.json is broken, fetch it again")


def pad_rows(rows: list[list[int]], value: int, multiple: int = 1) -> Tensor:
    """Right-pad integer rows to one tensor [rows, longest], or to the next ``multiple`` of a width."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def own_positions(length: int, head: int, top_k: int) -> Tensor:
    """Global RoPE positions [length] of a row: the template head from 0, everything behind it from head + k.

    Source: paper section 3.2.3; the offset k makes room for the chosen documents.
    """
    positions = torch.arange(length)
    return torch.where(positions < head, positions, positions + top_k)
