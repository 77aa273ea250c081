"""Documents keep their budget and end with sentences; ids are random, unique and stable."""

from __future__ import annotations

from itertools import islice

import pytest

from configs.errors import UserError
from tasks import chunking
from tasks.carrier import insert
from tasks.sources import read_sentences


def test_chunks_keep_budget_and_text(tokenizer, prose) -> None:
    sentences = read_sentences(prose, "train")[:400]
    budget = chunking.text_budget(tokenizer, 64, 0, "here")
    texts = [" ".join(text for text, _ in chunk) for chunk in chunking.chunks(tokenizer, sentences, budget)]
    assert " ".join(texts) == " ".join(sentences)
    documents = list(chunking.counted(tokenizer, zip(chunking.random_ids("x", 500), texts, strict=False)))
    assert max(document.num_tokens for document in documents) <= 64
    long = {sentence for sentence, tokens in chunking.measured(tokenizer, sentences) if tokens > budget}
    assert long and all(text[-1] in ".!?" for text in texts if not any(text in sentence for sentence in long))


def test_a_longer_sentence_is_cut_at_words(tokenizer) -> None:
    sentence = " ".join(["number"] * 50) + "."
    chunks = list(chunking.chunks(tokenizer, [sentence], 20))
    assert [sum(tokens for _, tokens in chunk) for chunk in chunks] == [20, 20, 11]


def test_ids() -> None:
    first = list(islice(chunking.random_ids("prose", 2000), 2000))
    assert first == list(islice(chunking.random_ids("prose", 2000), 2000))
    assert len(set(first)) == 2000 and all(100_000 <= doc_id <= 999_999 for doc_id in first)
    assert first[:5] != list(islice(chunking.random_ids("facts", 2000), 5))
    assert next(chunking.random_ids("prose", 600_000)) >= 100_000_000
    assert not set(first) & set(islice(chunking.random_ids("prose", 2000, taken=first), 2000))


def test_a_budget_too_small_names_its_key(tokenizer) -> None:
    with pytest.raises(UserError, match="corpora: prose: key 'document_tokens' must be"):
        chunking.text_budget(tokenizer, 20, 0, "corpora: prose")


def test_insert_drops_the_end_and_never_ours() -> None:
    passage = [("A.", 10), ("B.", 10), ("C.", 10)]
    assert insert(passage, [("N.", 5)], [1], 40) == ["A.", "N.", "B.", "C."]
    assert insert(passage, [("N.", 5)], [3], 26) == ["A.", "B.", "N."]
    assert insert(passage, [("N.", 5), ("M.", 5)], [0, 0], 20) == ["N.", "M.", "A."]
    assert insert(passage, [("N.", 30)], [2], 30) == ["N."]
