"""Any sentence-transformers model, as embedder or as cross-encoder: ``kind: sentence_encoder`` in models.yaml.

``name`` is the hub's id, of which ``revision`` pins the commit, or a directory. It needs `pip install '.[encoders]'`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from baselines.parts.models import ModelReference
from msa.checkpoints.pretrained import StatedShape as Shape
from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.validate import Commit, Count, Text, Tokens, Whole


@dataclass(frozen=True)
class ModelParams:
    """What to load and how to use it; prefixes are put before what is embedded, and ``max_tokens`` cuts it.

    ``label`` is the label of a cross-encoder that says "relevant", where it has several; of two without names it is the
    second.
    """

    name: Text
    revision: Commit | None = None
    batch: Count = 32
    max_tokens: Tokens | None = None
    label: Whole | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    model_kwargs: dict[str, Any] = field(default_factory=dict)  # as sentence-transformers takes them
    shape: Shape | None = None  # as its config.json has it, for the plan alone

    def check_here(self) -> None:
        """Raise a UserError for a model of the hub without a commit: another one may answer under its name tomorrow."""
        if not Path(self.name).is_dir() and self.revision is None:
            raise UserError(
                f"name '{self.name}' with revision {self.revision!r}: a model of the hub needs the 40 digits of a "
                "commit as `revision`; a directory must exist"
            )


def model_files(params: dict[str, Any]) -> list[Path]:
    """The files of a model that is a directory here."""
    place = Path(params["name"])
    return sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else []


def _load(cls: str, model: ModelReference) -> Any:
    import torch

    try:
        import sentence_transformers as library
    except ModuleNotFoundError:
        raise UserError("kind 'sentence_encoder' needs sentence-transformers: pip install '.[encoders]'") from None
    params = model.params
    torch.set_num_threads(model.threads)
    try:
        loaded = getattr(library, cls)(params.name, revision=params.revision, model_kwargs=params.model_kwargs)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        fetch = shlex.join(["hf", "download", params.name, "--revision", str(params.revision)])
        raise UserError(
            f"models.yaml: {model.directory.name}: {params.name} cannot be loaded ({reason});"
            f" fetch it with `{fetch}`, or name its directory"
        ) from None
    loaded.tokenizer.split_special_tokens = True  # within a document or question they are text
    if params.max_tokens is not None:
        loaded.max_seq_length = params.max_tokens
    return loaded


class SentenceEmbedder:
    """A bi-encoder (baselines.parts.models.EmbeddingModel)."""

    def __init__(self, model: ModelReference) -> None:
        self.params, self._model = model.params, _load("SentenceTransformer", model)

    def documents(self, documents: list[Document]) -> np.ndarray:
        return self._embed([self.params.document_prefix + document.text for document in documents])

    def queries(self, questions: list[str]) -> np.ndarray:
        return self._embed([self.params.query_prefix + question for question in questions])

    def _embed(self, texts: list[str]) -> np.ndarray:
        shape = {"normalize_embeddings": True, "convert_to_numpy": True}
        found = self._model.encode(texts, batch_size=self.params.batch, show_progress_bar=False, **shape)
        return _checked(np.asarray(found, np.float32), self.params, "embeddings")


class SentenceReranker:
    """A cross-encoder (baselines.parts.models.RerankingModel)."""

    def __init__(self, model: ModelReference) -> None:
        self.params, self._model = model.params, _load("CrossEncoder", model)

    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        """The model's one score a pair; of several labels the log-odds of the relevant one."""
        import torch

        query, text = self.params.query_prefix, self.params.document_prefix
        texts = [(query + question, text + document.text) for question, document in pairs]
        options = {"batch_size": self.params.batch, "show_progress_bar": False}
        label = self._label
        if label is not None:
            options["activation_fn"] = torch.nn.Identity()  # the logits
        found = np.asarray(self._model.predict(texts, **options), np.float32)
        if label is not None and len(pairs):
            others = np.delete(found, label, axis=1)
            found = found[:, label] - np.logaddexp.reduce(others, axis=1)
        return _checked(found.reshape(len(pairs)), self.params, "scores")

    @property
    def _label(self) -> int | None:
        """The label that says "relevant"; None of a model with one. Raises UserError: it is not clear which."""
        config, label = self._model.config, self.params.label
        names = [str(config.id2label.get(number, number)) for number in range(config.num_labels)]
        if label is None and names == ["LABEL_0", "LABEL_1"]:
            return 1
        if (label is None and len(names) > 1) or (label is not None and label >= len(names)):
            listed = ", ".join(f"{number}: {name}" for number, name in enumerate(names))
            raise UserError(f"models.yaml: {self.params.name}: `label` must say which label means relevant ({listed})")
        return label if len(names) > 1 else None


def _checked(found: np.ndarray, params: ModelParams, what: str) -> np.ndarray:
    if not np.isfinite(found).all():
        raise UserError(f"models.yaml: {params.name} gives {what} that are not finite; its weights may be broken")
    return found


open_embedder, open_reranker = SentenceEmbedder, SentenceReranker
