"""Batched reading and greedy decoding of token rows with one key-value cache.

Shape legend: B rows, M new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from msa.model.decoder import Cache, Memory, MSAModel
from msa.model.prompt import Row, own_positions, pad_rows
from msa.ops.finite import finite


class Session:
    """Rows that are being read and continued together.

    Args:
        pad: padding id; head: length of the template head, which does not read memory.
        memory: routed over once by the rows' routing tokens, while the prompts are read.
    """

    def __init__(self, model: MSAModel, rows: list[Row], pad: int, head: int, memory: Memory | None = None):
        self.model, self.pad = model, pad
        self.cache = Cache()
        ids, valid, self.lengths = self._padded([row.ids for row in rows])
        self.shift = model.config.top_k_documents if memory is not None else 0
        positions = own_positions(ids.shape[1], head, self.shift).to(model.device)
        routing = None
        if memory is not None:
            routing = pad_rows([list(map(int, row.routing)) for row in rows], 0).bool().to(model.device)
        reads = (torch.arange(ids.shape[1], device=model.device) >= head).expand_as(ids)
        hidden, self.selections = model(ids, positions, valid, memory, routing, reads, self.cache)
        self.logits = self._last(hidden, self.lengths)

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        ids = pad_rows(rows, self.pad).to(self.model.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        return ids, torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1), lengths

    def _last(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, V] behind each row's last real token; a UserError where they are not finite."""
        logits = self.model.logits(hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1])
        return finite(logits, "logits")

    def feed(self, tokens: list[list[int]]) -> Tensor:
        """Read more tokens of every row (at least one each); logits [B, V] behind the last of them."""
        ids, valid, counts = self._padded(tokens)
        positions = self.lengths.unsqueeze(1) + self.shift + torch.arange(ids.shape[1], device=ids.device)
        hidden, _ = self.model(ids, positions, valid, cache=self.cache)
        self.lengths = self.lengths + counts
        self.logits = self._last(hidden, counts)
        return self.logits

    def rows(self, chosen: list[int]) -> Session:
        """A session of some of the rows; this one stays usable."""
        index = torch.tensor(chosen, dtype=torch.long, device=self.logits.device)
        part = object.__new__(Session)
        part.model, part.pad, part.shift = self.model, self.pad, self.shift
        part.cache, part.lengths, part.logits = self.cache.rows(index), self.lengths[index], self.logits[index]
        part.selections = []
        return part

    def greedy(self, ends: Collection[int], limits: list[int]) -> list[list[int]]:
        """Greedy continuations, each up to its token limit or to one of ``ends``, which is left out."""
        result: list[list[int]] = [[] for _ in limits]
        done = [limit <= 0 for limit in limits]
        session, active = self, list(range(len(limits)))
        while not all(done):
            best = session.logits.argmax(-1).tolist()
            for row, token in zip(active, best, strict=True):
                if not done[row] and token not in ends:
                    result[row].append(token)
                done[row] = done[row] or token in ends or len(result[row]) >= limits[row]
            going = [number for number, row in enumerate(active) if not done[row]]
            if going and len(going) <= len(active) // 2:  # drop finished rows once they are the majority
                session, active = session.rows(going), [active[number] for number in going]
                best = [best[number] for number in going]
            if going:
                session.feed([[token] for token in best])
        return result
