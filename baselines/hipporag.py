"""HippoRAG 2: passages and the entities of their triples in one graph; a question's facts seed a PageRank of passages.

Source: HippoRAG 2 (OSU-NLP-Group/HippoRAG at c617143). Its steps and numbers are those of the release; docs/RIVALS.md
lists them one by one, with what differs.

- Open information extraction in two model calls a passage, cached by passage hash (baselines.parts.extraction).
- One graph of passages and entities with co-occurrence, containment and synonym edges (baselines.parts.passage_graph).
- Facts are scored against the question and min-max normalised. A model filters the best five with few-shot JSON; where
  it keeps none, the ranking is dense.
- An entity's seed is its fact's score over the number of passages that hold it, averaged over the facts it is in; the
  best five are kept. Every passage is seeded with its min-max dense score times 0.05.
- Personalised PageRank, damping 0.5, weighted, undirected, python-igraph's prpack.

Extraction, filter and reading are the entry's model, passages and phrases the index's embedder: both are factors of the
experiment. For machines without a strong model: ``extractor: rules`` reads triples off the writing of words,
``fact_filter: names`` keeps the facts of which an entity stands in the question, and ``phrases: words`` or ``both``
compares facts and entities as bags of words, or by those and the embedder. Facts of one statement, which only rules
give, count as one of the five.

A question sees the graph of its own corpus: an overlay's documents are mined and joined to the base's records.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from baselines.base import Estimate, MemoryPart, PlannedCell, Resources, params_of
from baselines.parts.cost import READER_BATCH_TOKENS, reading, reading_ranked
from baselines.parts.embedded import EmbeddedCorpus
from baselines.parts.extraction import (
    NO_LIST,
    ModelExtractor,
    RuleExtractor,
    StatedTriple,
    Triple,
    ask_for_lists,
    normalised,
)
from baselines.parts.models import ReadingModel, model_digest, open_reader
from baselines.parts.passage_graph import (
    SCORE_DECIMALS,
    Columns,
    Mined,
    PassageGraph,
    Synonyms,
    min_max,
    mined,
)
from baselines.parts.phrases import Kind, Phrases, open_encoder
from baselines.parts.reading import RagParams
from baselines.parts.retrieval import KEPT_OVERLAYS, Ranked, RetrievalSystem, Retriever, best
from msa.model.cost import Cost
from msa_base.records import NO_OVERLAY, CorpusView, LayeredCorpus, Question
from msa_base.replies import Losses
from msa_base.specs import SystemSpec
from msa_base.validate import MANY, Count, Positive, Whole, build

NEEDS = ("model", "index")
ScoredFact = tuple[Triple, float]
FILTER_TOKENS = 512
LIBRARIES_BYTES, PASSAGE_BYTES = 0.1e9, 10_000  # of the graph: libraries and, a passage, its names (measured)
EXTRACTION_PROMPT_TOKENS, EXTRACTED_TOKENS = 200, 150  # assumed of a call for a plan: beside the passage, written
CLOSE = 0.0  # likeness from which a fact that a model wrote down is one of those it was given: the nearest, however far
FILTER_PROMPT = """Which of the facts help to answer the question? Keep those alone, none if none helps, four at most.
Reply with JSON alone, in the form of these examples.
Question: Who founded the company that makes the Model S?
Facts: [["tesla", "makes", "model s"], ["ford", "makes", "model t"], ["tesla", "founded by", "martin eberhard"]]
Reply: {{"facts": [["tesla", "makes", "model s"], ["tesla", "founded by", "martin eberhard"]]}}
Question: In which year was the painter of Guernica born?
Facts: [["guernica", "is", "town"], ["pablo picasso", "painted", "guernica"]]
Reply: {{"facts": [["pablo picasso", "painted", "guernica"]]}}
Question: {question}
Facts: {facts}
Reply: """


@dataclass(frozen=True)
class GraphSearch:
    """How to search; the defaults are the release's (``config_utils.py``, and ``HippoRAG.py`` for the last two)."""

    extractor: Literal["model", "rules"] = "model"
    fact_filter: Literal["model", "names", "none"] = "model"
    phrases: Kind = "model"
    facts_k: Count = 5  # statements whose facts the filter gets
    entities_k: Count = 5  # entities that are seeded
    passage_weight: Positive = 0.05
    damping: Annotated[float, Field(ge=0, lt=1)] = 0.5
    synonym_threshold: Annotated[float, Field(ge=-1, le=2)] = 0.8  # above 1 there are none
    synonym_neighbours: Annotated[int, Field(ge=2, le=MANY)] = 2047
    synonym_cap: Count = 101  # its loop ends behind the 101st
    synonym_min_characters: Whole = 2


RetrieverParams = GraphSearch  # as a stage of another


@dataclass(frozen=True)
class Params(GraphSearch, RagParams):
    """How to search and what to read: 200 are retrieved and five read, as in the release."""

    routed_k: Count = 200


@dataclass(frozen=True)
class GraphCorpus:
    """One question's corpus with its graph and its passages' embeddings [P, E]."""

    documents: LayeredCorpus
    graph: PassageGraph
    embeddings: np.ndarray


class HippoRAG(Retriever):
    """Mines each document once; joins a view's base when it is ingested, an overlay's graph when first asked.

    ``reader`` writes triples and keeps facts, where a model does either.
    """

    stage = "hipporag"

    def __init__(self, params: GraphSearch, resources: Resources, reader: ReadingModel | None) -> None:
        self.params, self.reader = params, reader
        self._embedded = EmbeddedCorpus(resources)
        self._losses = Losses()
        self.models = {"embedder": self._embedded.embedder, "reader": reader, "facts": self._losses}
        self.extractor = RuleExtractor() if params.extractor == "rules" else _model_extractor(reader, resources.model)
        self.encoder = open_encoder(params.phrases, self._embedded.embedder, "systems.yaml: params of kind 'hipporag'")
        self._entities, self._statements = Phrases(self.encoder), Phrases(self.encoder)
        self._facts: dict[StatedTriple, int] = {}  # numbers, in the order in which facts were first met
        self._listed: list[StatedTriple] = []  # by number
        self._mined: dict[str, Mined] = {}

    def ingest(self, view: CorpusView) -> None:
        """Mine the base and every overlay, join the base's records and find its synonyms."""
        self._embedded.check(view)
        base = [document.text for document in view.base]
        texts = [*base, *(document.text for overlay in view.overlays.values() for document in overlay.added)]
        self._mine(texts)
        if isinstance(self.extractor, ModelExtractor):
            self.extractor.count_losses(texts, self._losses)
        self._columns = Columns.of([self._mined[text] for text in base])
        spare = max((len(self._lost(view.corpus(overlay))) for overlay in view.overlays.values()), default=0)
        params = self.params
        most = min(params.synonym_cap, params.synonym_neighbours - 1)  # an entity is its own first neighbour
        letters = np.asarray([len(text.replace(" ", "")) for text in self._entities.texts], np.int64)
        self._eligible = letters > params.synonym_min_characters
        base_entities, vectors = np.unique(self._columns.entity), self._entities.vectors
        self._synonyms = Synonyms(base_entities, vectors, self._eligible, params.synonym_threshold, most, spare)
        self._joined = lru_cache(KEPT_OVERLAYS)(self._join)
        self._base_bytes = self._joined(view.corpus(NO_OVERLAY)).graph.num_bytes

    def memory_bytes(self) -> int:
        """Bytes of the base's edges and of the vectors of all phrases met so far."""
        return self._base_bytes + self._entities.vectors.nbytes + self._statements.vectors.nbytes

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        started_s = perf_counter()
        texts = [question.text for question in questions]
        vectors = zip(self._embedded.queries(texts), self.encoder.questions(texts), strict=True)
        ranked, elapsed_s = [], perf_counter() - started_s
        for question, (dense, query) in zip(questions, vectors, strict=True):
            corpus = self._joined(view.documents(question))  # joining an overlay is no question's latency
            started_s = perf_counter()
            scores = np.round(self._scores(question.text, dense, query, corpus), SCORE_DECIMALS)
            ranked.append(best(corpus.documents, np.arange(len(scores)), scores, depth, question))
            elapsed_s += perf_counter() - started_s
        return Ranked(ranked, {"retrieve": elapsed_s})

    def _scores(self, question: str, dense: np.ndarray, query: np.ndarray, corpus: GraphCorpus) -> np.ndarray:
        """Scores [P] of passages: their ranks in the graph, or dense scores where the filter keeps no fact.

        ``dense`` is the question's vector in the passages' space, ``query`` that in the facts'.
        """
        graph, params = corpus.graph, self.params
        passages = min_max(corpus.embeddings @ dense)
        found = self._filter(question, self._candidates(graph, query))
        if not found:
            return passages

        def node(entity: str) -> int:
            return graph.place(self._entities.numbers([entity])[0])

        weights = seeds(found, lambda entity: int(graph.num_passages_of[node(entity)]), params.entities_k)
        restart = np.zeros(len(graph.entities))
        restart[[node(entity) for entity in weights]] = list(weights.values())
        return graph.pagerank(restart, passages * params.passage_weight, params.damping)

    def _candidates(self, graph: PassageGraph, query: np.ndarray) -> list[ScoredFact]:
        """The facts of the best statements with their normalised scores, best first."""
        facts = [self._listed[number] for number in graph.facts]
        if not facts:
            return []
        statements, of = np.unique(self._statements.numbers([fact.statement for fact in facts]), return_inverse=True)
        scores = np.round(min_max(self._statements.vectors[statements] @ query), 6)
        least = -np.inf
        if len(statements) > self.params.facts_k:
            least = np.partition(scores, -self.params.facts_k)[-self.params.facts_k]
        # of equals the first by their text, whatever numbers they have here
        texts = self._statements.texts
        best = sorted(np.flatnonzero(scores >= least), key=lambda n: (-scores[n], texts[statements[n]]))
        rank = {int(place): order for order, place in enumerate(best[: self.params.facts_k])}
        chosen_facts = sorted((rank[int(of[n])], facts[n].triple) for n in np.flatnonzero(np.isin(of, list(rank))))
        return [(triple, float(scores[best[order]])) for order, triple in chosen_facts]

    def _filter(self, question: str, candidates: list[ScoredFact]) -> list[ScoredFact]:
        """The facts that help to answer; a model's in the order of its reply, repeats included."""
        if self.params.fact_filter == "none" or not candidates:
            return candidates
        if self.params.fact_filter == "names":
            padded = f" {normalised(question)} "
            return [fact for fact in candidates if any(f" {end} " in padded for end in (fact[0][0], fact[0][2]))]
        triples = list(dict.fromkeys(triple for triple, _ in candidates))
        message = FILTER_PROMPT.format(question=question, facts=json.dumps(triples, ensure_ascii=False))
        (reply,) = ask_for_lists(self.reader, [message], "facts", FILTER_TOKENS)
        self._losses.lost.update({NO_LIST: 1} if reply is None else {})
        kept = facts_named(reply or [], triples)[: self.params.facts_k]
        return [fact for triple in kept for fact in candidates if fact[0] == triple]

    def _mine(self, texts: Sequence[str]) -> None:
        """Number the facts and entities of the texts that were not met before."""
        new = [text for text in dict.fromkeys(texts) if text not in self._mined]
        for text, facts in zip(new, self.extractor.facts(new), strict=True):
            for fact in facts:
                if fact not in self._facts:
                    self._facts[fact] = len(self._listed)
                    self._listed.append(fact)
            self._statements.numbers([fact.statement for fact in facts])
            pairs = [tuple(self._entities.numbers([fact.triple[0], fact.triple[2]])) for fact in facts]
            self._mined[text] = mined([self._facts[fact] for fact in facts], pairs)

    def _lost(self, corpus: LayeredCorpus) -> np.ndarray:
        """Entities of the base passages that an overlay replaces."""
        return np.unique(self._columns.entity[np.isin(self._columns.entity_passage, list(corpus.replaced))])

    def _join(self, corpus: LayeredCorpus) -> GraphCorpus:
        """The graph of a corpus: the records of its overlay in place of those that they replace."""
        rows = np.arange(len(corpus.base))
        kept = self._columns.without(list(corpus.replaced)).at(corpus.base_places(rows))
        added = Columns.of([self._mined[document.text] for document in corpus.added])
        columns = kept + added.at(corpus.added_places)
        synonyms = self._synonyms.among(np.unique(columns.entity), self._entities.vectors, self._eligible)
        return GraphCorpus(corpus, PassageGraph(columns, len(corpus), synonyms), self._embedded.matrix(corpus))


def estimate_cell(cell: PlannedCell) -> Estimate:
    """The reader extracts each passage in two calls, filters the facts of each question and reads the best passages."""
    read, work, params = reading_ranked(Params, cell), cell.work, params_of(Params, cell.spec)
    passages = len(work.base) + len(work.overlay)
    calls = (2 * passages if params.extractor == "model" else 0) + (
        work.questions if params.fact_filter == "model" else 0
    )
    graph = MemoryPart("graph", LIBRARIES_BYTES + PASSAGE_BYTES * passages, "host")
    read = replace(read, parts=(*read.parts, graph) if read.parts else ())
    if not calls:
        return read
    asked = replace(cell, work=replace(work, questions=calls, answer_tokens=EXTRACTED_TOKENS))
    prompt = work.document_tokens + EXTRACTION_PROMPT_TOKENS
    extraction = reading(asked, prompt, min(calls, READER_BATCH_TOKENS // int(prompt)), calls)
    served = tuple(map(sum, zip(read.served_tokens, extraction.served_tokens, strict=True)))
    stages = {name: part + (extraction.stages or {}).get(name, Cost()) for name, part in (read.stages or {}).items()}
    return replace(read, stages=stages or None, served_tokens=served)


def _model_extractor(reader: ReadingModel, model: Path | None) -> ModelExtractor:
    """An extractor that keeps what was extracted beside the model; a plug-in's may say nothing of what it is."""
    if model is None:
        return ModelExtractor(reader, None)
    identity = None if hasattr(reader, "identity") else model_digest(model)
    return ModelExtractor(reader, model / "extraction.jsonl", identity)


def seeds(facts: Sequence[ScoredFact], held, most: int) -> dict[str, float]:
    """Restart weights of the ``most`` best entities: a fact's score over the passages that hold the entity (``held``),
    averaged over its facts.
    """
    weights: dict[str, list[float]] = {}
    for (subject, _, thing), score in facts:
        for entity in (subject, thing):
            weights.setdefault(entity, []).append(score / held(entity))
    means = {entity: sum(found) / len(found) for entity, found in weights.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1])[:most])


def facts_named(reply: Sequence, candidates: Sequence[Triple]) -> list[Triple]:
    """The candidates that a model wrote down: for each fact of its reply the nearest as Python writes both.

    A model that repeats a fact weights it so. What is no list is passed over.
    """
    texts = {str(triple): triple for triple in candidates}
    written = [str([str(part) for part in fact]) for fact in reply if isinstance(fact, list | tuple)]
    return [texts[match] for fact in written for match in difflib.get_close_matches(fact, texts, 1, CLOSE)]


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> HippoRAG:
    search = build(GraphSearch, params, where)
    needs_model = "model" in (search.extractor, search.fact_filter)
    return HippoRAG(search, resources, open_reader(resources.model, resources.threads) if needs_model else None)


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    """Open the index, the embedder and the reader, which extracts and filters too."""
    params = params_of(Params, spec)
    reader = open_reader(resources.model, resources.threads)
    return RetrievalSystem(params, resources, HippoRAG(params, resources, reader), reader)
