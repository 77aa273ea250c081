"""Memory Parallel: a bank sharded by document over processes; the first answers, the others score and fetch (paper section 3.4).

The leader broadcasts a batch's routing queries. Every rank finds the best documents of its own shard; the leader merges
them (ties by the lowest document id, as anywhere) and asks the owners for the winners' keys and values alone. Scores
are exact for the stored keys, so that any number of ranks gives the same documents, scores and text.

The other ranks hold their shard and wait for work::

    torchrun --nproc-per-node 2 -m msa.ask BANK --model MODEL "What is ...?"     ranks of one command
    python -m msa.sharded BANK                                                  one such rank, as a system with ``ranks`` starts it

Shape legend: Q questions, M question tokens, W routing width, k documents a layer, n chunks, G KV heads, D head_dim.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import run_command
from configs.load import build
from msa import parallel
from msa.bank import Bank, Segment
from msa.keys import Queries
from msa.memory import BankMemory, scans_of
from msa.ops import dispatch
from msa.ops.route import Part, Winners
from msa.tiers import Tiers, placed


class ShardedMemory(BankMemory):
    """The leader's view of a bank that all ranks share; see :class:`msa.memory.BankMemory` for the other arguments.

    Args:
        base: the leader's own shard; the overlay stays with the leader too.
        documents: of the bank whose prefix is shared: every rank cuts its shard from it.
    """

    def __init__(
        self, base: Bank, overlay: Segment | None, sees: Tensor, hidden: list[list[int]], top_k: int,
        scans: list[list[Part]] | None = None, documents: int = 0,
    ):
        super().__init__(base, overlay, sees, hidden, top_k, scans)
        self.hidden, self.documents = hidden, documents

    def rows(self, chosen: list[int]) -> ShardedMemory:
        """The memory of some of the questions."""
        part = super().rows(chosen)
        part.hidden = [self.hidden[row] for row in chosen]
        return part

    def winners(self, layer: int, queries: Queries) -> Winners:
        """The best documents of all shards; ``part`` counts this rank's parts first, then one for every other rank."""
        shape = tuple(queries.tokens.shape)
        _tell({"do": "winners", "layer": layer, "shape": shape, "hidden": self.hidden, "documents": self.documents, "top_k": self.top_k})
        dist.broadcast(queries.tokens.cpu().contiguous(), 0)
        dist.broadcast(queries.mask.to("cpu", torch.uint8), 0)
        found = super().winners(layer, queries)
        shards = [found]
        for rank in range(1, dist.get_world_size()):
            theirs, ids = torch.empty_like(found.scores), torch.empty_like(found.doc_ids)
            dist.recv(theirs, rank)
            dist.recv(ids, rank)
            part = torch.full_like(ids, len(self.parts) + rank - 1).masked_fill(ids < 0, -1)
            shards.append(Winners(theirs, ids, part, torch.arange(ids.shape[1]).expand_as(ids)))
        return Winners.best(shards, self.top_k)

    def chunks(self, layer: int, part: Tensor, place: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Chunk counts [Q, k] and content by part of chosen documents, from their owners."""
        remote = part >= len(self.parts)
        wanted = []
        for rank in range(1, dist.get_world_size()):
            rows, slots = (part == len(self.parts) + rank - 1).nonzero(as_tuple=True)
            wanted.append((rows.tolist(), place[rows, slots].tolist()))
        _tell({"do": "fetch", "layer": layer, "wanted": wanted})
        counts, content = super().chunks(layer, part.masked_fill(remote, -1), place)
        for rank in range(1, dist.get_world_size()):
            here = part == len(self.parts) + rank - 1
            if not bool(here.any()):
                continue
            sizes = torch.empty(int(here.sum()), dtype=torch.long)
            dist.recv(sizes, rank)
            stored = torch.empty(int(sizes.sum()), 2, self.signature.kv_heads, self.signature.head_dim, dtype=self.content_dtype)
            dist.recv(stored.view(torch.uint8), rank)
            counts[here] = sizes
            content[len(self.parts) + rank - 1] = stored
        return counts, content


def serve(bank: Bank, tiers: Tiers | None = None) -> None:
    """Score and fetch from this rank's shard until the leader says that it is done."""
    rank, device = dist.get_rank(), parallel.device()
    tiers = tiers or Tiers()
    memory: BankMemory | None = None
    base: tuple[int, Bank, list[list[Part]]] | None = None
    while (request := _told())["do"] != "stop":
        if request["do"] == "winners":
            if base is None or base[0] != request["documents"]:
                shard, scans = own_shard(bank.prefix(request["documents"]), tiers, device)
                base = request["documents"], shard, scans
            tokens = torch.empty(request["shape"])
            mask = torch.empty(request["shape"][:2], dtype=torch.uint8)
            dist.broadcast(tokens, 0)
            dist.broadcast(mask, 0)
            nothing = torch.zeros(len(tokens), 0, dtype=torch.bool)
            memory = BankMemory(base[1], None, nothing, request["hidden"], request["top_k"], base[2])
            found = memory.winners(request["layer"], Queries(tokens, mask.bool()))
            dist.send(found.scores.contiguous(), 0)
            dist.send(found.doc_ids.contiguous(), 0)
        else:
            rows, slots = request["wanted"][rank - 1]
            if rows:
                counts, content = memory.chunks(request["layer"], found.part[rows, slots].unsqueeze(1), found.place[rows, slots].unsqueeze(1))
                dist.send(counts.flatten(), 0)
                dist.send(_in_order(content, found.part[rows, slots], counts.flatten()).view(torch.uint8), 0)


def own_shard(bank: Bank, tiers: Tiers, device: torch.device) -> tuple[Bank, list[list[Part]]]:
    """This rank's shard of a bank in its tiers, and the passes over it."""
    shard = bank.shard(dist.get_rank(), dist.get_world_size())
    settled = tiers.fitted(shard, device)
    shard = placed(shard, settled, device)
    return shard, scans_of(shard, settled.scan)


def stop() -> None:
    """Let the other ranks leave :func:`serve`."""
    _tell({"do": "stop"})


def _in_order(content: dict[int, Tensor], part: Tensor, counts: Tensor) -> Tensor:
    """Content of several parts, each in the order of its documents, as one tensor in the order of all documents."""
    pieces = {number: iter(stored.split(counts[part == number].tolist())) for number, stored in content.items()}
    return torch.cat([next(pieces[number]) for number in part.tolist()])


def _tell(request: dict[str, Any]) -> None:
    dist.broadcast_object_list([request], 0)


def _told() -> dict[str, Any]:
    holder: list[Any] = [None]
    dist.broadcast_object_list(holder, 0)
    return holder[0]


def command(bank: Path, tiers: dict[str, Any], threads: int, kernels: str = "auto") -> list[str]:
    """Arguments of :func:`main` for :func:`msa.parallel.joined`."""
    return ["-m", "msa.sharded", str(bank), "--tiers", json.dumps(tiers), "--threads", str(threads), "--kernels", kernels]


def main() -> None:
    """Be one of the ranks that are not the leader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path, help="directory of the bank")
    parser.add_argument("--tiers", default="{}", help='tiers as JSON, such as \'{"keys": "host"}\' (default: by fit)')
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--kernels", default="auto", choices=dispatch.CHOICES, help="what scores (default: auto)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    dispatch.use(chosen.kernels)
    with parallel.joined():
        serve(Bank.open(chosen.bank), build(Tiers, json.loads(chosen.tiers), "--tiers"))


if __name__ == "__main__":
    run_command(main)
