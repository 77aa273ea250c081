"""The graph of HippoRAG 2: passages, the entities of their triples and edges among them, and personalised PageRank on it.

Shape legend: P passages, E entities, F facts of one corpus; K pairs or edges. Entities and facts go by their numbers in
:class:`baselines.phrases.Phrases`, passages by their place in the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SCORE_DECIMALS = 12  # PageRank and dense scores that differ by less are ties: the order of summation shows from about there
BLOCK = 1024  # rows of similarities at once


@dataclass(frozen=True)
class Mined:
    """What one passage states: numbers of its facts and entities, each once, and of the pairs [K, 2] that its triples relate."""

    facts: np.ndarray
    entities: np.ndarray
    pairs: np.ndarray


def mined(facts: Sequence[int], pairs: Sequence[tuple[int, int]]) -> Mined:
    """The record of a passage whose triples have these facts and pairs of entities."""
    related = np.asarray(pairs, np.int64).reshape(-1, 2)
    return Mined(np.unique(np.asarray(facts, np.int64)), np.unique(related), related)


@dataclass(frozen=True)
class Columns:
    """Some passages' records, one below the other: which passage each row is of, and its numbers."""

    fact_passage: np.ndarray
    fact: np.ndarray
    entity_passage: np.ndarray
    entity: np.ndarray
    pair_passage: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Mined]) -> Columns:
        """The columns of passages 0, 1, ..."""

        def join(parts: list[np.ndarray], empty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            place = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            return place, np.concatenate(parts) if parts else empty

        none = np.zeros(0, np.int64)
        facts = join([record.facts for record in records], none)
        entities = join([record.entities for record in records], none)
        return cls(*facts, *entities, *join([record.pairs for record in records], none.reshape(0, 2)))

    def without(self, passages: Sequence[int]) -> Columns:
        """All rows but those of some passages."""
        keep = [~np.isin(column, passages) for column in (self.fact_passage, self.entity_passage, self.pair_passage)]
        return Columns(
            self.fact_passage[keep[0]], self.fact[keep[0]], self.entity_passage[keep[1]], self.entity[keep[1]],
            self.pair_passage[keep[2]], self.pairs[keep[2]],
        )  # fmt: skip

    def at(self, places: np.ndarray) -> Columns:
        """The same rows with passage p standing at ``places[p]``."""
        return Columns(
            places[self.fact_passage], self.fact, places[self.entity_passage], self.entity, places[self.pair_passage], self.pairs
        )

    def __add__(self, other: Columns) -> Columns:
        return Columns(*(np.concatenate(both) for both in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class SynonymSpec:
    """An entity with more than ``min_characters`` letters and digits is linked to its nearest within ``threshold`` by cosine,
    at most ``cap`` of its ``neighbours`` nearest (itself among them)."""

    threshold: float
    neighbours: int
    cap: int
    min_characters: int

    @property
    def most(self) -> int:
        """Links of one entity at most."""
        return min(self.cap, self.neighbours - 1)


class Synonyms:
    """Links between entities of near vectors, found once for a base set and amended for what an overlay adds and removes.

    Args:
        spare: how many entities of the base an overlay may remove without a search from scratch.
    """

    def __init__(self, base: np.ndarray, vectors: np.ndarray, eligible: np.ndarray, spec: SynonymSpec, spare: int) -> None:
        self.spec, self.base = spec, base
        self._links = _near(base, base, vectors, eligible, spec, spec.most + spare)

    def among(self, entities: np.ndarray, vectors: np.ndarray, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs [K, 2] of entity numbers, each pair once and the smaller number first, and cosines [K]."""
        if self.spec.threshold > 1:
            return np.zeros((0, 2), np.int64), np.zeros(0)
        alive = np.zeros(len(vectors), bool)
        alive[entities] = True
        links = self._links[alive[self._links["of"]] & alive[self._links["to"]]]
        new = np.setdiff1d(entities, self.base, assume_unique=True)
        if len(new):
            forward = _near(new, entities, vectors, eligible, self.spec, self.spec.most)
            old = np.setdiff1d(entities, new, assume_unique=True)
            backward = _near(old, new, vectors, eligible, self.spec, self.spec.most)
            links = np.concatenate([links, forward, backward])
        links = _best(links, self.spec.most)
        pairs = np.sort(np.stack([links["of"], links["to"]], axis=1), axis=1)
        pairs, first = np.unique(pairs, axis=0, return_index=True)
        return pairs, links["cosine"][first].astype(float)


_LINK = np.dtype([("of", np.int64), ("to", np.int64), ("cosine", np.float32)])


def _near(
    of: np.ndarray, to: np.ndarray, vectors: np.ndarray, eligible: np.ndarray, spec: SynonymSpec, most: int
) -> np.ndarray:
    """Links from the eligible of ``of`` to their nearest in ``to`` above the threshold, ``most`` of each."""
    of, parts = of[eligible[of]], [np.zeros(0, _LINK)]
    if spec.threshold > 1 or not len(to):
        return parts[0]
    keys = vectors[to]
    for start in range(0, len(of), BLOCK):
        block = of[start : start + BLOCK]
        cosines = vectors[block] @ keys.T
        cosines[block[:, None] == to] = -np.inf  # nothing is its own synonym
        rows, columns = np.nonzero(cosines >= spec.threshold)
        links = np.empty(len(rows), _LINK)
        links["of"], links["to"], links["cosine"] = block[rows], to[columns], cosines[rows, columns]
        parts.append(_best(links, most))
    return np.concatenate(parts)


def _best(links: np.ndarray, most: int) -> np.ndarray:
    """The ``most`` best links of each entity."""
    links = links[np.lexsort((links["to"], -links["cosine"], links["of"]))]
    starts = np.flatnonzero(np.r_[True, links["of"][1:] != links["of"][:-1]]) if len(links) else np.zeros(0, np.int64)
    rank = np.arange(len(links)) - np.repeat(starts, np.diff(np.r_[starts, len(links)]))
    return links[rank < most]


class PassageGraph:
    """The graph of one corpus: entities are its first nodes, passages the others.

    Edge weights: between entities the number of triples that relate them, or the cosine where they are synonyms; between a
    passage and each of its entities 1.

    Args:
        columns: what the passages state; num_passages: P.
        synonyms: pairs of entity numbers and their cosines.
    """

    def __init__(self, columns: Columns, num_passages: int, synonyms: tuple[np.ndarray, np.ndarray]) -> None:
        self.columns, self.num_passages = columns, num_passages
        self.entities = np.unique(columns.entity)
        self.facts = np.unique(columns.fact)
        self._synonyms = synonyms

    def place(self, entity: int) -> int:
        """The node of an entity."""
        return int(np.searchsorted(self.entities, entity))

    @cached_property
    def num_passages_of(self) -> np.ndarray:
        """How many passages hold each entity [E]."""
        return np.bincount(np.searchsorted(self.entities, self.columns.entity), minlength=len(self.entities))

    @cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges [K, 2] of nodes, no two between the same nodes, and weights [K]."""
        count = len(self.entities)
        related = np.sort(np.searchsorted(self.entities, self.columns.pairs), axis=1)
        related = related[related[:, 0] != related[:, 1]]
        related, times = np.unique(related, axis=0, return_counts=True)
        alike, cosines = np.searchsorted(self.entities, self._synonyms[0]), self._synonyms[1]
        both = np.isin(_key(related, count), _key(alike, count))
        held = np.stack([np.searchsorted(self.entities, self.columns.entity), count + self.columns.entity_passage], axis=1)
        return (
            np.concatenate([related[~both], alike, held]),
            np.concatenate([times[~both].astype(float), cosines, np.ones(len(held))]),
        )

    @cached_property
    def _graph(self):
        import igraph

        edges, weights = self.edges
        graph = igraph.Graph(n=len(self.entities) + self.num_passages, edges=edges, directed=False)
        graph.es["weight"] = weights
        return graph

    def pagerank(self, entity_weights: np.ndarray, passage_weights: np.ndarray, damping: float) -> np.ndarray:
        """Personalised PageRank of the passages [P] for restart weights [E] and [P] of any positive sum."""
        restart = np.concatenate([entity_weights, passage_weights])
        ranks = self._graph.personalized_pagerank(
            directed=False, damping=damping, weights="weight", reset=restart.tolist(), implementation="prpack"
        )
        return np.asarray(ranks[len(self.entities) :])

    @property
    def num_bytes(self) -> int:
        """Bytes of the edges."""
        return sum(part.nbytes for part in self.edges)


def _key(pairs: np.ndarray, count: int) -> np.ndarray:
    return pairs[:, 0] * count + pairs[:, 1]


def ranking(scores: np.ndarray) -> np.ndarray:
    """Places by score, best first; of equals the earlier one first."""
    return np.argsort(-np.round(scores, SCORE_DECIMALS), kind="stable")


def spread(scores: np.ndarray) -> np.ndarray:
    """Min-max normalised scores; ones where all are equal."""
    low, high = (scores.min(), scores.max()) if len(scores) else (0.0, 0.0)
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)
