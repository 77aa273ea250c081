"""Any sentence-transformers model, as embedder or as cross-encoder: ``kind: sentence_encoder`` in models.yaml.

``name`` is the hub's id, of which ``revision`` pins the commit, or a directory. Needs the extra: pip install '.[encoders]'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from baselines.models import Reference
from configs.errors import UserError
from configs.records import Document

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelParams:
    """What to load and how to use it; prefixes are put before what is embedded, and ``max_tokens`` cuts it."""

    name: str
    revision: str | None = None
    batch: int = 32
    max_tokens: int | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    model_kwargs: dict[str, Any] = field(default_factory=dict)  # as sentence-transformers takes them

    def __post_init__(self) -> None:
        if not Path(self.name).is_dir() and not _COMMIT.fullmatch(self.revision or ""):
            raise UserError(
                f"name '{self.name}' with revision {self.revision!r}: a model of the hub needs the 40 digits of a commit as"
                " `revision`; a directory must exist"
            )


def _library() -> ModuleType:
    try:
        import sentence_transformers
    except ModuleNotFoundError:
        raise UserError("kind 'sentence_encoder' needs sentence-transformers: pip install '.[encoders]'") from None
    return sentence_transformers


def _load(cls: str, model: Reference) -> Any:
    import torch

    library, params = _library(), model.params
    torch.set_num_threads(model.threads)
    try:
        loaded = getattr(library, cls)(params.name, revision=params.revision, model_kwargs=params.model_kwargs)
    except (OSError, ValueError) as error:
        raise UserError(
            f"models.yaml: {model.directory.name}: {params.name} cannot be loaded ({' '.join(str(error).split())[:300]});"
            f" fetch it with `hf download {params.name} --revision {params.revision}`, or name its directory"
        ) from None
    if params.max_tokens is not None:
        loaded.max_seq_length = params.max_tokens
    return loaded


class SentenceEmbedder:
    """A bi-encoder (baselines.models.Embedder)."""

    def __init__(self, model: Reference) -> None:
        self.params, self._model = model.params, _load("SentenceTransformer", model)

    def documents(self, documents: list[Document]) -> np.ndarray:
        """Unit vectors [N, E] float32 of documents."""
        return self._embed([self.params.document_prefix + document.text for document in documents])

    def queries(self, questions: list[str]) -> np.ndarray:
        """Unit vectors [N, E] float32 of questions."""
        return self._embed([self.params.query_prefix + question for question in questions])

    def _embed(self, texts: list[str]) -> np.ndarray:
        found = self._model.encode(
            texts,
            batch_size=self.params.batch,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(found, np.float32)


class SentenceReranker:
    """A cross-encoder (baselines.models.Reranker)."""

    def __init__(self, model: Reference) -> None:
        self.params, self._model = model.params, _load("CrossEncoder", model)

    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        """Scores [N] float32 of pairs."""
        texts = [
            (self.params.query_prefix + question, self.params.document_prefix + document.text)
            for question, document in pairs
        ]
        return np.asarray(self._model.predict(texts, batch_size=self.params.batch, show_progress_bar=False), np.float32)


open_embedder, open_reranker = SentenceEmbedder, SentenceReranker
