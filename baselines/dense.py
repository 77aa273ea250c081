"""RAG with dense retrieval (Karpukhin et al. 2020): FAISS over unit embeddings by inner product, then the common reader.

The tail is embedded once, into embeddings.safetensors, by any model that embeds. ``flat`` search is exact; ``ivf`` clusters the
tail and searches the lists nearest to the question. A view searches its prefix of the tail; the documents of overlays are
embedded when first met and scored beside it, and a replaced document never counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from baselines.base import IndexResources, Resources, read_params
from baselines.models import open_embedder, take_usage
from baselines.reading import RagParams, Timer
from baselines.retrieval import Ranked, RetrievalSystem, Retriever
from configs.errors import UserError
from configs.load import IndexSpec, SystemSpec
from configs.records import CorpusView, Document, Question
from configs.tables import read_corpus, whole_file

EMBEDDINGS = "embeddings.safetensors"
STRUCTURES = ("flat", "ivf")
TRAINING_ROWS = 64  # documents a list that the clusters are found from
SEED = 1234  # of the clusters


@dataclass(frozen=True)
class Search:
    """``probes``: lists of an ``ivf`` index that a question searches."""

    probes: int = 32

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise UserError(f"probes {self.probes}: search one list at least")


@dataclass(frozen=True)
class Params(Search, RagParams):
    """How to search and what to read."""

    def __post_init__(self) -> None:
        Search.__post_init__(self)
        RagParams.__post_init__(self)


@dataclass(frozen=True)
class IndexParams:
    """``batch`` documents are embedded at a time; ``lists`` of an ``ivf`` structure, 0 for four times the root of their number."""

    batch: int = 32
    structure: str = "flat"
    lists: int = 0

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise UserError(f"structure '{self.structure}': set one of {', '.join(STRUCTURES)}")
        if self.batch < 1 or self.lists < 0:
            raise UserError(f"batch {self.batch} and lists {self.lists}: set batch >= 1 and lists >= 0")


def build_index(spec: IndexSpec, resources: IndexResources, directory: Path) -> dict[str, Any]:
    """Embed a corpus: tensors ``embeddings`` [N, D] float32 and ``doc_ids`` [N] int64; of an ``ivf`` structure also the
    clusters' ``centroids`` [lists, D] and each document's ``list`` [N] int64.
    """
    from safetensors.numpy import save
    from tqdm import tqdm

    params = read_params(IndexParams, spec.params, "systems.yaml: params of kind 'dense'")
    embedder = open_embedder(resources.model, resources.threads)
    corpus = read_corpus(resources.corpus)
    rows = []
    for start in tqdm(range(0, len(corpus), params.batch), desc="embedding", unit="batch"):
        rows.append(embedder.documents(corpus[start : start + params.batch]))
    embeddings = np.ascontiguousarray(np.concatenate(rows), np.float32)
    tensors = {
        "embeddings": embeddings,
        "doc_ids": np.asarray([document.doc_id for document in corpus], np.int64),
    }
    if params.structure == "ivf":
        tensors.update(cluster(embeddings, params.lists or 4 * math.isqrt(len(embeddings)), resources.threads))
    with whole_file(directory / EMBEDDINGS) as temporary:
        temporary.write_bytes(save(tensors))
    return take_usage(embedder=embedder)


def cluster(embeddings: np.ndarray, lists: int, threads: int) -> dict[str, np.ndarray]:
    """Centroids [lists, D] of a sample's clusters, and the nearest of them for each embedding."""
    import faiss

    faiss.omp_set_num_threads(threads)
    lists = min(lists, len(embeddings))
    sample = np.random.default_rng(SEED).permutation(len(embeddings))[: lists * TRAINING_ROWS]
    means = faiss.Kmeans(
        embeddings.shape[1], lists, spherical=True, seed=SEED, min_points_per_centroid=1, niter=10, gpu=False
    )
    means.train(embeddings[np.sort(sample)])
    _, nearest = means.index.search(embeddings, 1)
    return {"centroids": np.ascontiguousarray(means.centroids, np.float32), "list": nearest[:, 0].astype(np.int64)}


def load_embeddings(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of an index directory (:func:`build_index`).

    Raises:
        UserError: the file is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = directory / EMBEDDINGS
    try:
        tensors = load_file(path)
        if len(tensors["embeddings"]) != len(tensors["doc_ids"]):
            raise KeyError("embeddings and doc_ids of different length")
        return tensors
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{path}: not a readable index ({error}); delete {directory} and run the same command again"
        ) from None


class DenseRetriever(Retriever):
    """Searches the prefix of the index that a view holds, and the question's overlay beside it."""

    stage = "dense"

    def __init__(self, params: Search, resources: Resources) -> None:
        import faiss

        if resources.index is None:
            raise UserError("systems.yaml: dense retrieval needs an index; add `index:` to the system's entry")
        faiss.omp_set_num_threads(resources.threads)
        self.params = params
        self._embedder = open_embedder(resources.index_model, resources.threads)
        self._tensors = load_embeddings(resources.index)
        self._overlay_embeddings: dict[Document, np.ndarray] = {}  # heads recur from context to context
        self._device = faiss.StandardGpuResources() if faiss.get_num_gpus() else None

    def ingest(self, view: CorpusView) -> None:
        """Check that the view is a prefix of the index, and make that prefix searchable."""
        ids = [document.doc_id for document in view.base]
        if ids != self._tensors["doc_ids"][: len(ids)].tolist():
            raise UserError("the dense index is of another corpus than its view; run `python -m baselines.index` again")
        self._positions = {doc_id: row for row, doc_id in enumerate(ids)}
        self._index = self._searchable(len(ids))

    def _searchable(self, documents: int) -> Any:
        import faiss

        embeddings, centroids = self._tensors["embeddings"][:documents], self._tensors.get("centroids")
        flat = faiss.IndexFlatIP(embeddings.shape[1])
        if centroids is None:
            flat.add(embeddings)
            return self._placed(flat)
        flat.add(centroids)
        index = faiss.IndexIVFFlat(flat, embeddings.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
        index.own_fields, index.is_trained = False, True
        self._quantiser = flat  # the index does not own it
        index.nprobe = min(self.params.probes, len(centroids))
        lists = np.ascontiguousarray(self._tensors["list"][:documents])
        index.add_core(documents, faiss.swig_ptr(embeddings), None, faiss.swig_ptr(lists))
        return self._placed(index)

    def _placed(self, index: Any) -> Any:
        """On the GPU, where faiss-gpu finds one."""
        import faiss

        return faiss.index_cpu_to_gpu(self._device, 0, index) if self._device else index

    def take_usage(self) -> dict[str, Any]:
        """What a served embedder cost."""
        return take_usage(embedder=self._embedder)

    def prepare(self, questions: Sequence[Question], view: CorpusView) -> None:
        """Embed the overlays' documents that were not met yet."""
        met = dict.fromkeys(document for question in questions for document in view.overlay(question).added)
        fresh = [document for document in met if document not in self._overlay_embeddings]
        if fresh:
            self._overlay_embeddings.update(zip(fresh, self._embedder.documents(fresh), strict=True))

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """Embed and search all questions at once, then rank each with its overlay."""
        timer = Timer()
        queries = self._embedder.queries([question.text for question in questions])
        found = self._search(queries, questions, view, depth)
        ranked = [self._merge(*item, view)[:depth] for item in zip(questions, queries, *found, strict=True)]
        return Ranked(ranked, {"retrieve": timer.elapsed_s})

    def _search(
        self, queries: np.ndarray, questions: list[Question], view: CorpusView, depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of the base's best, deep enough that no replaced document costs a place; row -1 is none."""
        replaced = max(self._num_replaced(question, view) for question in questions)
        depth = min(depth + replaced, len(view.base))
        if depth == 0:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        return self._index.search(queries, depth)

    def _num_replaced(self, question: Question, view: CorpusView) -> int:
        return sum(document.doc_id in self._positions for document in view.overlay(question).added)

    def _merge(
        self, question: Question, query: np.ndarray, scores: np.ndarray, rows: Sequence[int], view: CorpusView
    ) -> list[Document]:
        added = view.overlay(question).added
        replaced = {self._positions[document.doc_id] for document in added if document.doc_id in self._positions}
        candidates = [
            (-float(score), int(row), view.base[int(row)])
            for score, row in zip(scores, rows, strict=True)
            if int(row) not in replaced and row >= 0
        ]
        for place, document in enumerate(added):
            # among equals the earlier document is first: new ones stand before the base, replacements in their row
            row = self._positions.get(document.doc_id, place - len(added))
            candidates.append((-float(query @ self._overlay_embeddings[document]), row, document))
        candidates.sort(key=lambda item: item[:2])
        return [document for _, _, document in candidates]


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> DenseRetriever:
    """The retriever as a stage of another."""
    return DenseRetriever(read_params(Search, params, where), resources)


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    """Open the index, the embedder and the reader."""
    params = read_params(Params, spec.params, "systems.yaml: params of kind 'dense'")
    return RetrievalSystem(params, resources, DenseRetriever(params, resources))
