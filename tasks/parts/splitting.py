"""How one text is cut into documents: four named strategies, each within a token budget, and nothing lost.

``sentences``  whole sentences up to the budget;
``fixed``      as many tokens as the budget holds, wherever that ends;
``paragraphs`` whole paragraphs up to the budget, longer ones by sentences; two paragraphs never share a part of one;
``similar``    neighbouring sentences while they share enough words (TextTiling's idea, over a chunk's word counts).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Literal

from tokenizers import Tokenizer

from msa_base.documents import MAX_CHARACTERS
from tasks.parts.chunking import Unit, count_tokens, fits, foreign_text, with_counts

MIN_SIMILARITY = 0.1  # cosine of word counts under which a new chunk begins
MERGE_BELOW = 0.25  # of the budget: a chunk smaller than this takes the next sentence however little they share
WINDOW = 12  # characters a token, more than text has
_PARAGRAPHS = re.compile(r"\s*\n\s*\n\s*")
_LINES = re.compile(r"\s*\n\s*")
_CHINESE_END = re.compile(r"(?<=[\u3002\uff01\uff1f\uff1b])")  # full-width end marks, with no space behind them
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_BOUNDARY = re.compile(r"(?<=[a-z0-9)\"'][.!?])\s+(?=[A-Z\"'(])")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|cf|etc|vs|resp|approx|[A-Z])\.$")
_STOPWORDS = frozenset([
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "he", "her", "his", "in", "is", "it", "its",
    "of", "on", "or", "she", "that", "the", "their", "they", "this", "to", "was", "were", "with",
])  # fmt: skip


def split_sentences(text: str) -> Iterator[str]:
    """Split collapsed text after end marks, but not after initials and abbreviations."""
    pending = ""
    for piece in _BOUNDARY.split(text):
        pending = f"{pending} {piece}" if pending else piece
        if not _ABBREVIATION.search(pending):
            yield pending
            pending = ""
    if pending:
        yield pending


def sentences(text: str) -> list[str]:
    """The sentences of a text: lines, then end marks, Chinese ones too."""
    return [
        piece.strip()
        for line in _LINES.split(text.strip())
        for sentence in split_sentences(" ".join(line.split()))
        for piece in _CHINESE_END.split(sentence)
        if piece.strip()
    ]


def split_tokens(tokenizer: Tokenizer, text: str, budget_tokens: int) -> list[str]:
    """Cut a text every ``budget_tokens`` tokens; a part that counts more by itself, cut from the rest, is shortened."""
    parts = []
    window = min(
        WINDOW * budget_tokens, MAX_CHARACTERS
    )  # characters looked at; more where so many make no more tokens than the budget
    while text:
        with foreign_text(tokenizer):
            ends = [end for _, end in tokenizer.encode(text[:window], add_special_tokens=False).offsets]
        if len(ends) <= budget_tokens:
            if window >= min(len(text), MAX_CHARACTERS):
                parts.append(text[:MAX_CHARACTERS].strip())
                text = text[MAX_CHARACTERS:].strip()
            window = min(2 * window, MAX_CHARACTERS)
            continue
        taken = budget_tokens
        while taken > 1 and count_tokens(tokenizer, [text[: ends[taken - 1]].strip()])[0] > budget_tokens:
            taken -= 1
        cut = max(1, ends[taken - 1])  # a character of several tokens stays whole
        parts.append(text[:cut].strip())
        text = text[cut:].strip()
    return [part for part in parts if part]


def _pieces(tokenizer: Tokenizer, texts: Sequence[str], budget_tokens: int) -> Iterator[Unit]:
    """Texts with their tokens, those beyond the budget cut by tokens."""
    for text, tokens in with_counts(tokenizer, texts):
        whole = fits(text, tokens, budget_tokens)
        yield from [(text, tokens)] if whole else with_counts(tokenizer, split_tokens(tokenizer, text, budget_tokens))


def _merge(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    budget_tokens: int,
    joint: str,
    joins: Callable[[str, int, str], bool] = lambda *_: True,
) -> list[str]:
    """Neighbouring pieces together while they fit and ``joins`` (chunk, its tokens, next piece) agrees."""
    chunks: list[str] = []
    total = 0
    joint_tokens = count_tokens(tokenizer, [joint])[0]
    for text, tokens in _pieces(tokenizer, texts, budget_tokens):
        both = f"{chunks[-1]}{joint}{text}" if chunks else ""
        if both and fits(both, total + joint_tokens + tokens, budget_tokens) and joins(chunks[-1], total, text):
            chunks[-1] = both
            total += joint_tokens + tokens
        else:
            chunks.append(text)
            total = tokens
    return chunks


def similarity(first: str, second: str) -> float:
    """Cosine of the word counts of two texts, stop words apart; 0 where one has no words."""
    bags = [Counter(word for word in _WORD.findall(text.lower()) if word not in _STOPWORDS) for text in (first, second)]
    norms = [math.sqrt(sum(number * number for number in bag.values())) for bag in bags]
    if not all(norms):
        return 0.0
    return sum(number * bags[1][word] for word, number in bags[0].items()) / (norms[0] * norms[1])


def by_sentences(tokenizer: Tokenizer, text: str, budget_tokens: int) -> list[str]:
    """Whole sentences up to the budget."""
    return _merge(tokenizer, sentences(text), budget_tokens, " ")


def by_paragraphs(tokenizer: Tokenizer, text: str, budget_tokens: int) -> list[str]:
    """Whole paragraphs (between blank lines; lines where there is none) up to the budget."""
    paragraphs = _PARAGRAPHS.split(text.strip())
    if len(paragraphs) == 1:
        paragraphs = _LINES.split(paragraphs[0])
    counted = with_counts(tokenizer, filter(None, paragraphs))
    chunks: list[str] = []
    for fit, group in groupby(counted, key=lambda unit: unit[1] <= budget_tokens):
        texts = [paragraph for paragraph, _ in group]
        if fit:
            chunks += _merge(tokenizer, texts, budget_tokens, "\n")
        else:
            chunks += [part for text in texts for part in by_sentences(tokenizer, text, budget_tokens)]
    return chunks


def by_similarity(tokenizer: Tokenizer, text: str, budget_tokens: int) -> list[str]:
    """Neighbouring sentences while they share enough words."""

    def joins(chunk: str, tokens: int, sentence: str) -> bool:
        return tokens < MERGE_BELOW * budget_tokens or similarity(chunk, sentence) >= MIN_SIMILARITY

    return _merge(tokenizer, sentences(text), budget_tokens, " ", joins)


Strategy = Literal["sentences", "fixed", "paragraphs", "similar"]
STRATEGIES: dict[str, Callable[[Tokenizer, str, int], list[str]]] = {
    "sentences": by_sentences,
    "fixed": split_tokens,
    "paragraphs": by_paragraphs,
    "similar": by_similarity,
}


def split(tokenizer: Tokenizer, text: str, budget_tokens: int, strategy: Strategy) -> list[str]:
    """The documents of a text: itself where it fits, whatever the strategy."""
    text = text.strip()
    if fits(text, count_tokens(tokenizer, [text])[0], budget_tokens):
        return [text]
    return STRATEGIES[strategy](tokenizer, text, budget_tokens)
