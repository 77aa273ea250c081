"""How long text becomes documents: whole sentences up to a fixed token budget, under random, stable ids."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from tokenizers import Tokenizer

from msa_base import prompts
from msa_base.documents import MAX_CHARACTERS
from msa_base.errors import UserError
from msa_base.records import Document

SHORT_IDS = (100_000, 999_999)
LONG_IDS = (100_000_000, 999_999_999)
SHORT_ID_DOCUMENTS = 500_000  # beyond this many documents six digits get crowded
MIN_TEXT_TOKENS = 32  # what is left for the text of a document; the longest fact sentence has 18
BATCH = 2048

Unit = tuple[str, int]  # a sentence, or another piece of text, and its tokens


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
    """Tokens of each text, in one batch. Special tokens within are text, as they are to the models that read it."""
    with foreign_text(tokenizer):
        return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


@contextmanager
def foreign_text(tokenizer: Tokenizer, holds: bool = True) -> Iterator[None]:
    """Special tokens are text within the block, where ``holds``; elsewhere a template's are such."""
    before, tokenizer.encode_special_tokens = tokenizer.encode_special_tokens, holds
    try:
        yield
    finally:
        tokenizer.encode_special_tokens = before


def count_prompts(tokenizer: Tokenizer, template: str, texts: Sequence[str]) -> list[int]:
    """Tokens of each text behind a template of ours, whose special tokens are such.

    Where a text holds one too all are counted as text, which is more.
    """
    counts = []
    for text in texts:
        with foreign_text(tokenizer, any(token in text for token in prompts.SPECIAL_TOKENS)):
            counts.append(len(tokenizer.encode(template + text, add_special_tokens=False).ids))
    return counts


def wrapped_tokens(tokenizer: Tokenizer, pairs: Sequence[tuple[int, str]]) -> list[int]:
    """Tokens of documents (id, text) as the memory holds them: what is wrapped, and the two special tokens around."""
    wrapped = (prompts.document(*pair).removeprefix(prompts.IM_START).removesuffix(prompts.IM_END) for pair in pairs)
    return [tokens + 2 for tokens in count_tokens(tokenizer, list(wrapped))]


def fits(text: str, tokens: int, budget_tokens: int) -> bool:
    """Whether a text may stay whole: no token is so long that a document of few were too long to read."""
    return tokens <= budget_tokens and len(text) <= MAX_CHARACTERS


def wrapper_tokens(tokenizer: Tokenizer, num_documents: int = 0) -> int:
    """Tokens that the document wrapper adds to a text, for ids of a corpus of this size (an upper bound)."""
    low, high = id_range(num_documents)
    middle = (low + high) // 2 + 1
    return max(wrapped_tokens(tokenizer, [(doc_id, "") for doc_id in (low, middle, high)]))


def text_budget(tokenizer: Tokenizer, document_tokens: int, num_documents: int, where: str) -> int:
    """Tokens left for the text of a document of ``document_tokens``. Raises UserError: too few for our sentences."""
    budget = document_tokens - wrapper_tokens(tokenizer, num_documents)
    if budget < MIN_TEXT_TOKENS:
        least = document_tokens + MIN_TEXT_TOKENS - budget
        raise UserError(f"{where}: key 'document_tokens' must be {least} or more, found {document_tokens}")
    return budget


def make_documents(tokenizer: Tokenizer, pairs: Iterable[tuple[int, str]]) -> Iterator[Document]:
    """Documents from (id, text), with the tokens of their wrapped form counted in batches."""
    pairs = iter(pairs)
    while batch := list(islice(pairs, BATCH)):
        counts = wrapped_tokens(tokenizer, batch)
        for (doc_id, text), num_tokens in zip(batch, counts, strict=True):
            yield Document(doc_id, text, num_tokens)


def with_counts(tokenizer: Tokenizer, sentences: Iterable[str]) -> Iterator[Unit]:
    """Sentences with their tokens, counted in batches."""
    sentences = iter(sentences)
    while batch := list(islice(sentences, BATCH)):
        yield from zip(batch, count_tokens(tokenizer, batch), strict=True)


def packed(units: Iterable[Unit], budget_tokens: int) -> Iterator[list[Unit]]:
    """Consecutive units together while they fit; a longer one stands alone."""
    group: list[Unit] = []
    total = 0
    for unit in units:
        if group and total + unit[1] > budget_tokens:
            yield group
            group, total = [], 0
        group.append(unit)
        total += unit[1]
    if group:
        yield group


def chunks(tokenizer: Tokenizer, sentences: Iterable[str], budget_tokens: int) -> Iterator[list[Unit]]:
    """Group consecutive sentences up to ``budget_tokens`` of bare text; a longer one is cut at words.

    The tokens of a chunk are the sum over its sentences: exact for tokenizers that split at spaces, an upper estimate
    for others.
    """

    def parts() -> Iterator[Unit]:
        for sentence, tokens in with_counts(tokenizer, sentences):
            if tokens <= budget_tokens:
                yield sentence, tokens
            else:
                for words in packed(with_counts(tokenizer, sentence.split()), budget_tokens):
                    yield " ".join(word for word, _ in words), sum(count for _, count in words)

    return packed(parts(), budget_tokens)
