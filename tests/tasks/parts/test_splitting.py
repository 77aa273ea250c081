"""Every chunking strategy keeps the budget and loses nothing; each cuts where its name says."""

from __future__ import annotations

import pytest

from msa_base.errors import UserError
from msa_base.validate import build
from tasks import qa
from tasks.parts import splitting
from tasks.parts.chunking import count_tokens

ENGLISH = (
    "The budget holds tokens. The budget of a document holds few tokens. Dr. A. Smith counts them.\n"
    "Another line stands here, with other words in it.\n\n"
    "The second paragraph is about rivers. Rivers run to the sea. The sea takes all rivers.\n\n"
    "A third paragraph says nothing of them; numbers such as 12,345 and 6.7 come in it."
)
CHINESE = "北京大学在北京。它是一所大学！你知道吗？我不知道；他知道。" * 6
LONG_WORD = "x" * 400


@pytest.mark.parametrize("strategy", splitting.STRATEGIES)
@pytest.mark.parametrize("text", [ENGLISH, CHINESE, LONG_WORD, ENGLISH.replace("\n", " "), "  \n\n one.  "])
@pytest.mark.parametrize("budget", [1, 9, 40, 1000])
def test_budget_kept_and_nothing_lost(tokenizer, strategy, text, budget) -> None:
    chunks = splitting.split(tokenizer, text, budget, strategy)
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert all(chunk and chunk == chunk.strip() for chunk in chunks)
    if budget > 1:
        assert max(count_tokens(tokenizer, chunks)) <= budget
    if count_tokens(tokenizer, [text.strip()])[0] <= budget:
        assert chunks == [text.strip()]


def test_sentences_end_where_sentences_end(tokenizer) -> None:
    chunks = splitting.split(tokenizer, ENGLISH, 40, "sentences")
    assert all(chunk[-1] == "." for chunk in chunks) and len(chunks) > 2
    assert splitting.sentences("我在。你呢？好") == ["我在。", "你呢？", "好"]
    assert splitting.sentences("A. Smith is in. He said so.") == ["A. Smith is in.", "He said so."]


def test_fixed_fills_the_budget(tokenizer) -> None:
    counts = count_tokens(tokenizer, splitting.split(tokenizer, ENGLISH, 10, "fixed"))
    assert set(counts[:-1]) == {10}


def test_paragraphs_stay_whole(tokenizer) -> None:
    chunks = splitting.split(tokenizer, ENGLISH, 60, "paragraphs")
    paragraphs = ENGLISH.split("\n\n")
    assert all(any(paragraph in chunk for chunk in chunks) for paragraph in paragraphs)


def test_similar_sentences_stay_together(tokenizer) -> None:
    text = "Rivers run to the sea. " * 3 + "A tax form asks about income. An income tax form is long. " * 2
    budget = count_tokens(tokenizer, [text.strip()])[0] - 1  # the whole just does not fit
    chunks = splitting.split(tokenizer, text, budget, "similar")
    assert len(chunks) == 2 and "Rivers" not in chunks[1] and "tax" not in chunks[0]
    assert splitting.similarity("Rivers run", "the rivers run") == pytest.approx(1)
    assert splitting.similarity("of the", "of the") == 0.0


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(UserError, match=r"tasks\.yaml: key 'chunking' must be .*sentences.*fixed.*, found 'semantic'"):
        build(qa.CorpusParams, {"set": "squad", "chunking": "semantic"}, "tasks.yaml")
