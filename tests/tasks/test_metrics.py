"""Metrics at their corners."""

from __future__ import annotations

import math
import random
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_base.errors import UserError
from tasks import metrics


def test_ruler_match_is_the_share_of_references() -> None:
    assert metrics.ruler_match("They are 123, ABC", ["123", "abc"]) == 1.0
    assert metrics.ruler_match("only 123", ["123", "456", "789", "000"]) == 0.25
    assert metrics.ruler_match("", ["1"]) == 0.0
    assert metrics.ruler_match("12\x003", ["123"]) == 0.0  # a control character is a newline, not nothing
    assert metrics.ruler_match("x 1234567 y", ["234"]) == 1.0  # substrings count, as in RULER


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("The answer is 12345.", "12345", 1),
        ("It is 123456", "12345", 0),
        ("the Great Wall, of China!", "Great Wall of China", 1),
        ("great wall", "Great Wall of China", 0),
        ("", "x", 0),
        ("anything", "the", 0),
    ],
)
def test_contains_whole_tokens(prediction, answer, value) -> None:
    assert metrics.contains(prediction, [answer]) == value
    assert metrics.contains(prediction, ["never there", answer]) == value


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("It is the Great Wall.", "great wall", 1),
        ("Wall", "the Great Wall", 1),
        ("yes", "Yesterday", 1),  # characters, not words
        ("Great Hall", "Great Wall", 0),
        ("", "x", 0),
        ("The.", "x", 0),
        ("anything", "the", 0),
    ],
)
def test_sub_em_matches_in_either_direction(prediction, answer, value) -> None:
    assert metrics.sub_em(prediction, [answer]) == metrics.sub_em(prediction, ["never there", answer]) == value
    assert metrics.sub_em(prediction, []) == metrics.sub_em(prediction, [""]) == (prediction in ("", "The."))


def test_exact_match_and_f1_normalise() -> None:
    assert metrics.exact_match("The  Cat!", ["cat"]) == 1.0
    assert metrics.exact_match("cat sat", ["cat"]) == 0.0
    assert metrics.f1("the cat sat", ["cat"]) == pytest.approx(2 / 3)
    assert metrics.f1("dog", ["cat", "a dog"]) == 1.0
    assert metrics.f1("", ["cat"]) == 0.0
    assert metrics.f1("cat cat", ["cat"]) == pytest.approx(2 / 3)


def test_recall_at_k() -> None:
    assert metrics.recall_at_k([5, 3, 9], [3, 7], 2) == 0.5
    assert metrics.recall_at_k([5, 3, 9], [3, 3], 1) == 0.0
    assert metrics.recall_at_k([], [3], 16) == 0.0


def squad_tokens(text: str) -> list[str]:
    """The SQuAD 2.0 script's tokens, written from its description: lower case, then punctuation, articles,
    white space.
    """
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    words, pending = [], ""
    for character in kept + " ":  # articles are words between characters that are neither letter, digit nor underscore
        if character.isalnum() or character == "_":
            pending += character
            continue
        words.append(" " if pending in ("a", "an", "the") else pending)
        words.append(character)
        pending = ""
    return "".join(words).split()


def squad_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1, the best over the references, of which those without a word are met by themselves alone."""
    given = squad_tokens(prediction)
    if not any(answer.strip() for answer in answers):
        return (float(not given),) * 2
    exact = float(any(answer.strip() and answer.lower().split() == prediction.lower().split() for answer in answers))
    best = exact
    for tokens in filter(None, map(squad_tokens, answers)):
        exact = max(exact, float(" ".join(given) == " ".join(tokens)))
        left = list(tokens)
        for token in given:
            if token in left:
                left.remove(token)
        shared = len(tokens) - len(left)
        if shared:
            best = max(best, 2 * shared / (len(given) + len(tokens)))
    return exact, best


def ruler_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """RULER's share of references found, and whether any is, after its cleaning of the prediction."""
    text = "".join("\n" if ord(character) < 32 else character for character in prediction.strip()).strip().lower()
    if not any(answer.strip() for answer in answers):
        return float(not prediction.strip()), 0.0
    found = [bool(answer.strip()) and answer.lower() in text for answer in answers]
    return sum(found) / len(found), float(any(found))


WORDS = [
    "the",
    "The",
    "a",
    "an",
    "cat",
    "Cat's",
    "U.S.",
    "theatre",
    "12,345",
    "12345",
    "--",
    "don't",
    "_",
    "a_b",
    "e-mail",
]
WORDS += [
    "café",
    "\x07",
    "\u00a0",
    "\t",
    "(",
    "“so”",
    "…",
    "½",
    "",
    "an.",
    "THE-cat",
    "x",
    "y",
    "€5",
    "\x85",
    "straße",
    "İ",
]


def generated_pairs(number: int) -> list[tuple[str, list[str]]]:
    """Predictions and references from few words, so that they meet often, joined in every way."""
    generator = random.Random(20)
    texts = []
    for _ in range(4 * number):
        words = generator.choices(WORDS, k=generator.choice((0, 1, 1, 2, 3, 5, 8)))
        texts.append("".join(word + generator.choice((" ", " ", "  ", "", "\n", ", ")) for word in words))
    return [
        (texts[index], [text for text in texts[number + 3 * index : number + 3 * index + generator.randint(1, 3)]])
        for index in range(number)
    ]


def test_squad_and_ruler_definitions_on_10000_pairs() -> None:
    pairs = generated_pairs(10_000)
    totals = [0.0] * 4
    for prediction, answers in pairs:
        exact, best = squad_scores(prediction, answers)
        share, any_found = ruler_scores(prediction, answers)
        assert metrics.exact_match(prediction, answers) == exact, (prediction, answers)
        assert metrics.f1(prediction, answers) == pytest.approx(best, abs=1e-12), (prediction, answers)
        assert metrics.ruler_match(prediction, answers) == share, (prediction, answers)
        assert metrics.substring(prediction, answers) == any_found, (prediction, answers)
        totals = [total + value for total, value in zip(totals, (exact, best, share, any_found), strict=True)]
    assert all(100 < total < 9_500 for total in totals)  # the pairs are neither all right nor all wrong


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "best"),
    [
        ("The U.S. theatre", ["us theatre"], 1, 1),
        ("a an the", [""], 1, 1),  # nothing is left of either
        ("a an the", ["cat"], 0, 0),
        ("THE-cat", ["thecat"], 1, 1),  # punctuation goes before articles
        ("a_b", ["ab"], 1, 1),
        ("the the cat", ["cat", "dog"], 1, 1),
        ("", ["A", "vitamin A"], 0, 0),  # an empty answer is right where there is no answer, and nowhere else
        ("A", ["A", "vitamin A"], 1, 1),
        ("the", ["!!!"], 0, 0),
        ("!!!", ["!!!"], 1, 1),
        ("", ["The The", "Matt Johnson's band"], 0, 0),
        ("the the", ["The The"], 1, 1),
        ("...", [], 1, 1),
        ("", [" "], 1, 1),
        ("cat", [], 0, 0),
        ("", ["", "cat"], 0, 0),
        ("Zu\u0308rich", ["Z\u00fcrich"], 1, 1),  # one text in two forms
        ("\u212bngstro\u0308m", ["\u00c5ngstr\u00f6m"], 1, 1),
        ("cat cat dog", ["cat dog dog"], 0, 2 / 3),  # each token counts as often as it is on both sides
        ("12,345 people", ["12345"], 0, 2 / 3),
        ("北京大学。", ["北京大学"], 1, 1),
        ("北京 大学", ["北京大学"], 1, 1),
        ("他在北京", ["北京"], 0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("《红楼梦》，曹雪芹", ["红楼梦"], 0, 2 * 3 / (6 + 3)),
        ("使用iOS 9系统", ["iOS 9"], 0, 2 * 2 / (6 + 2)),
        ("大学北京", ["北京大学"], 0, 1),
        ("是的", ["不是"], 0, 0.5),
    ],
)
def test_corners_by_hand(prediction, answers, exact, best) -> None:
    assert metrics.exact_match(prediction, answers) == exact
    assert metrics.f1(prediction, answers) == pytest.approx(best)


def test_chinese_is_contained_by_character() -> None:
    assert metrics.contains("答案是北京大学。", ["北京大学"]) == 1.0
    assert metrics.contains("答案是北京", ["北京大学"]) == 0.0
    assert metrics.substring("他住在北京。", ["北京"]) == 1.0


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize("nothing", ["", " ", "...", "the", "\n"])
def test_an_answer_without_a_word_is_right_only_where_there_is_no_answer(name, nothing) -> None:
    metric = metrics.METRICS[name]
    for answers in (["A"], ["cat"], ["!!"], ["The The", "cat"], ["", "cat"], ["\u200d"]):
        assert metric(nothing, answers) == 0.0, answers
    if name in metrics.ABSTAINING:
        assert metric("It is not mentioned.", []) == 1.0
        assert metric(nothing, []) == metric(nothing, [""]) == float(name != "answer_or_abstain")  # which wants words
    assert metric("cat", []) == metric("cat", [""]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "value"),
    [
        ("Unknown Pleasures", ["Unknown Pleasures"], 1),  # words of the answer are no abstention
        ("It is the Tomb of the Unknown Soldier.", ["Tomb of the Unknown Soldier"], 1),
        ("Unknown, but maybe Paris", ["Paris"], 0),
        ("That is unknown.", ["Paris"], 0),
        ("Paris", ["Paris"], 1),
        ("Paris", [], 0),
        ("No answer", [], 1),
    ],
)
def test_abstention(prediction, answers, value) -> None:
    assert metrics.answer_or_abstain(prediction, answers) == value
    assert (metrics.f1_or_abstain(prediction, answers) > 0) == bool(value)
    assert metrics.exact_match_or_abstain("Paris", ["paris"]) == 1 and metrics.f1_or_abstain("big Paris", ["Paris"]) < 1


def test_english_articles_are_dropped_in_english_alone() -> None:
    assert metrics.exact_match("the cat", ["cat"]) == 1.0 and metrics.exact_match("the cat", ["cat"], "de") == 0.0
    assert metrics.f1("Ich an die Macht", ["Ich die Macht"], "de") == pytest.approx(6 / 7)
    assert metrics.f1("Un an a passé", ["an passé"], "fr") == pytest.approx(2 / 3)
    assert metrics.exact_match("«¿Qué?»", ["qué"], "es") == 1.0  # all punctuation goes
    assert (
        metrics.exact_match("A股", ["股"], "zh") == 0.0 and metrics.exact_match("《红楼梦》", ["红楼梦"], "zh") == 1.0
    )
    assert metrics.contains("Er sah the Band.", ["the Band"], "de") == 1.0


TEXTS = st.text("aAetTh1.,!-_ \n\u00e9\u0301\u4e2d\u3002\u1e9b\u0323\u212b", max_size=12)


@given(TEXTS, st.lists(TEXTS, max_size=3), st.sampled_from(["en", "de", "zh"]))
def test_metrics_are_bounded_and_the_same_in_every_form_of_unicode(prediction, answers, language) -> None:
    forms = ["NFC", "NFD"]
    for metric in metrics.METRICS.values():
        values = {
            metric(
                unicodedata.normalize(form, prediction), [unicodedata.normalize(other, a) for a in answers], language
            )
            for form in forms
            for other in forms
        }
        assert len(values) == 1 and 0.0 <= values.pop() <= 1.0
    if any(answer.strip() for answer in answers):
        assert metrics.f1(prediction, answers, language) >= metrics.exact_match(prediction, answers, language)
        assert metrics.contains(prediction, answers, language) >= metrics.exact_match(prediction, answers, language)


@given(st.lists(st.integers(0, 5)), st.dictionaries(st.integers(0, 5), st.floats(-2, 3), min_size=1), st.integers(1, 6))
def test_graded_metrics_are_bounded(ranked, grades, k) -> None:
    assert 0.0 <= metrics.ndcg_at_k(ranked, grades, k) <= 1.0 + 1e-12
    assert 0.0 <= metrics.recall_at_k(ranked, list(grades), k) <= 1.0


def test_ndcg_by_hand() -> None:
    grades = {1: 3.0, 2: 2.0, 3: 1.0}
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert metrics.ndcg_at_k([1, 2, 3], grades, 10) == 1.0
    assert metrics.ndcg_at_k([3, 9, 1], grades, 10) == pytest.approx((1 + 3 / 2) / ideal)
    assert metrics.ndcg_at_k([9, 1], grades, 1) == 0.0
    assert metrics.ndcg_at_k([2, 1], grades, 1) == pytest.approx(2 / 3)  # the ideal is cut at k too
    assert metrics.ndcg_at_k([1, 1, 1], {1: 1.0, 2: 1.0}, 3) == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert metrics.ndcg_at_k([], grades, 10) == 0.0


def test_retrieval_metrics_by_name() -> None:
    assert metrics.retrieval_metric("recall@2")([5, 1, 2], {1: 1.0, 2: 1.0}) == 0.5
    assert metrics.retrieval_metric("ndcg@1")([1], {1: 1.0}) == 1.0
    assert [metrics.retrieval_metric(name) for name in ("f1", "recall", "ndcg@0", "ndcg@x", "mrr@10")] == [None] * 5


def test_metrics_are_known_by_name() -> None:
    metrics.check_metrics(["f1", "contains", "recall@5", "ndcg@10"], "tasks.yaml")
    for name in ("f2", "recall", "ndcg@0", "ndcg@", "recall@x", "mrr@10", "mrr@0"):
        with pytest.raises(UserError, match=rf"tasks\.yaml.*{name}"):
            metrics.check_metrics(["f1", name], "tasks.yaml")
