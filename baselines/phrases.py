"""Numbered phrases and their vectors: each is embedded once, however many passages, overlays and contexts hold it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from baselines.extraction import FUNCTION_WORDS
from baselines.models import Embedder
from configs.errors import UserError
from configs.records import Document

KINDS = ("model", "words", "both")
WORD_DIMENSIONS = 512


class Encoder(Protocol):
    """What turns phrases and questions into unit vectors [N, E] float32 of one space."""

    def phrases(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of short texts of a memory."""

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of questions."""


class ModelEncoder:
    """The embedder that embeds passages too."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def phrases(self, texts: Sequence[str]) -> np.ndarray:
        """As :class:`Encoder`."""
        return self._embedder.documents([Document(0, text, 0) for text in texts])

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        """As :class:`Encoder`."""
        return self._embedder.queries(list(texts))


class WordEncoder:
    """Bags of words, hashed with signs; function words count nothing.

    It stands in where the embedder was trained on whole documents alone and says nothing of lower-cased phrases.
    """

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, float]] = {}

    def phrases(self, texts: Sequence[str]) -> np.ndarray:
        """As :class:`Encoder`; a text without words that count is the zero vector."""
        result = np.zeros((len(texts), WORD_DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"[^\W_]+", text.lower()):
                if word not in FUNCTION_WORDS:
                    place, sign = self._place(word)
                    result[row, place] += sign
        norms = np.linalg.norm(result, axis=1, keepdims=True)
        return result / np.where(norms > 0, norms, 1)

    questions = phrases

    def _place(self, word: str) -> tuple[int, float]:
        found = self._places.get(word)
        if found is None:
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            place = int.from_bytes(digest[:4], "little") % WORD_DIMENSIONS
            found = self._places[word] = place, 1.0 if digest[4] & 1 else -1.0
        return found


class BothEncoder:
    """Meaning and words alike: the cosine of two texts is the mean of their cosines under both encoders."""

    def __init__(self, model: ModelEncoder, words: WordEncoder) -> None:
        self._parts = (model, words)

    def phrases(self, texts: Sequence[str]) -> np.ndarray:
        """As :class:`Encoder`."""
        return np.concatenate([part.phrases(texts) for part in self._parts], axis=1) * np.float32(0.5**0.5)

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        """As :class:`Encoder`."""
        return np.concatenate([part.questions(texts) for part in self._parts], axis=1) * np.float32(0.5**0.5)


def open_encoder(kind: str, embedder: Embedder | None, where: str) -> Encoder:
    """The encoder called ``kind``.

    Raises:
        UserError: it needs a model that embeds, and there is none.
    """
    if kind == "words":
        return WordEncoder()
    if embedder is None:
        raise UserError(f"{where}: `phrases: {kind}` needs an index whose model embeds; add `index:` or set `phrases: words`")
    return ModelEncoder(embedder) if kind == "model" else BothEncoder(ModelEncoder(embedder), WordEncoder())


class Phrases:
    """Phrases by number, in the order in which they were first met."""

    def __init__(self, encoder: Encoder) -> None:
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
