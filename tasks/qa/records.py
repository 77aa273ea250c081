"""What every reader makes of a set: passages under keys of their text, and questions that name them."""

from __future__ import annotations

import hashlib
import math
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msa_base.blank import is_blank
from msa_base.errors import UserError

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def bare_text(text: str) -> str:
    """A text without case, punctuation and white space, composed: what two texts share that say the same."""
    return "".join(unicodedata.normalize("NFC", text).casefold().translate(_PUNCTUATION).split())


def bare_key(text: str) -> str:
    """A key that texts share which differ in case, punctuation, white space or Unicode's form alone."""
    return hashlib.blake2b(bare_text(text).encode(), digest_size=8).hexdigest()


def text_key(text: str) -> str:
    """What a text is known by: its code points, without the white space around it. No other text has its key."""
    return hashlib.blake2b(text.strip().encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class QuestionRecord:
    """A question with its references and gold passages."""

    question_id: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]  # keys of passages, in hop order where there is one
    evidence: tuple[str, ...] = ()  # the sentences that matter, where they are marked
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
        """Take in a passage, the same text once; its key. Raises UserError: there is no text in it."""
        keys = self.add_passages([text])
        if not keys:
            raise UserError(f"{self.where}: passage {len(self.passages)} is empty; fetch the set again")
        return keys[0]

    def add_passages(self, texts: Iterable[str]) -> list[str]:
        """Take in those that have text, as sets hold some empty pages; their keys in order."""
        found = [(text_key(text), text) for text in texts if not is_blank(text)]
        for key, text in found:
            self.passages.setdefault(key, text.strip())
        return [key for key, _ in found]

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
        """Take in a question. Raises UserError: an id that is there, no question, no answer, an empty one, a bad grade.

        Without ``needs_answers`` one may have none: rankings alone are asked for, or that a system abstains.
        """
        question_id = str(question_id)
        wrong = None
        if question_id in self.questions:
            wrong = f"question id {question_id!r} stands there twice"
        elif not isinstance(text, str) or is_blank(text):
            wrong = f"question {question_id} has no text"
        elif any(not isinstance(answer, str) or is_blank(answer) for answer in answers):
            wrong = f"question {question_id} has an empty answer among {list(answers)!r}"
        elif not all(math.isfinite(grade) and grade >= 0 for grade in (grades or {}).values()):
            wrong = f"question {question_id} has a grade that is no number from 0 among {grades!r}"
        elif needs_answers and not answers:
            wrong = f"question {question_id} has no answers"
        if wrong:
            raise UserError(f"{self.where}: {wrong}; fetch the set again")
        self.questions[question_id] = QuestionRecord(
            question_id,
            text.strip(),
            tuple(dict.fromkeys(answer.strip() for answer in answers)),
            tuple(dict.fromkeys(gold)),
            tuple(evidence),
            tuple((grades or {}).items()),
            tuple(dict.fromkeys(own)),
        )
