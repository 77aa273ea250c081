"""Scores of one answer against its references, as RULER and the SQuAD script define them: pure functions, 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def ruler_match(prediction: str, answers: Sequence[str]) -> float:
    """Share of references that are case-insensitive substrings of the prediction (RULER ``string_match_all``).

    Control characters of the prediction become newlines first, as RULER does.
    """
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)


def normalise(text: str) -> str:
    """Lower case without punctuation and articles, whitespace collapsed (the SQuAD script's normalisation)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the normalised prediction equals a normalised reference (SQuAD EM)."""
    return float(any(normalise(prediction) == normalise(answer) for answer in answers))


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 where a normalised reference occurs in the normalised prediction as a sequence of whole tokens.

    A reference of which normalisation leaves nothing never occurs.
    """
    text = f" {normalise(prediction)} "
    return float(any(f" {answer} " in text for answer in map(normalise, answers) if answer))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1 with the best reference (SQuAD F1)."""
    return max(_token_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def _token_f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    shared = sum((Counter(prediction) & Counter(answer)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(answer)
    return 2 * precision * recall / (precision + recall)


def recall_at_k(ranked: Sequence[int], gold: Sequence[int], k: int) -> float:
    """Share of the gold documents among the first ``k`` ranked ones."""
    wanted = set(gold)
    return len(wanted.intersection(ranked[:k])) / len(wanted)


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "ruler_match": ruler_match,
    "exact_match": exact_match,
    "contains": contains,
    "f1": f1,
}
