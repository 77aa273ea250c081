"""Metrics at their corners."""

from __future__ import annotations

import pytest

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
