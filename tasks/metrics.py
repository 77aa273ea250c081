"""Scores of one answer against its references, as RULER and the SQuAD script define them: pure functions, 0 to 1.

Text is compared in Unicode's composed form (NFC). Text in Chinese characters has no spaces: there each character is a
token, and Chinese punctuation goes as English does. English text is scored by the scripts' definitions (SQuAD 2.0's),
with one exception: a reference of which their normalisation leaves nothing ("A", "The The", "!!!") is met by the same
text alone, never by an answer without a word. English articles stay in other languages, where all of Unicode's
punctuation goes (as in MLQA's script).

No references, or empty ones alone, mean that there is no answer: nothing else makes an empty answer right.
"""

from __future__ import annotations

import math
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from msa_base.validate import check_known

ENGLISH = "en"
ABSTENTIONS = (
    *("not mentioned", "not stated", "not known", "not given", "not specified", "not provided", "not available"),
    *("unknown", "no information", "no answer", "unanswerable", "cannot answer", "cannot be answered"),
    *("cannot be determined", "can not be determined", "do not know", "dont know", "do not say", "does not say"),
    *("do not mention", "does not mention"),
)
_CONTROL = re.compile(r"[\x00-\x1f]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_CHINESE_PUNCTUATION = re.compile(
    r"[\u3001-\u3003\u3008-\u3011\u3014-\u301f\u2014\u2018\u2019\u201c\u201d\u2026\u00b7\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)


def composed(text: str) -> str:
    """A text in the form in which texts are compared: what looks alike is alike (NFC)."""
    return unicodedata.normalize("NFC", text)


def has_answer(answers: Sequence[str]) -> bool:
    """Whether there is a reference that says something."""
    return any(answer.strip() for answer in answers)


def ruler_match(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """Share of references that are case-insensitive substrings of the prediction (RULER ``string_match_all``)."""
    if not has_answer(answers):
        return float(not prediction.strip())
    return sum(substring(prediction, [answer]) for answer in answers) / len(answers)


def substring(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """1 where a reference is a case-insensitive substring of the prediction (RULER ``string_match_part``).

    Control characters of the prediction become newlines first, as RULER does. An empty reference is in nothing.
    """
    text = composed(_CONTROL.sub("\n", prediction.strip()).strip()).lower()
    return float(any(composed(answer).lower() in text for answer in answers if answer.strip()))


@cache
def _marks() -> dict[int, None]:
    """All punctuation of Unicode, to be left out."""
    found = (code for code in range(sys.maxunicode) if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys(found) | _PUNCTUATION


def normalise(text: str, language: str = ENGLISH) -> str:
    """Lower case without punctuation and English articles, whitespace collapsed (the SQuAD script's normalisation).

    Chinese characters stand apart from one another and from what is around them.
    """
    text = composed(text)
    if _CHINESE.search(text):
        text = _CHINESE.sub(r" \g<0> ", _CHINESE_PUNCTUATION.sub(" ", text))
    if language != ENGLISH:
        return " ".join(text.lower().translate(_marks()).split())
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _same(prediction: str, answer: str, language: str) -> bool:
    """Whether a prediction is a reference once both are normalised; where that leaves nothing, but for case."""
    if text := normalise(answer, language):
        return normalise(prediction, language) == text
    plain = [" ".join(composed(text).lower().split()) for text in (prediction, answer)]
    return plain[0] == plain[1] != ""


def exact_match(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """1 where the normalised prediction equals a normalised reference (SQuAD EM)."""
    if not has_answer(answers):
        return float(not normalise(prediction, language))
    return float(any(_same(prediction, answer, language) for answer in answers))


def contains(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """1 where a normalised reference occurs in the normalised prediction as a sequence of whole tokens.

    A reference of which normalisation leaves nothing occurs in itself alone.
    """
    text = f" {normalise(prediction, language)} "
    found = (f" {normalised} " in text for answer in answers if (normalised := normalise(answer, language)))
    return float(any(found) or any(_same(prediction, answer, language) for answer in answers))


def sub_em(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """1 where a normalised reference is a substring of the normalised prediction, or the prediction one of it.

    MemAgent's score on HotpotQA (``sub_exact_match_score``), and as lenient: "yes" is right where "yesterday" is. An
    empty side is never right; there a prediction of articles alone is.
    """
    text, known = normalise(prediction, language), [normalise(answer, language) for answer in answers]
    if not has_answer(answers):
        return float(not text)
    return float(any(answer in text or text in answer for answer in known if answer and text))


def coverage(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """Share of references (the key facts of a summary) that occur in the normalised prediction as whole tokens."""
    if not has_answer(answers):
        return float(not normalise(prediction, language))
    return sum(contains(prediction, [answer], language) for answer in answers) / len(answers)


def abstains(prediction: str, answers: Sequence[str] = (), language: str = ENGLISH) -> bool:
    """Whether a prediction says, in one of the usual ways, that the documents do not hold the answer.

    Words of a reference are no such way: "Unknown Pleasures" is an answer.
    """
    text = f" {normalise(prediction, language)} "
    for answer in filter(None, (normalise(answer, language) for answer in answers)):
        text = text.replace(f" {answer} ", " x ")  # a word that is in no phrase
    return contains(text, ABSTENTIONS) == 1.0


def answer_or_abstain(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """``contains`` of a prediction that does not abstain; 1 for one that abstains where there are no references."""
    if not has_answer(answers):
        return float(abstains(prediction, language=language))
    return 0.0 if abstains(prediction, answers, language) else contains(prediction, answers, language)


def f1_or_abstain(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """SQuAD 2.0's F1: where there is no answer, 1 for a prediction that says so, or nothing, and 0 for any other."""
    return f1("" if abstains(prediction, answers, language) else prediction, answers, language)


def exact_match_or_abstain(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """SQuAD 2.0's exact match: where there is no answer, 1 for a prediction that says so, or nothing."""
    return exact_match("" if abstains(prediction, answers, language) else prediction, answers, language)


def f1(prediction: str, answers: Sequence[str], language: str = ENGLISH) -> float:
    """Token F1 with the best reference (SQuAD F1)."""
    if not has_answer(answers):
        return float(not normalise(prediction, language))
    tokens = normalise(prediction, language).split()
    found = (_token_f1(tokens, normalise(answer, language).split()) for answer in answers)
    return max(exact_match(prediction, answers, language), *found)


def _token_f1(prediction: list[str], answer: list[str]) -> float:
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

    ``ranked`` has the best first; an id that is repeated counts where it first stands. Documents without a grade, or
    with a negative one, have 0, and so has the metric where no grade is above. Source: Järvelin and Kekäläinen, 2002.
    """
    first = list(dict.fromkeys(ranked))[:k]
    ideal = sorted((max(grade, 0.0) for grade in grades.values()), reverse=True)[:k]
    gained, most = (
        sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
        for gains in ([max(grades.get(doc_id, 0.0), 0.0) for doc_id in first], ideal)
    )
    return gained / most if most else 0.0


ABSTAINING = {metric.__name__: metric for metric in (answer_or_abstain, f1_or_abstain, exact_match_or_abstain)}
# (prediction, references, language); those of ABSTAINING alone may meet questions that have no answer
METRICS: dict[str, Callable[[str, Sequence[str], str], float]] = {
    metric.__name__: metric for metric in (ruler_match, exact_match, contains, f1, substring, sub_em, coverage)
} | ABSTAINING
RETRIEVAL: dict[str, Callable[[Sequence[int], Mapping[int, float], int], float]] = {
    "recall": lambda ranked, grades, k: recall_at_k(ranked, list(grades), k),
    "ndcg": ndcg_at_k,
}


def retrieval_metric(name: str) -> Callable[[Sequence[int], Mapping[int, float]], float] | None:
    """The metric over (ranked ids, grades) that a name such as ``ndcg@10`` stands for; None for other names."""
    kind, _, depth = name.partition("@")
    if kind not in RETRIEVAL or not depth.isdecimal() or int(depth) < 1:
        return None
    return lambda ranked, grades: RETRIEVAL[kind](ranked, grades, int(depth))


def check_metrics(names: Iterable[str], where: str) -> None:
    """Raise a UserError for what is neither a metric of answers nor one of rankings, such as recall@5."""
    for name in names:
        depth = name.partition("@")[2]
        depth = depth if retrieval_metric(f"ndcg@{depth}") else "10"
        known = [*METRICS, *(f"{kind}@{depth}" for kind in RETRIEVAL)]
        check_known([] if retrieval_metric(name) else [name], known, where, "tasks/metrics.py")
