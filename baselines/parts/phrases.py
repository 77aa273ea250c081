"""Numbered phrases and their vectors: each is embedded once, however many passages, overlays and contexts hold it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import numpy as np

from baselines.parts.extraction import FUNCTION_WORDS
from baselines.parts.models import EmbeddingModel
from msa_base.errors import UserError
from msa_base.records import Document

Kind = Literal["model", "words", "both"]
WORD_DIMENSIONS = 512


class PhraseEncoder:
    """Turns the short texts of a memory, and questions, into unit vectors [N, E] float32 of one space.

    ``embedder`` is the one that embeds passages too. ``words`` compares texts as bags of words, for embedders that were
    trained on whole documents alone and say nothing of lower-cased phrases. With both, the cosine of two texts is the
    mean of both.
    """

    def __init__(self, embedder: EmbeddingModel | None, words: bool) -> None:
        self._embedder, self._words = embedder, words

    def phrases(self, texts: Sequence[str]) -> np.ndarray:
        return self._joined(texts, lambda embedder: embedder.documents([Document(0, text, 0) for text in texts]))

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        return self._joined(texts, lambda embedder: embedder.queries(list(texts)))

    def _joined(self, texts: Sequence[str], embed: Callable[[EmbeddingModel], np.ndarray]) -> np.ndarray:
        vectors = [] if self._embedder is None else [embed(self._embedder)]
        vectors += [bags_of_words(texts)] if self._words else []
        return np.concatenate(vectors, axis=1) * np.float32(len(vectors) ** -0.5)


def bags_of_words(texts: Sequence[str]) -> np.ndarray:
    """Words hashed with signs [N, WORD_DIMENSIONS]; function words count nothing. A text without others is all zero."""
    result = np.zeros((len(texts), WORD_DIMENSIONS), np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"[^\W_]+", text.lower()):
            if word not in FUNCTION_WORDS:
                place, sign = _dimension(word)
                result[row, place] += sign
    norms = np.linalg.norm(result, axis=1, keepdims=True)
    return result / np.where(norms > 0, norms, 1)


@cache
def _dimension(word: str) -> tuple[int, float]:
    """Which number of a vector a word counts in, and its sign there."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little") % WORD_DIMENSIONS, 1.0 if digest[4] & 1 else -1.0


def open_encoder(kind: Kind, embedder: EmbeddingModel | None, where: str) -> PhraseEncoder:
    """The encoder called ``kind``; a UserError where it needs a model that embeds, and there is none."""
    if kind == "words":
        return PhraseEncoder(None, words=True)
    if embedder is None:
        raise UserError(
            f"{where}: `phrases: {kind}` needs an index whose model embeds; add `index:` or set `phrases: words`"
        )
    return PhraseEncoder(embedder, words=kind == "both")


class Phrases:
    """Phrases by number, in the order in which they were first met."""

    def __init__(self, encoder: PhraseEncoder) -> None:
        self._encoder = encoder
        self._numbers: dict[str, int] = {}
        self.texts: list[str] = []
        self._vectors = np.zeros((0, 0), np.float32)

    def numbers(self, texts: Sequence[str]) -> list[int]:
        """The numbers of some phrases; new ones get the next."""
        for text in texts:
            if text not in self._numbers:
                self._numbers[text] = len(self.texts)
                self.texts.append(text)
        return [self._numbers[text] for text in texts]

    @property
    def vectors(self) -> np.ndarray:
        """Unit vectors [phrases, E] float32 of all of them; what has none yet is encoded now."""
        if len(self._vectors) < len(self.texts):
            new = self._encoder.phrases(self.texts[len(self._vectors) :])
            self._vectors = np.concatenate([self._vectors, new]) if len(self._vectors) else np.asarray(new, np.float32)
        return self._vectors
