"""A dense index as retrievers hold it: the tail's embeddings, and those of the documents that overlays add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path

import numpy as np

from baselines.base import Resources
from baselines.parts.models import open_embedder
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, LayeredCorpus

EMBEDDINGS = "embeddings.safetensors"


class EmbeddedCorpus:
    """The embeddings of a view's documents; an overlay's document is embedded once, however many contexts have it."""

    def __init__(self, resources: Resources) -> None:
        if resources.index is None:
            raise UserError("systems.yaml: the system needs an index of kind 'dense'; add `index:` to its entry")
        self.embedder = open_embedder(resources.index_model, resources.threads)
        self.tensors = load_embeddings(resources.index)
        self._added: dict[Document, np.ndarray] = {}

    def check(self, view: CorpusView) -> None:
        """Raise a UserError where the view's base is no prefix of what was indexed."""
        if [*view.rows] != self.tensors["doc_ids"][: len(view.base)].tolist():
            raise UserError("the dense index is of another corpus than its view: run `baselines.drivers.index` again")

    def over(self, before: Sequence[Document], view: CorpusView) -> EmbeddedCorpus:
        """The embeddings of another view's base, of which most documents stand among those ``before``."""
        rows = {document: row for row, document in enumerate(before)}
        self.embed(document for document in view.base if document not in rows)
        tail = self.tensors["embeddings"]
        vectors = [tail[rows[item]] if item in rows else self._added[item] for item in view.base]
        found = copy(self)
        found.tensors = {"embeddings": np.asarray(vectors, np.float32).reshape(-1, tail.shape[1])}
        found.tensors["doc_ids"] = view.base_ids
        if (centroids := self.tensors.get("centroids")) is not None:
            lists = self.tensors["list"]
            nearest = [
                lists[rows[item]] if item in rows else (centroids @ vector).argmax()
                for item, vector in zip(view.base, vectors, strict=True)
            ]
            found.tensors |= {"centroids": centroids, "list": np.asarray(nearest, np.int64)}
        return found

    def embed(self, documents: Iterable[Document]) -> None:
        """Embed those documents of overlays that were not met before."""
        fresh = [document for document in dict.fromkeys(documents) if document not in self._added]
        if fresh:
            self._added.update(zip(fresh, self._checked(self.embedder.documents(fresh)), strict=True))

    def queries(self, questions: list[str]) -> np.ndarray:
        """Embeddings [N, E] of questions."""
        return self._checked(self.embedder.queries(questions))

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        """Raise a UserError where the embedder is no longer of the index's width, or gives no finite numbers."""
        width = self.tensors["embeddings"].shape[1]
        if vectors.shape[1] != width:
            wrong = f"the dense index has vectors of {width} numbers, its model now gives {vectors.shape[1]}"
            raise UserError(f"{wrong}: name the model that made it, or build it again (baselines.drivers.index)")
        if not np.isfinite(vectors).all():
            raise UserError("the index's model gives embeddings that are not finite; its weights may be broken")
        return vectors

    def added(self, corpus: LayeredCorpus) -> np.ndarray:
        """Embeddings [A, E] of ``corpus.added``, in its order; :meth:`embed` has met them."""
        width = self.tensors["embeddings"].shape[1]
        return np.asarray([self._added[document] for document in corpus.added], np.float32).reshape(-1, width)

    def matrix(self, corpus: LayeredCorpus) -> np.ndarray:
        """Embeddings [P, E] of a whole corpus by place; the tail's own memory where no overlay is laid over it."""
        tail = self.tensors["embeddings"][: len(corpus.base)]
        if not corpus.overlay.added:
            return tail
        self.embed(corpus.overlay.added)
        embeddings = np.empty((len(corpus), tail.shape[1]), np.float32)
        embeddings[corpus.base_places(np.arange(len(tail)))] = tail
        embeddings[corpus.added_places] = self.added(corpus)
        return embeddings


def load_embeddings(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of an index directory (:func:`baselines.dense.build_index`); a UserError where they are broken."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = directory / EMBEDDINGS
    try:
        tensors = load_file(path)
        if len(tensors["embeddings"]) != len(tensors["doc_ids"]):
            raise KeyError("embeddings and doc_ids of different length")
        return tensors
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        mend = f"delete {directory} and run the same command again"
        raise UserError(f"{path}: not a readable index ({error}); {mend}") from None
