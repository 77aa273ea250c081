"""The machine's real prose, and passages of it that carry sentences of ours within a token budget."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer

from msa_base.errors import UserError
from msa_base.tables import read_table
from tasks.parts.chunking import Unit, count_tokens


def read_sentences(directory: Path | str, split: str) -> list[str]:
    """All sentences of a split (train or evaluation) in file order. Raises UserError: there are none."""
    rows = read_table("prose", Path(directory) / f"{split}.parquet")
    if not rows:
        raise UserError(f"{directory}/{split}.parquet: holds no prose; delete it and run the same command again")
    return [sentence for row in rows for sentence in row["sentences"]]


@dataclass(frozen=True)
class Prose:
    """The sentences of one split in file order, with their tokens."""

    units: list[Unit]

    @classmethod
    def read(cls, tokenizer: Tokenizer, directory: Path | str, split: str) -> Prose:
        """Read a split of the machine's prose and count its tokens once."""
        sentences = read_sentences(directory, split)
        return cls(list(zip(sentences, count_tokens(tokenizer, sentences), strict=True)))

    def passage(self, start: int, budget_tokens: int) -> tuple[list[Unit], int]:
        """Consecutive sentences from ``start`` (wrapping round) that fit, and where the next passage begins.

        A first sentence that does not fit is passed over; the passage ends before a later one that does not fit.
        """
        taken: list[Unit] = []
        total = 0
        for offset in range(len(self.units)):
            unit = self.units[(start + offset) % len(self.units)]
            if total + unit[1] > budget_tokens:
                if taken:
                    return taken, (start + offset) % len(self.units)
                continue
            taken.append(unit)
            total += unit[1]
        return taken, start

    def carry_each(
        self, tokenizer: Tokenizer, sentences: Sequence[str], budget_tokens: int, start: int, generator: random.Random
    ) -> tuple[list[str], int]:
        """A document's text for each sentence, over passages from ``start`` on; and where the next one begins."""
        texts = []
        for sentence, tokens in zip(sentences, count_tokens(tokenizer, sentences), strict=True):
            passage, start = self.passage(start, budget_tokens - tokens)
            texts.append(carry(passage, [(sentence, tokens)], budget_tokens, generator)[0])
        return texts, start


def fitting(units: Sequence[Unit], ours: Sequence[Unit], budget_tokens: int) -> list[Unit]:
    """The passage without the sentences at its end that ours leave no room for."""
    room = budget_tokens - sum(tokens for _, tokens in ours)
    return list(units[: sum(end <= room for end in accumulate(tokens for _, tokens in units))])


def insert(units: Sequence[Unit], ours: Sequence[Unit], positions: Sequence[int], budget_tokens: int) -> list[str]:
    """Put sentences of ours between the sentences of a passage; all in order.

    ``positions`` say of each of ours how many sentences of the passage stand before it (clipped to those left). Where
    the whole exceeds the budget, sentences of the passage are dropped from its end, never ours.
    """
    kept = fitting(units, ours, budget_tokens)
    placed: list[list[str]] = [[] for _ in range(len(kept) + 1)]
    for (text, _), position in zip(ours, positions, strict=True):
        placed[min(position, len(kept))].append(text)
    result = list(placed[0])
    for (text, _), following in zip(kept, placed[1:], strict=True):
        result += [text, *following]
    return result


def carry(
    passage: Sequence[Unit], ours: Sequence[Unit], budget_tokens: int, generator: random.Random
) -> tuple[str, int]:
    """A document's text and its tokens: the passage with ours at random sentence boundaries, joined by spaces."""
    kept = fitting(passage, ours, budget_tokens)
    positions = [generator.randint(0, len(kept)) for _ in ours]
    return " ".join(insert(kept, ours, positions, budget_tokens)), sum(tokens for _, tokens in [*kept, *ours])
