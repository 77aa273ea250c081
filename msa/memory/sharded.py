"""Memory Parallel: a bank sharded by document over processes; the first answers, the others score and fetch (paper
section 3.4).

The leader broadcasts a batch's routing queries. Every rank finds the best documents of its own shard; the leader merges
them (ties by the lowest document id, as anywhere) and asks the owners for the winners' keys and values alone. Scores
are exact for the stored keys, so that any number of ranks gives the same documents, scores and text.

The other ranks hold their shard and wait for work::

    torchrun --nproc-per-node 2 -m msa.generation.ask BANK --model MODEL "What is ...?"     ranks of one command
    python -m msa.memory.sharded BANK                                                  one such rank, as a system with
    ``ranks`` starts it

Shape legend: Q questions, M question tokens, W routing width, k documents a layer, n chunks, G KV heads, D head_dim.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from msa.memory import parallel
from msa.memory.bank import Bank
from msa.memory.routed import BankMemory, scans_of
from msa.memory.tiers import Tiers, placed
from msa.ops import dispatch
from msa.ops.keys import DTYPES, Queries
from msa.ops.precision import device as own_device
from msa.ops.route import Part, Winners
from msa_base.errors import UserError, run_command
from msa_base.json_lines import parse_json
from msa_base.options import add_threads, given_path
from msa_base.validate import build


class ShardedMemory(BankMemory):
    """The leader's view of a bank that all ranks hold (:func:`hold`): its base is the leader's own shard, and overlays
    stay with the leader.
    """

    def winners(self, layer: int, queries: Queries) -> Winners:
        """The best documents of all shards; ``part`` counts this rank's parts first, then one for every other rank."""
        self._ask({}, {layer: queries})
        return self._of_all(super().winners(layer, queries))

    def fused_winners(self, queries: dict[int, Queries], shares: list[float], reduce: str) -> Winners:
        """Likewise, by the weighted sum of some layers' scores: each document's is summed up where it lies."""
        self._ask({"shares": shares, "reduce": reduce}, queries)
        return self._of_all(super().fused_winners(queries, shares, reduce))

    def _ask(self, how: dict[str, Any], queries: dict[int, Queries]) -> None:
        """Let every rank find the winners of its shard."""
        one = next(iter(queries.values()))
        request = {
            "layers": list(queries),
            "shape": tuple(one.tokens.shape),
            "hidden": self.hidden,
            "top_k": self.top_k,
        }
        _share({"do": "winners", **request, **how})
        for part in queries.values():
            dist.broadcast(part.tokens.cpu().contiguous(), 0)
        dist.broadcast(one.mask.to("cpu", torch.uint8), 0)

    def _of_all(self, found: Winners) -> Winners:
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
        owned = [part == len(self.parts) + rank - 1 for rank in range(1, dist.get_world_size())]
        wanted = [(here.nonzero()[:, 0].tolist(), place[here].tolist()) for here in owned]
        _share({"do": "fetch", "layer": layer, "wanted": wanted})
        counts, content = super().chunks(layer, part.masked_fill(part >= len(self.parts), -1), place)
        for rank, here in enumerate(owned, start=1):
            if not bool(here.any()):
                continue
            sizes = torch.empty(int(here.sum()), dtype=torch.long)
            dist.recv(sizes, rank)
            shape = int(sizes.sum()), 2, self.signature.kv_heads, self.signature.head_dim
            stored = torch.empty(shape, dtype=DTYPES[self.signature.content_dtype])
            dist.recv(stored.view(torch.uint8), rank)
            counts[here] = sizes
            content[len(self.parts) + rank - 1] = stored
        return counts, content


def serve(bank: Bank, tiers: Tiers | None = None) -> None:
    """Score and fetch from this rank's shard until the leader says that it is done."""
    rank, device = dist.get_rank(), own_device()
    while (request := _share())["do"] != "stop":
        if request["do"] == "hold":
            shard, scans = own_shard(bank.prefix(request["documents"]), tiers or Tiers(), device)
        elif request["do"] == "winners":
            tokens = [torch.empty(request["shape"]) for _ in request["layers"]]
            mask = torch.empty(request["shape"][:2], dtype=torch.uint8)
            for received in (*tokens, mask):
                dist.broadcast(received, 0)
            nothing = torch.zeros(len(mask), 0, dtype=torch.bool)
            memory = BankMemory(shard, None, nothing, request["hidden"], request["top_k"], scans)
            queries = {n: Queries(part, mask.bool()) for n, part in zip(request["layers"], tokens, strict=True)}
            if "shares" in request:
                found = memory.fused_winners(queries, request["shares"], request["reduce"])
            else:
                found = memory.winners(*next(iter(queries.items())))
            dist.send(found.scores.contiguous(), 0)
            dist.send(found.doc_ids.contiguous(), 0)
        else:
            rows, slots = request["wanted"][rank - 1]
            if rows:
                part, place = found.part[rows, slots], found.place[rows, slots]
                counts, content = memory.chunks(request["layer"], part, place)
                dist.send(counts, 0)
                dist.send(_in_order(content, part, counts).cpu().view(torch.uint8), 0)  # gloo's, as all here


def hold(base: Bank, tiers: Tiers, device: torch.device) -> tuple[Bank, list[list[Part]]]:
    """The leader's shard of a prefix of the bank and the passes over it; the others take theirs at the same time."""
    _share({"do": "hold", "documents": len(base)})
    return own_shard(base, tiers, device)


def own_shard(bank: Bank, tiers: Tiers, device: torch.device) -> tuple[Bank, list[list[Part]]]:
    """This rank's shard of a bank, verified, in its tiers, and the passes over it."""
    shard = bank.shard(dist.get_rank(), dist.get_world_size())
    shard.verify()
    settled = tiers.fitted(shard, device)
    shard = placed(shard, settled, device)
    return shard, scans_of(shard, settled.scan)


def stop() -> None:
    """Let the other ranks leave :func:`serve`."""
    _share({"do": "stop"})


def _in_order(content: dict[int, Tensor], part: Tensor, counts: Tensor) -> Tensor:
    """Content of several parts, each in the order of its documents, as one tensor in the order of all documents."""
    pieces = {number: iter(stored.split(counts[part == number].tolist())) for number, stored in content.items()}
    return torch.cat([next(pieces[number]) for number in part.tolist()])


def _share(request: dict[str, Any] | None = None) -> dict[str, Any]:
    """The leader's request, on every rank; the others give none."""
    holder = [request]
    dist.broadcast_object_list(holder, 0)
    return holder[0]


class Ranks:
    """The processes that share a bank with this one, which leads: started when they are needed, and again after one
    was lost.
    """

    def __init__(self, ranks: int, command: list[str]):
        self.ranks = ranks
        self.command = command
        self._joined: ExitStack | None = None

    @property
    def are_there(self) -> bool:
        return self._joined is not None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Lead the others within the block; whatever goes wrong there ends them, since they may wait for a word.

        Raises:
            ProcessLost: one of them ended.
        """
        if self._joined is None:
            with ExitStack() as stack:
                stack.enter_context(parallel.joined(self.ranks, self.command))
                self._joined = stack.pop_all()
        try:
            yield
        except BaseException as error:
            stack, self._joined = self._joined, None
            stack.__exit__(type(error), error, error.__traceback__)
            raise

    def close(self) -> None:
        """Let the others go."""
        if self._joined is not None:
            with self.at_work():
                stop()
            stack, self._joined = self._joined, None
            stack.close()


def command(bank: Path, tiers: dict[str, Any], threads: int, kernels: str = "auto") -> list[str]:
    """Arguments of :func:`main` for :func:`msa.memory.parallel.joined`."""
    options = {"tiers": json.dumps(tiers), "threads": str(threads), "kernels": kernels}
    return ["-m", "msa.memory.sharded", str(bank), *(word for key in options for word in (f"--{key}", options[key]))]


def main() -> None:
    """Be one of the ranks that are not the leader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=given_path, help="directory of the bank")
    parser.add_argument("--tiers", default="{}", help='tiers as JSON, such as \'{"keys": "host"}\' (default: by fit)')
    add_threads(parser, 1, "CPU threads (default: 1)")
    parser.add_argument("--kernels", default="auto", choices=dispatch.CHOICES, help="what scores (default: auto)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    dispatch.use(chosen.kernels)
    try:
        tiers = build(Tiers, parse_json(chosen.tiers), "--tiers")
    except (ValueError, RecursionError) as error:
        raise UserError(f"--tiers: not valid JSON ({error})") from None
    with parallel.joined():
        serve(Bank.open(chosen.bank, verify=False), tiers)


if __name__ == "__main__":
    run_command(main)
