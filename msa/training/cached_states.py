"""Normed inputs of some layers, kept on disk: pooled chunks of documents, and the tokens of questions that route.

A router is linear in them, so that it can be trained and measured many times over states that were computed once.

Shape legend: n rows, S states of all rows, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msa.model.moments import Moments
from msa.model.prompt import Row
from msa.model.router import chunk_counts
from msa.ops import dispatch
from msa.training.whiten import Backbone
from msa_base.seal import value_digest
from msa_base.tables import read_json, write_json

SAVE_EVERY = 16  # batches
PIECE = 2**15  # states that are summed up at once
PROGRESS = "progress.json"


@dataclass(frozen=True)
class CachedStates:
    """Half-precision states on disk, mapped and not read; ``lengths`` [n] are tokens of each row, P a state's."""

    directory: Path
    lengths: Tensor
    pool: int

    @property
    def counts(self) -> Tensor:
        """States of each row [n]."""
        return chunk_counts(self.lengths, self.pool)

    @property
    def first(self) -> Tensor:
        """Where the states of each row begin, and where the last ones end [n + 1]."""
        return torch.cat((torch.zeros(1, dtype=torch.long), self.counts.cumsum(0)))

    def where(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the states of some rows lie, and which of the rows each belongs to."""
        counts = self.counts[rows]
        owners = torch.repeat_interleave(torch.arange(len(rows)), counts)
        behind = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return self.first[rows][owners] + behind, owners

    def layer(self, layer: int) -> Tensor:
        """States of a layer [S, E] float16."""
        return torch.from_numpy(np.load(self.directory / f"{layer}.npy", mmap_mode="c"))

    def moments(self, layer: int) -> Moments:
        """Mean and covariance of a layer's states."""
        states = self.layer(layer)
        sums = Moments(states.shape[1])
        for piece in states.split(PIECE):
            sums.add(piece)
        return sums


def cache(
    backbone: Backbone, rows: list[Row], layers: list[int], pool: int, directory: Path, said: str
) -> CachedStates:
    """States of rows, computed where they are not kept yet; a call that was killed goes on where it last saved.

    Args:
        rows: those of documents are pooled over ``pool`` tokens; of questions (pool 1) the tokens that route are kept.
        directory: holds a file for each layer. States of other rows, layers or weights there are computed again.
    """
    kept = [row.routing if pool == 1 else [True] * len(row.ids) for row in rows]
    cached = CachedStates(directory, torch.tensor(list(map(sum, kept))), pool)
    read = [len(routes) - routes[::-1].index(True) for routes in kept]  # what stands behind the last one changes none
    ids = [row.ids[:length] for row, length in zip(rows, read, strict=True)]
    made_from = value_digest([backbone.digest, backbone.precision, ids, kept, layers, pool])
    progress = directory / PROGRESS
    known = read_json(progress) if progress.exists() else {}
    done = known.get("batches", 0) if known.get("made_from") == made_from else 0
    if done and known["whole"]:
        return cached
    directory.mkdir(parents=True, exist_ok=True)
    shape, first = (int(cached.first[-1]), backbone.model.config.hidden_size), cached.first.tolist()
    files = {
        layer: np.lib.format.open_memmap(
            directory / f"{layer}.npy",
            **({"mode": "r+"} if done else {"mode": "w+", "dtype": "float16", "shape": shape}),
        )
        for layer in layers
    }

    def save(whole: bool) -> None:
        for file in files.values():
            file.flush()
        write_json({"made_from": made_from, "batches": done, "whole": whole}, progress)

    for batch, sizes, found in backbone.states(ids, layers, said, done):
        for layer, h in found.items():
            states = dispatch.pool_chunks(h, sizes, pool) if pool > 1 else h
            for place, number in enumerate(batch):
                begin, end = first[number : number + 2]
                routes = torch.tensor(kept[number][: len(ids[number])]) if pool == 1 else torch.arange(end - begin)
                files[layer][begin:end] = states[place, : len(routes)][routes].half().numpy()
        done += 1
        if done % SAVE_EVERY == 0:
            save(whole=False)
    save(whole=True)
    return cached
