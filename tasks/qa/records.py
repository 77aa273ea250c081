"""What every reader makes of a set: passages under keys of their normalised text, and questions that name them."""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import UserError

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squeezed(text: str) -> str:
    """A text without case, punctuation and white space."""
    return "".join(text.casefold().translate(_PUNCTUATION).split())


def text_key(text: str) -> str:
    """A key that texts share which differ in case, punctuation or white space alone."""
    return hashlib.blake2b(squeezed(text).encode(), digest_size=8).hexdigest()


_EMPTY = text_key("")


@dataclass(frozen=True)
class QuestionRecord:
    """A question with its references and gold passages; ``evidence`` are the sentences that matter, where they are marked."""

    question_id: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]  # keys of passages, in hop order where there is one
    evidence: tuple[str, ...] = ()
    grades: tuple[tuple[str, float], ...] = ()  # (passage, grade), gold or not, where people judged by degree
    own: tuple[str, ...] = ()  # keys of the passages that came with it, gold or not


@dataclass
class SetData:
    """A set as read: text of each passage by key, questions, and how many questions were left out for which reason."""

    where: Path  # for messages
    passages: dict[str, str] = field(default_factory=dict)
    questions: dict[str, QuestionRecord] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)

    def add_passage(self, text: str) -> str:
        """Take in a passage, the same text once; its key.

        Raises:
            UserError: there is no text in it.
        """
        keys = self.add_passages([text])
        if not keys:
            raise UserError(f"{self.where}: passage {len(self.passages)} is empty or marks alone; fetch the set again")
        return keys[0]

    def add_passages(self, texts: Iterable[str]) -> list[str]:
        """Take in those that have text, as sets hold some empty pages; their keys in order."""
        keys = []
        for text in texts:
            key = text_key(text)
            if key != _EMPTY:
                self.passages.setdefault(key, text.strip())
                keys.append(key)
        return keys

    def add_question(
        self,
        question_id: str,
        text: str,
        answers: Sequence[str],
        gold: Iterable[str],
        evidence: Sequence[str] = (),
        grades: Mapping[str, float] | None = None,
        own: Iterable[str] = (),
        needs_answers: bool = True,
    ) -> None:
        """Take in a question.

        Raises:
            UserError: an id for the second time, no question, no answer, or an answer that is empty.
        """
        question_id = str(question_id)
        if question_id in self.questions:
            raise UserError(f"{self.where}: question id {question_id!r} stands there twice; fetch the set again")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{self.where}: question {question_id} has no text; fetch the set again")
        if any(not isinstance(answer, str) or not answer.strip() for answer in answers):
            raise UserError(f"{self.where}: question {question_id} has an empty answer among {list(answers)!r}; fetch the set again")
        if needs_answers and not answers:
            raise UserError(f"{self.where}: question {question_id} has no answers; fetch the set again")
        self.questions[question_id] = QuestionRecord(
            question_id,
            text.strip(),
            tuple(dict.fromkeys(answer.strip() for answer in answers)),
            tuple(dict.fromkeys(gold)),
            tuple(evidence),
            tuple((grades or {}).items()),
            tuple(dict.fromkeys(own)),
        )
