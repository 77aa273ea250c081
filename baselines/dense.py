"""RAG with dense retrieval (Karpukhin et al. 2020): FAISS over unit embeddings by inner product; then reading.

The tail is embedded once, into embeddings.safetensors, by any model that embeds. ``flat`` search is exact; ``ivf``
clusters the tail and searches the lists nearest to the question. A view searches its prefix of the tail. The documents
of overlays are embedded when first met and scored beside it, and a replaced document is never found.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from baselines.base import (
    NOT_ESTIMATED,
    Estimate,
    IndexResources,
    MemoryPart,
    Resources,
    params_of,
    pop_usage,
)
from baselines.parts.cost import reading_ranked, texts, weights, working
from baselines.parts.embedded import EMBEDDINGS, EmbeddedCorpus
from baselines.parts.models import open_embedder
from baselines.parts.reading import RagParams
from baselines.parts.retrieval import Ranked, RetrievalSystem, Retriever, best
from msa.model import cost
from msa.model.config import ModelConfig
from msa.model.cost import Documents
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, LayeredCorpus, Question
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.tables import read_corpus, whole_file
from msa_base.validate import Count, Whole, build

NEEDS = ("model", "index")
INDEX_NEEDS = ("model",)
Structure = Literal["flat", "ivf"]
TRAINING_ROWS = 64  # documents a list that the clusters are found from
SEED = 1234  # of the clusters
DECIMALS = 6  # of a score: texts alike are embedded with more noise than this, batch by batch
NEARER = 2 * 10**-DECIMALS  # what lies as near to the last score wanted may be its equal
MARGIN = 16  # documents searched beyond those wanted, to see whether equals follow
EMBEDDED_AT_ONCE = 32  # documents that are embedded together (msa.generation.embed)
GPU_DEPTH = 2048  # faiss finds no more on a GPU


@dataclass(frozen=True)
class DenseSearch:
    """``probes``: lists of an ``ivf`` index that a question searches."""

    probes: Count = 32


RetrieverParams = DenseSearch  # as a stage of another


@dataclass(frozen=True)
class Params(DenseSearch, RagParams):
    """How to search and what to read."""


@dataclass(frozen=True)
class IndexParams:
    """``batch`` documents are embedded at a time; 0 ``lists`` of an ``ivf`` structure are four times their root."""

    batch: Count = 32
    structure: Structure = "flat"
    lists: Whole = 0


def build_index(spec: IndexSpec, resources: IndexResources, directory: Path) -> dict[str, Any]:
    """Embed a corpus: tensors ``embeddings`` [N, D] float32 and ``doc_ids`` [N] int64; of an ``ivf`` structure also the
    clusters' ``centroids`` [lists, D] and each document's ``list`` [N] int64.
    """
    from safetensors.numpy import save
    from tqdm import tqdm

    params = params_of(IndexParams, spec)
    embedder = open_embedder(resources.model, resources.threads)
    corpus = read_corpus(resources.corpus)
    starts = tqdm(range(0, len(corpus), params.batch), desc="embedding", unit="batch")
    rows = [embedder.documents(corpus[start : start + params.batch]) for start in starts]
    embeddings = np.ascontiguousarray(np.concatenate(rows), np.float32)
    if not np.isfinite(embeddings).all():
        raise UserError(f"models.yaml: {spec.model}: gives embeddings that are not finite; its weights may be broken")
    tensors = {"embeddings": embeddings, "doc_ids": np.asarray([document.doc_id for document in corpus], np.int64)}
    if params.structure == "ivf":
        tensors.update(cluster(embeddings, params.lists or 4 * math.isqrt(len(embeddings)), resources.threads))
    with whole_file(directory / EMBEDDINGS) as temporary:
        temporary.write_bytes(save(tensors))
    return pop_usage({"embedder": embedder})


def cluster(embeddings: np.ndarray, lists: int, threads: int) -> dict[str, np.ndarray]:
    """Centroids [lists, D] of a sample's clusters, and the nearest of them for each embedding."""
    import faiss

    faiss.omp_set_num_threads(threads)
    lists = min(lists, len(embeddings))
    sample = np.random.default_rng(SEED).permutation(len(embeddings))[: lists * TRAINING_ROWS]
    options = {"spherical": True, "seed": SEED, "min_points_per_centroid": 1, "niter": 10, "gpu": False}
    means = faiss.Kmeans(embeddings.shape[1], lists, **options)
    means.train(embeddings[np.sort(sample)])
    _, nearest = means.index.search(embeddings, 1)
    return {"centroids": np.ascontiguousarray(means.centroids, np.float32), "list": nearest[:, 0].astype(np.int64)}


class DenseRetriever(Retriever):
    """Searches the prefix of the index that a view holds, and the question's overlay beside it."""

    stage = "dense"

    def __init__(self, params: DenseSearch, resources: Resources) -> None:
        import faiss

        faiss.omp_set_num_threads(resources.threads)
        self.params = params
        self._embedded = EmbeddedCorpus(resources)
        self.models = {"embedder": self._embedded.embedder}
        self._device = faiss.StandardGpuResources() if faiss.get_num_gpus() else None

    def ingest(self, view: CorpusView) -> None:
        self._embedded.check(view)
        self._base, self._index = view.base, self._searchable(len(view.base))

    def over(self, view: CorpusView) -> DenseRetriever:
        found = copy(self)
        found._embedded = self._embedded.over(self._base, view)
        found.ingest(view)
        return found

    def _searchable(self, documents: int) -> Any:
        import faiss

        tensors = self._embedded.tensors
        embeddings, centroids = tensors["embeddings"][:documents], tensors.get("centroids")
        flat = faiss.IndexFlatIP(embeddings.shape[1])
        if centroids is None:
            flat.add(embeddings)
            index = flat
        else:
            flat.add(centroids)
            index = faiss.IndexIVFFlat(flat, embeddings.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
            index.own_fields, index.is_trained = False, True
            self._quantiser = flat  # the index does not own it
            index.nprobe = min(self.params.probes, len(centroids))
            lists = np.ascontiguousarray(tensors["list"][:documents])
            index.add_core(documents, faiss.swig_ptr(embeddings), None, faiss.swig_ptr(lists))
        return faiss.index_cpu_to_gpu(self._device, 0, index) if self._device else index

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """Embed and search all questions at once, then rank each with its overlay."""
        corpora = [view.documents(question) for question in questions]
        self._embedded.embed(document for corpus in corpora for document in corpus.overlay.added)
        started_s = perf_counter()
        queries = self._embedded.queries([question.text for question in questions])
        # deep enough that no replaced document costs a place
        found = self._search(queries, depth + max(len(corpus.replaced) for corpus in corpora), len(view.base))
        ranked = [self._rank(*of, depth) for of in zip(questions, corpora, queries, found, strict=True)]
        return Ranked(ranked, {"retrieve": perf_counter() - started_s})

    def _search(self, queries: np.ndarray, wanted: int, documents: int) -> list[np.ndarray]:
        """Rows of each query's ``wanted`` best documents and of all whose scores may equal the last one's."""
        wanted, most = min(wanted, documents), min(documents, GPU_DEPTH if self._device else documents)
        found, left, deep = [np.zeros(0, np.int64)] * len(queries), range(len(queries)), min(wanted + MARGIN, most)
        while left and deep:
            scores, rows = self._index.search(queries[left], deep)
            for place, ids in zip(left, rows, strict=True):
                found[place] = ids[ids >= 0]  # -1: the lists searched hold no more
            equals = (scores[:, wanted - 1] - scores[:, -1] < NEARER) & (rows[:, -1] >= 0)
            left = [place for place, more in zip(left, equals.tolist(), strict=True) if more and deep < most]
            deep = min(4 * deep, most)
        return found

    def _rank(
        self, question: Question, corpus: LayeredCorpus, query: np.ndarray, rows: np.ndarray, depth: int
    ) -> list[Document]:
        """Rank the rows that the search found, but for replaced ones, with the overlay's documents, scored alike."""
        shown = np.asarray([row for row in rows.tolist() if row not in corpus.replaced], np.int64)
        places = np.concatenate([corpus.added_places, corpus.base_places(shown)])
        vectors = np.concatenate([self._embedded.added(corpus), self._embedded.tensors["embeddings"][shown]])
        scores = np.round(vectors.astype(np.float64) @ query.astype(np.float64), DECIMALS)
        return best(corpus, places, scores, depth, question)


estimate_cell = partial(reading_ranked, Params)  # embedding questions and new documents counts there


def estimate_index(spec: IndexSpec, config: ModelConfig | None, documents: Documents, dtype: str) -> Estimate:
    """Every document takes a forward pass of the whole model and leaves one float32 vector."""
    if config is None:
        return NOT_ESTIMATED
    vectors, mean = len(documents) * (config.hidden_size * 4 + cost.ID_BYTES), documents.tokens / max(1, len(documents))
    work = cost.activation_bytes(config, EMBEDDED_AT_ONCE * mean, dtype)
    parts = (
        weights(config, dtype),
        MemoryPart("embeddings", vectors, "disk"),
        MemoryPart("embeddings, being made", vectors, "host"),
        texts(documents),
        *working(work, -(-len(documents) // EMBEDDED_AT_ONCE)),
    )
    return Estimate(parts, {"embed": cost.read_cost(config, mean) * len(documents)})


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> DenseRetriever:
    return DenseRetriever(build(DenseSearch, params, where), resources)


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    params = params_of(Params, spec)
    return RetrievalSystem(params, resources, DenseRetriever(params, resources))
