"""The graph of HippoRAG 2: passages, the entities of their triples and edges among them; personalised PageRank on it.

Shape legend: P passages, E entities, F facts of one corpus; K pairs or edges. Entities and facts go by their numbers in
:class:`baselines.parts.phrases.Phrases`, passages by their place in the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# PageRank and dense scores that differ by less are ties: the order of summation shows from about there
SCORE_DECIMALS = 12
BLOCK = 1024  # rows of similarities at once


@dataclass(frozen=True)
class Mined:
    """What one passage states: numbers of its facts and entities, each once, and of the pairs [K, 2] that its triples
    relate.
    """

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

        def kept(places: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            keep = ~np.isin(places, passages)
            return places[keep], numbers[keep]

        return self._each(kept)

    def at(self, places: np.ndarray) -> Columns:
        """The same rows with passage p standing at ``places[p]``."""
        return self._each(lambda passages, numbers: (places[passages], numbers))

    def _each(self, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Columns:
        facts, entities = change(self.fact_passage, self.fact), change(self.entity_passage, self.entity)
        return Columns(*facts, *entities, *change(self.pair_passage, self.pairs))

    def __add__(self, other: Columns) -> Columns:
        return Columns(*(np.concatenate(both) for both in zip(vars(self).values(), vars(other).values(), strict=True)))


class Synonyms:
    """Links between entities of near vectors, found once for a base set and amended for what an overlay adds and
    removes.

    Args:
        eligible: which entities may be linked, by number.
        threshold, most: an entity is linked to its ``most`` nearest within the ``threshold`` by cosine.
        spare: how many entities of the base an overlay may remove without a search from scratch.
    """

    def __init__(
        self, base: np.ndarray, vectors: np.ndarray, eligible: np.ndarray, threshold: float, most: int, spare: int
    ) -> None:
        self.base, self.threshold, self.most = base, threshold, most
        self._links = _near(base, base, vectors, eligible, threshold, most + spare)

    def among(self, entities: np.ndarray, vectors: np.ndarray, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Links [K, 2] from entities to their synonyms, by number, and cosines [K]."""
        if self.threshold > 1:
            return np.zeros((0, 2), np.int64), np.zeros(0)
        alive = np.zeros(len(vectors), bool)
        alive[entities] = True
        links = self._links[alive[self._links["of"]] & alive[self._links["to"]]]
        new = np.setdiff1d(entities, self.base, assume_unique=True)
        if len(new):
            forward = _near(new, entities, vectors, eligible, self.threshold, self.most)
            old = np.setdiff1d(entities, new, assume_unique=True)
            backward = _near(old, new, vectors, eligible, self.threshold, self.most)
            links = np.concatenate([links, forward, backward])
        links = _best(links, self.most)
        return np.stack([links["of"], links["to"]], axis=1), links["cosine"].astype(float)


_LINK = np.dtype([("of", np.int64), ("to", np.int64), ("cosine", np.float32)])


def _near(
    of: np.ndarray, to: np.ndarray, vectors: np.ndarray, eligible: np.ndarray, threshold: float, most: int
) -> np.ndarray:
    """Links from the eligible of ``of`` to their nearest in ``to`` above the threshold, ``most`` of each."""
    of, parts = of[eligible[of]], [np.zeros(0, _LINK)]
    if threshold > 1 or not len(to):
        return parts[0]
    keys = vectors[to]
    for start in range(0, len(of), BLOCK):
        block = of[start : start + BLOCK]
        cosines = vectors[block] @ keys.T
        cosines[block[:, None] == to] = -np.inf  # nothing is its own synonym
        rows, columns = np.nonzero(cosines >= threshold)
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

    Edge weights: between a passage and each of its entities 1; between entities the sum over both directions of the
    number of triples that relate them, or in its place the cosine where the one is linked to the other as a synonym.

    Args:
        columns: what the passages state.
        num_passages: P.
        synonyms: links [K, 2] of entity numbers, each direction a link of its own, and their cosines [K].
    """

    def __init__(self, columns: Columns, num_passages: int, synonyms: tuple[np.ndarray, np.ndarray]) -> None:
        self.columns, self.num_passages = columns, num_passages
        self.entities = np.unique(columns.entity)
        self.facts = np.unique(columns.fact)
        self._synonyms = synonyms

    def place(self, entity: int) -> int:
        return int(np.searchsorted(self.entities, entity))

    @cached_property
    def num_passages_of(self) -> np.ndarray:
        """How many passages hold each entity [E]."""
        return np.bincount(np.searchsorted(self.entities, self.columns.entity), minlength=len(self.entities))

    @cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges [K, 2] of nodes, no two between the same nodes, and weights [K]."""
        count = len(self.entities)
        related = np.searchsorted(self.entities, self.columns.pairs)
        related = related[related[:, 0] != related[:, 1]]
        links, times = np.unique(_key(np.concatenate([related, related[:, ::-1]]), count), return_counts=True)
        alike, cosines = _key(np.searchsorted(self.entities, self._synonyms[0]), count), self._synonyms[1]
        counted = ~np.isin(links, alike)
        one, other = np.divmod(np.concatenate([links[counted], alike]), count)
        pairs, of = np.unique(np.minimum(one, other) * count + np.maximum(one, other), return_inverse=True)
        weights = np.bincount(of, np.concatenate([times[counted], cosines]), len(pairs))
        held = np.searchsorted(self.entities, self.columns.entity), count + self.columns.entity_passage
        ends = np.concatenate([np.stack(np.divmod(pairs, count), axis=1), np.stack(held, axis=1)])
        return ends, np.concatenate([weights, np.ones(len(held[0]))])

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
        how = {"directed": False, "damping": damping, "weights": "weight", "implementation": "prpack"}
        ranks = self._graph.personalized_pagerank(reset=restart.tolist(), **how)
        return np.asarray(ranks[len(self.entities) :])

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.edges)


def _key(pairs: np.ndarray, count: int) -> np.ndarray:
    return pairs[:, 0] * count + pairs[:, 1]


def min_max(scores: np.ndarray) -> np.ndarray:
    """Min-max normalised scores; ones where all are equal."""
    low, high = (scores.min(), scores.max()) if len(scores) else (0.0, 0.0)
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)
