"""How long text becomes documents: whole sentences up to a fixed token budget, under random, stable ids."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from tokenizers import Tokenizer

from configs import prompts
from configs.errors import UserError
from configs.records import Document

SHORT_IDS = (100_000, 999_999)
LONG_IDS = (100_000_000, 999_999_999)
SHORT_ID_DOCUMENTS = 500_000  # beyond this many documents six digits get crowded
MIN_TEXT_TOKENS = 32  # what is left for the text of a document; the longest fact sentence has 18
BATCH = 2048


def id_range(num_documents: int) -> tuple[int, int]:
    """Smallest and largest id for a corpus that may hold this many documents: six digits, or nine for a large one."""
    return SHORT_IDS if num_documents < SHORT_ID_DOCUMENTS else LONG_IDS


def random_ids(seed: str, num_documents: int, taken: Iterable[int] = ()) -> Iterator[int]:
    """Endless random ids, each once, the same for the same ``seed``; none of ``taken``."""
    generator = random.Random(f"ids/{seed}")
    low, high = id_range(num_documents)
    used = set(taken)
    while True:
        doc_id = generator.randint(low, high)
        if doc_id not in used:
            used.add(doc_id)
            yield doc_id


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, in one batch."""
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def wrapper_tokens(tokenizer: Tokenizer, num_documents: int = 0) -> int:
    """Tokens that the document wrapper adds to a text, for ids of a corpus of this size (an upper bound)."""
    low, high = id_range(num_documents)
    middle = (low + high) // 2 + 1
    return max(count_tokens(tokenizer, [prompts.document(doc_id, "") for doc_id in (low, middle, high)]))


def text_budget(tokenizer: Tokenizer, document_tokens: int, num_documents: int, where: str) -> int:
    """Tokens left for the text of a document of ``document_tokens``.

    Raises:
        UserError: too few for a sentence of ours.
    """
    budget = document_tokens - wrapper_tokens(tokenizer, num_documents)
    if budget < MIN_TEXT_TOKENS:
        short = MIN_TEXT_TOKENS - budget
        raise UserError(
            f"{where}: key 'document_tokens' must be {document_tokens + short} or more, found {document_tokens}"
        )
    return budget


def counted(tokenizer: Tokenizer, pairs: Iterable[tuple[int, str]]) -> Iterator[Document]:
    """Documents from (id, text), with the tokens of their wrapped form counted in batches."""
    pairs = iter(pairs)
    while batch := list(islice(pairs, BATCH)):
        counts = count_tokens(tokenizer, [prompts.document(doc_id, text) for doc_id, text in batch])
        for (doc_id, text), num_tokens in zip(batch, counts, strict=True):
            yield Document(doc_id, text, num_tokens)


def measured(tokenizer: Tokenizer, sentences: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(sentence, its tokens), counted in batches."""
    sentences = iter(sentences)
    while batch := list(islice(sentences, BATCH)):
        yield from zip(batch, count_tokens(tokenizer, batch), strict=True)


def split_sentence(tokenizer: Tokenizer, sentence: str, budget_tokens: int) -> list[tuple[str, int]]:
    """Cut a sentence at words into parts of at most ``budget_tokens`` (a single longer word stays whole)."""
    words = sentence.split()
    parts: list[tuple[str, int]] = []
    current: list[str] = []
    total = 0
    for word, tokens in zip(words, count_tokens(tokenizer, words), strict=True):
        if current and total + tokens > budget_tokens:
            parts.append((" ".join(current), total))
            current, total = [], 0
        current.append(word)
        total += tokens
    return parts + ([(" ".join(current), total)] if current else [])


def chunks(tokenizer: Tokenizer, sentences: Iterable[str], budget_tokens: int) -> Iterator[list[tuple[str, int]]]:
    """Group consecutive sentences into chunks of at most ``budget_tokens`` of text.

    Args:
        tokenizer: counts the tokens; those of a chunk are taken as the sum over its sentences, which is exact for
            tokenizers that split at spaces and an upper estimate otherwise.
        sentences: the text in order; a sentence longer than the budget is cut at words.
        budget_tokens: tokens of the bare text, the wrapper's (:func:`wrapper_tokens`) already taken off.

    Yields:
        Lists of (sentence, tokens).
    """
    current: list[tuple[str, int]] = []
    total = 0
    for sentence, tokens in measured(tokenizer, sentences):
        parts = [(sentence, tokens)] if tokens <= budget_tokens else split_sentence(tokenizer, sentence, budget_tokens)
        for part, part_tokens in parts:
            if current and total + part_tokens > budget_tokens:
                yield current
                current, total = [], 0
            current.append((part, part_tokens))
            total += part_tokens
    if current:
        yield current
