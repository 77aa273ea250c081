"""HippoRAG 2: passages and the entities of their triples in one graph; a question's facts seed a PageRank that ranks passages.

Source: HippoRAG 2 (OSU-NLP-Group/HippoRAG).

Kept: open information extraction in two model calls a passage, cached by passage hash (baselines.extraction); one graph of passages and
entities with co-occurrence, containment and synonym edges (baselines.passage_graph); facts scored against the question, min-max
normalised, the best five filtered by a model with few-shot JSON, and dense ranking where it keeps none; an entity's seed is its fact's
score over the number of passages that hold it, averaged over the facts it is in, the best five kept; every passage is seeded with
its min-max dense score times 0.05; personalised PageRank, damping 0.5, weighted, undirected, python-igraph's prpack. Extraction, filter and
reading are the entry's model, passages and phrases the index's embedder: both are factors of the experiment.

Changed: prompts are worded here, and the reader is the common one with its common prompt in place of one-shot chain of thought; facts
are embedded as "subject, predicate, object", and facts of one statement, which rules alone give, count as one of the five. The published code stores each pair of entities in both directions, so that
its co-occurrence and synonym edges count twice beside those of passages; here each counts once, as the paper's graph has them. By configuration, for machines
without a strong model: ``extractor: rules`` reads triples off the writing of words, ``fact_filter: names`` keeps the facts of which an
entity stands in the question, and ``phrases: words`` or ``both`` compares facts and entities as bags of words, or by those and the embedder.

A question sees the graph of its own corpus: an overlay's documents are mined and joined to the base's records.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.base import Resources, read_params
from baselines.dense import load_embeddings
from baselines.extraction import Fact, ModelExtractor, RuleExtractor, Triple, clean, normalised, read_reply
from baselines.models import Reader, open_embedder, open_reader, take_usage
from baselines.passage_graph import Columns, Mined, PassageGraph, Synonyms, SynonymSpec, mined, ranking, spread
from baselines.phrases import KINDS, Phrases, open_encoder
from baselines.reading import RagParams, ReadingSystem, Timer
from baselines.retrieval import Ranked, RetrievalSystem, Retriever
from configs.errors import UserError
from configs.load import SystemSpec
from configs.records import CorpusView, Document, Overlay, Question

EXTRACTORS, FILTERS = ("model", "rules"), ("model", "names", "none")
FILTER_TOKENS = 512
CLOSE = 0.6  # likeness from which a fact that a model wrote down is one of those it was given
KEPT_GRAPHS = 32  # the heads of one cell; a needle's overlay is asked once
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
class Search:
    """The published numbers of retrieval."""

    extractor: str = "model"
    fact_filter: str = "model"
    phrases: str = "model"
    facts_k: int = 5  # statements whose facts the filter gets
    entities_k: int = 5  # entities that are seeded
    passage_weight: float = 0.05
    damping: float = 0.5
    synonym_threshold: float = 0.8  # above 1 there are none
    synonym_neighbours: int = 2047
    synonym_cap: int = 100
    synonym_min_characters: int = 2

    def __post_init__(self) -> None:
        for name, value, known in (
            ("extractor", self.extractor, EXTRACTORS),
            ("fact_filter", self.fact_filter, FILTERS),
            ("phrases", self.phrases, KINDS),
        ):
            if value not in known:
                raise UserError(f"{name} '{value}': set one of {', '.join(known)}")
        if min(self.facts_k, self.entities_k, self.synonym_cap) < 1 or self.synonym_neighbours < 2:
            raise UserError("facts_k, entities_k and synonym_cap must be 1 or more, synonym_neighbours 2 or more")
        if not 0 <= self.damping < 1 or self.passage_weight <= 0:
            raise UserError(f"damping {self.damping} and passage_weight {self.passage_weight}: set 0 <= damping < 1 and passage_weight > 0")

    @property
    def needs_model(self) -> bool:
        """Whether a model writes triples or keeps facts."""
        return "model" in (self.extractor, self.fact_filter)


@dataclass(frozen=True)
class Params(Search, RagParams):
    """How to search and what to read: 200 are retrieved, as published."""

    routed_k: int = 200

    def __post_init__(self) -> None:
        Search.__post_init__(self)
        RagParams.__post_init__(self)


@dataclass
class Corpus:
    """One question's corpus: its graph, its passages' embeddings [P, E] and the documents themselves."""

    graph: PassageGraph
    embeddings: np.ndarray
    new: list[Document]
    replaced: dict[int, Document]

    def document(self, place: int, view: CorpusView) -> Document:
        """The document at a place of the corpus: new documents of the overlay, then the base with replacements."""
        if place < len(self.new):
            return self.new[place]
        row = place - len(self.new)
        return self.replaced.get(row) or view.base[row]


@dataclass(frozen=True)
class Found:
    """Places of a corpus's passages, best first, and the facts that seeded the graph (none: the ranking is dense)."""

    places: np.ndarray
    facts: list[Triple]


class HippoRAG(Retriever):
    """Mines each document once; a view's base is joined when it is ingested, an overlay's graph when first asked.

    Args:
        reader: writes triples and keeps facts, where a model does either.
    """

    stage = "hipporag"

    def __init__(self, params: Search, resources: Resources, reader: Reader | None) -> None:
        if resources.index is None:
            raise UserError("systems.yaml: HippoRAG 2 needs an index of kind 'dense'; add `index:` to the system's entry")
        self.params, self.reader = params, reader
        self._embedder = open_embedder(resources.index_model, resources.threads)
        tensors = load_embeddings(resources.index)
        self._embeddings, self._doc_ids = tensors["embeddings"], tensors["doc_ids"]
        cache = resources.model / "extraction.jsonl" if resources.model else None
        self.extractor = RuleExtractor() if params.extractor == "rules" else ModelExtractor(reader, cache)
        self.encoder = open_encoder(params.phrases, self._embedder, "systems.yaml: params of kind 'hipporag'")
        self._entities, self._statements = Phrases(self.encoder), Phrases(self.encoder)
        self._facts: dict[Fact, int] = {}  # numbers, in the order in which facts were first met
        self._listed: list[Fact] = []  # by number
        self._mined: dict[str, Mined] = {}
        self._overlay_embeddings: dict[Document, np.ndarray] = {}

    def ingest(self, view: CorpusView) -> None:
        """Mine the base and every overlay, join the base's records and find its synonyms."""
        ids = [document.doc_id for document in view.base]
        if ids != self._doc_ids[: len(ids)].tolist():
            raise UserError("the dense index is of another corpus than its view; run `python -m baselines.index` again")
        base = [document.text for document in view.base]
        added = {document: None for overlay in view.overlays.values() for document in overlay.added}
        self._mine([*base, *(document.text for document in added)])
        self._positions = {doc_id: row for row, doc_id in enumerate(ids)}
        self._columns = Columns.of([self._mined[text] for text in base])
        spare = max((len(self._lost(overlay)) for overlay in view.overlays.values()), default=0)
        params = self.params
        spec = SynonymSpec(
            params.synonym_threshold, params.synonym_neighbours, params.synonym_cap, params.synonym_min_characters
        )
        letters = np.asarray([len(text.replace(" ", "")) for text in self._entities.texts], np.int64)
        self._eligible = letters > spec.min_characters
        self._synonyms = Synonyms(
            np.unique(self._columns.entity), self._entities.vectors, self._eligible, spec, spare
        )
        self._graphs: dict[str, Corpus] = {}
        self._base_bytes = self._corpus(Overlay("", ()), view).graph.num_bytes

    def memory_bytes(self) -> int:
        """Bytes of the base's edges and of the vectors of all phrases met so far."""
        return self._base_bytes + self._entities.vectors.nbytes + self._statements.vectors.nbytes

    def take_usage(self) -> dict[str, Any]:
        """What a served embedder cost."""
        return take_usage(embedder=self._embedder)

    def prepare(self, questions: Sequence[Question], view: CorpusView) -> None:
        """Make the graphs of the questions' overlays."""
        for question in questions:
            self._corpus(view.overlay(question), view)

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """Rank the passages of each question's corpus."""
        timer = Timer()
        texts = [question.text for question in questions]
        dense, facts = self._embedder.queries(texts), self.encoder.questions(texts)
        ranked = []
        for question, *vectors in zip(questions, dense, facts, strict=True):
            corpus = self._corpus(view.overlay(question), view)
            found = self.find(question.text, *vectors, corpus)
            ranked.append([corpus.document(int(place), view) for place in found.places[:depth]])
        return Ranked(ranked, {"retrieve": timer.elapsed_s})

    def find(self, question: str, dense: np.ndarray, query: np.ndarray, corpus: Corpus) -> Found:
        """Rank a corpus for a question with its vectors in the passages' and in the facts' space."""
        graph, params = corpus.graph, self.params
        passages = spread(corpus.embeddings @ dense)
        candidates = self._candidates(graph, query)
        kept = self._filter(question, list(dict.fromkeys(triple for triple, _ in candidates)))
        if not kept:
            return Found(ranking(passages), [])
        chosen_facts = [(triple, score) for triple, score in candidates if triple in kept]
        weights = seeds(chosen_facts, self._held(graph), params.entities_k)
        restart = np.zeros(len(graph.entities))
        for entity, weight in weights.items():
            restart[graph.place(self._entities.numbers([entity])[0])] = weight
        ranks = graph.pagerank(restart, passages * params.passage_weight, params.damping)
        return Found(ranking(ranks), kept)

    def _candidates(self, graph: PassageGraph, query: np.ndarray) -> list[tuple[Triple, float]]:
        """The facts of the best statements with their normalised scores, best first."""
        facts = [self._listed[number] for number in graph.facts]
        if not facts:
            return []
        statements, of = np.unique(self._statements.numbers([fact.statement for fact in facts]), return_inverse=True)
        scores = np.round(spread(self._statements.vectors[statements] @ query), 6)
        least = -np.inf
        if len(statements) > self.params.facts_k:
            least = np.partition(scores, -self.params.facts_k)[-self.params.facts_k]
        # of equals the first by their text, whatever numbers they have here
        best = sorted(np.flatnonzero(scores >= least), key=lambda n: (-scores[n], self._statements.texts[statements[n]]))
        rank = {int(place): order for order, place in enumerate(best[: self.params.facts_k])}
        chosen_facts = sorted((rank[int(of[n])], facts[n].triple) for n in np.flatnonzero(np.isin(of, list(rank))))
        return [(triple, float(scores[best[order]])) for order, triple in chosen_facts]

    def _held(self, graph: PassageGraph):
        return lambda entity: int(graph.num_passages_of[graph.place(self._entities.numbers([entity])[0])])

    def _filter(self, question: str, candidates: list[Triple]) -> list[Triple]:
        if self.params.fact_filter == "none" or not candidates:
            return candidates
        if self.params.fact_filter == "names":
            padded = f" {normalised(question)} "
            return [triple for triple in candidates if any(f" {end} " in padded for end in (triple[0], triple[2]))]
        message = FILTER_PROMPT.format(question=question, facts=json.dumps(candidates, ensure_ascii=False))
        reply = self.reader.generate([message], FILTER_TOKENS)[0]
        return chosen(clean(read_reply(reply.text, "facts")), candidates)

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

    def _embed(self, documents: list[Document]) -> None:
        fresh = [document for document in dict.fromkeys(documents) if document not in self._overlay_embeddings]
        if fresh:
            self._overlay_embeddings.update(zip(fresh, self._embedder.documents(fresh), strict=True))

    def _lost(self, overlay: Overlay) -> np.ndarray:
        """Entities of the base passages that an overlay replaces."""
        rows = [self._positions[document.doc_id] for document in overlay.added if document.doc_id in self._positions]
        return np.unique(self._columns.entity[np.isin(self._columns.entity_passage, rows)])

    def _corpus(self, overlay: Overlay, view: CorpusView) -> Corpus:
        found = self._graphs.get(overlay.overlay_id)
        if found is None:
            if len(self._graphs) == KEPT_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            found = self._graphs[overlay.overlay_id] = self._join(overlay, view)
        return found

    def _join(self, overlay: Overlay, view: CorpusView) -> Corpus:
        self._embed(list(overlay.added))
        new = [document for document in overlay.added if document.doc_id not in self._positions]
        replaced = {self._positions[d.doc_id]: d for d in overlay.added if d.doc_id in self._positions}
        rows = np.asarray(list(replaced), np.int64)
        places = np.arange(len(view.base)) + len(new)
        columns = self._columns.without(rows).at(places)
        columns += Columns.of([self._mined[document.text] for document in new])
        if replaced:
            columns += Columns.of([self._mined[document.text] for document in replaced.values()]).at(rows + len(new))
        embeddings = self._embeddings[: len(view.base)]
        if new or replaced:
            embeddings = np.concatenate([*(self._overlay_embeddings[d][None] for d in new), embeddings])
            for row, document in replaced.items():
                embeddings[len(new) + row] = self._overlay_embeddings[document]
        entities = np.unique(columns.entity)
        synonyms = self._synonyms.among(entities, self._entities.vectors, self._eligible)
        return Corpus(PassageGraph(columns, len(new) + len(view.base), synonyms), embeddings, new, replaced)


def seeds(facts: Sequence[tuple[Triple, float]], held, most: int) -> dict[str, float]:
    """Restart weights of entities: a fact's score over the entity's passages, averaged over its facts; the ``most`` best.

    Args:
        held: how many passages hold an entity.
    """
    weights: dict[str, list[float]] = {}
    for (subject, _, thing), score in facts:
        for entity in (subject, thing):
            weights.setdefault(entity, []).append(score / held(entity))
    means = {entity: sum(found) / len(found) for entity, found in weights.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1])[:most])


def chosen(wanted: Sequence[Triple], candidates: Sequence[Triple]) -> list[Triple]:
    """The candidates that a model wrote down, each as the one most like it; what is like none of them counts nothing."""
    texts = {" ".join(triple): triple for triple in candidates}
    found = [difflib.get_close_matches(" ".join(triple), texts, 1, CLOSE) for triple in wanted]
    kept = {texts[match] for matches in found for match in matches}
    return [triple for triple in candidates if triple in kept]


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> HippoRAG:
    """The retriever as a stage of another."""
    search = read_params(Search, params, where)
    return HippoRAG(search, resources, open_reader(resources.model, resources.threads) if search.needs_model else None)


class HippoRAGSystem(RetrievalSystem):
    """Retrieval and reading by one model."""

    def __init__(self, params: Params, resources: Resources) -> None:
        ReadingSystem.__init__(self, resources)  # opens the reader that the retriever shares
        self.params, self.retriever = params, HippoRAG(params, resources, self.reader)
        self._view: CorpusView | None = None


def make(spec: SystemSpec, resources: Resources) -> HippoRAGSystem:
    """Open the index, the embedder and the reader."""
    return HippoRAGSystem(read_params(Params, spec.params, "systems.yaml: params of kind 'hipporag'"), resources)
