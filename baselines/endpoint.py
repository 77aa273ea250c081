"""Models behind any OpenAI-compatible server, as reader, embedder or reranker: ``kind: endpoint`` in models.yaml.

A reader gets one message: the documents, the question and the opening of the answer. Replies are kept beside reference.json,
and a kept one has the times of the request that was made for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.base import CellStatus
from baselines.models import Reference
from configs import prompts
from configs.endpoint import ContextExceeded, Endpoint, EndpointSpec, EndpointTimeout
from configs.records import Document, Generation, Question


@dataclass(frozen=True)
class ModelParams(EndpointSpec):
    """A served model, and what an embedder is to read before questions and documents."""

    query_prefix: str = ""
    document_prefix: str = ""


class Served:
    """A served model; what a cell cannot do with it becomes the cell's status."""

    def __init__(self, model: Reference) -> None:
        self.params: ModelParams = model.params
        self.endpoint = Endpoint(self.params, model.directory / "replies")

    def take_usage(self) -> dict[str, Any]:
        """Requests, tokens and cost since they were last taken (configs.endpoint.Usage)."""
        return self.endpoint.take_usage()

    def _ask(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return ask(*arguments)
        except ContextExceeded as error:
            raise CellStatus("unsupported_context", str(error)) from None
        except EndpointTimeout as error:
            raise CellStatus("timeout", str(error)) from None


class ServedReader(Served):
    """A reader whose prompts are chat messages (baselines.models.Reader)."""

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[Generation]:
        """The reply to each prompt; its first token is seen with its last."""
        replies = self._ask(self.endpoint.chat, prompts, max_new_tokens)
        return [
            Generation(
                reply.text, reply.input_tokens, reply.output_tokens, reply.total_s, reply.total_s, reply.truncated, prompt
            )
            for reply, prompt in zip(replies, prompts, strict=True)
        ]

    def prompt_tokens(self, documents: list[Document], question: Question) -> int:
        """Tokens as the profile's tokenizer counts the documents; the server has the last word on its window."""
        return sum(document.num_tokens for document in documents) + len(question.text.split())

    def answer(self, pairs: list[tuple[list[Document], Question]]) -> list[Generation]:
        """The answer to each question from its own documents."""
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
    """An embedder (baselines.models.Embedder)."""

    def documents(self, documents: list[Document]) -> np.ndarray:
        """Unit vectors of documents."""
        return self._embed([self.params.document_prefix + document.text for document in documents])

    def queries(self, questions: list[str]) -> np.ndarray:
        """Unit vectors of questions."""
        return self._embed([self.params.query_prefix + question for question in questions])

    def _embed(self, texts: list[str]) -> np.ndarray:
        vectors = self._ask(self.endpoint.embed, texts)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


class ServedReranker(Served):
    """A reranker (baselines.models.Reranker)."""

    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        """Scores of pairs, asked for question by question."""
        queries: dict[str, list[str]] = {}
        for question, document in pairs:
            queries.setdefault(question, []).append(document.text)
        scores = {query: iter(found) for query, found in self._ask(self.endpoint.rerank, queries).items()}
        return np.asarray([next(scores[question]) for question, _ in pairs], np.float32)


open_reader, open_embedder, open_reranker = ServedReader, ServedEmbedder, ServedReranker
