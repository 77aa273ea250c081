"""Models behind any OpenAI-compatible server, as reader, embedder or reranker: ``kind: endpoint`` in models.yaml.

A reader gets one message: the documents, the question and the opening of the answer. Replies are kept beside
reference.json, and a kept one has the times of the request that was made for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.base import CellStatus, Refused
from baselines.parts.models import ModelReference
from msa_base import prompts
from msa_base.endpoint import Endpoint
from msa_base.records import Document, Generation, Question
from msa_base.server import ContextExceeded, EndpointTimeout
from msa_base.specs import EndpointSpec


@dataclass(frozen=True)
class ModelParams(EndpointSpec):
    """A served model, and what an embedder is to read before questions and documents."""

    query_prefix: str = ""
    document_prefix: str = ""


class Served(Endpoint):
    """A served model; what a cell cannot do with it becomes the cell's status."""

    spec: ModelParams

    def __init__(self, model: ModelReference) -> None:
        super().__init__(model.params, model.directory / "replies")

    def set_replicate(self, seed: int) -> None:
        """Tell the draws of a model that samples apart by the seed of their cell."""
        self.replicate = seed

    def _asked(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return ask(*arguments)
        except ContextExceeded as error:
            raise CellStatus("unsupported_context", str(error)) from None
        except EndpointTimeout as error:  # says something of the server now; what it did reply is kept
            raise Refused("timeout", f"{error}; the next run asks again") from None


class ServedReader(Served):
    """A reader whose prompts are chat messages (baselines.parts.models.ReadingModel)."""

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[Generation]:
        """The reply to each prompt; its first token is seen with its last."""
        replies = self._asked(self.chat, prompts, max_new_tokens)
        return [
            Generation(
                *(one.text, one.input_tokens, one.output_tokens, one.total_s, one.total_s, one.truncated),
                prompt=prompt,
                status=one.status,
                whole=one.whole,
            )
            for one, prompt in zip(replies, prompts, strict=True)
        ]

    def prompt_tokens(self, documents: list[Document], question: Question) -> int:
        """Tokens as the profile's tokenizer counts the documents; the server has the last word on its window."""
        return sum(document.num_tokens for document in documents) + len(question.text.split())

    def answer(self, pairs: list[tuple[list[Document], Question]]) -> list[Generation]:
        found: dict[int, Generation] = {}
        for limit in dict.fromkeys(question.max_new_tokens for _, question in pairs):
            places = [place for place, (_, question) in enumerate(pairs) if question.max_new_tokens == limit]
            messages = [_message(*pairs[place]) for place in places]
            found.update(zip(places, self.generate(messages, limit), strict=True))
        return [found[place] for place in range(len(pairs))]

    def answer_shared(self, documents: list[Document], questions: list[Question]) -> list[Generation]:
        """The answer to each question from one context, which the server may keep between requests."""
        return self.answer([(documents, question) for question in questions])


def _message(documents: list[Document], question: Question) -> str:
    texts = [(document.doc_id, document.text) for document in documents]
    return prompts.reading_message(texts, question.text, question.answer_prefix)


class ServedEmbedder(Served):
    """An embedder (baselines.parts.models.EmbeddingModel)."""

    def documents(self, documents: list[Document]) -> np.ndarray:
        return self._embed([self.spec.document_prefix + document.text for document in documents])

    def queries(self, questions: list[str]) -> np.ndarray:
        return self._embed([self.spec.query_prefix + question for question in questions])

    def _embed(self, texts: list[str]) -> np.ndarray:
        vectors = self._asked(self.embed, texts)
        return vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True).astype(np.float32)


class ServedReranker(Served):
    """A reranker (baselines.parts.models.RerankingModel)."""

    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        """Scores of pairs, asked for question by question."""
        queries: dict[str, list[str]] = {}
        for question, document in pairs:
            queries.setdefault(question, []).append(document.text)
        scores = {query: iter(found) for query, found in self._asked(self.rerank, queries).items()}
        return np.asarray([next(scores[question]) for question, _ in pairs], np.float32)


open_reader, open_embedder, open_reranker = ServedReader, ServedEmbedder, ServedReranker
