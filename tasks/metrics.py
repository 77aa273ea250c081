"""Scores of one answer against its references, as RULER and the SQuAD script define them: pure functions, 0 to 1.

Text in Chinese characters has no spaces: there each character is a token, and Chinese punctuation goes as English does.
Texts without them are scored by the scripts' definitions to the letter (SQuAD 2.0's, where an empty side is no division).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

ABSTENTIONS = (
    "not mentioned",
    "not stated",
    "not known",
    "not given",
    "not specified",
    "not provided",
    "not available",
    "unknown",
    "no information",
    "no answer",
    "unanswerable",
    "cannot answer",
    "cannot be answered",
    "cannot be determined",
    "can not be determined",
    "do not know",
    "dont know",
    "do not say",
    "does not say",
    "do not mention",
    "does not mention",
)
_CONTROL = re.compile(r"[\x00-\x1f]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_CHINESE_PUNCTUATION = re.compile(r"[\u3001-\u3003\u3008-\u3011\u3014-\u301f\u2014\u2018\u2019\u201c\u201d\u2026\u00b7\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")


def ruler_match(prediction: str, answers: Sequence[str]) -> float:
    """Share of references that are case-insensitive substrings of the prediction (RULER ``string_match_all``).

    Control characters of the prediction become newlines first, as RULER does.
    """
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)


def substring(prediction: str, answers: Sequence[str]) -> float:
    """1 where a reference is a case-insensitive substring of the prediction (RULER ``string_match_part``)."""
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return float(any(answer.lower() in text for answer in answers))


def normalise(text: str) -> str:
    """Lower case without punctuation and articles, whitespace collapsed (the SQuAD script's normalisation).

    Chinese characters stand apart from one another and from what is around them.
    """
    if _CHINESE.search(text):
        text = _CHINESE.sub(r" \g<0> ", _CHINESE_PUNCTUATION.sub(" ", text))
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


def coverage(prediction: str, answers: Sequence[str]) -> float:
    """Share of references (the key facts of a summary) that occur in the normalised prediction as whole tokens."""
    return sum(contains(prediction, [answer]) for answer in answers) / len(answers)


def abstains(prediction: str) -> bool:
    """Whether a prediction says, in one of the usual ways, that the documents do not hold the answer."""
    return contains(prediction, ABSTENTIONS) == 1.0


def answer_or_abstain(prediction: str, answers: Sequence[str]) -> float:
    """``contains`` where there are references and the prediction does not abstain; without references, whether it abstains."""
    if not answers:
        return float(abstains(prediction))
    return 0.0 if abstains(prediction) else contains(prediction, answers)


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


def ndcg_at_k(ranked: Sequence[int], grades: Mapping[int, float], k: int) -> float:
    """Normalised discounted cumulative gain of the first ``k`` ranked documents (trec_eval's: gain is the grade).

    Args:
        ranked: ids, best first; one that is repeated counts where it first stands.
        grades: grade of each relevant document, above 0; all others have 0.
        k: how many count.

    Source: Järvelin and Kekäläinen, 2002.
    """
    first = list(dict.fromkeys(ranked))[:k]
    ideal = sorted(grades.values(), reverse=True)[:k]
    return _discounted([grades.get(doc_id, 0.0) for doc_id in first]) / _discounted(ideal)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "ruler_match": ruler_match,
    "exact_match": exact_match,
    "contains": contains,
    "f1": f1,
    "substring": substring,
    "coverage": coverage,
    "answer_or_abstain": answer_or_abstain,
}
RETRIEVAL: dict[str, Callable[[Sequence[int], Mapping[int, float], int], float]] = {
    "recall": lambda ranked, grades, k: recall_at_k(ranked, list(grades), k),
    "ndcg": ndcg_at_k,
}


def retrieval_metric(name: str) -> Callable[[Sequence[int], Mapping[int, float]], float] | None:
    """The metric that a name such as ``ndcg@10`` stands for, over (ranked ids, grades); None where it is no such name."""
    kind, _, depth = name.partition("@")
    if kind not in RETRIEVAL or not depth.isdecimal() or int(depth) < 1:
        return None
    return lambda ranked, grades: RETRIEVAL[kind](ranked, grades, int(depth))
