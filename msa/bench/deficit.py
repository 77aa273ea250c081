"""What rounding costs: how far the k-th document found scores below the k-th best one, in float64, by question.

    python -m msa.bench.deficit                              1,000 random questions at the paper's shape
    python -m msa.bench.deficit --model MODEL --bank BANK    real ones: a trained model over its own bank

Prints one JSON object a stored precision: the first pass alone (``first_pass``), and the whole of routing (``exact``),
whose scores are those of the stored keys. ``overlap`` is with the k best documents of float32 keys.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa.bench.peers import CHUNKS_A_DOCUMENT, K, Task, exact_documents, shortfall
from msa.checkpoints import read
from msa.generation.decode import Session
from msa.memory.bank import Bank
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa.ops import dispatch
from msa.ops.keys import Keys, Queries
from msa.ops.route import Part, route
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, given_path

BATCH = 8


def random_vectors(count: int, chunks: int, tokens: int) -> Iterator[tuple[str, Tensor, Tensor, list[Queries]]]:
    """Name, keys [T, W], offsets and batches of questions at the paper's shape."""
    task = Task.random(chunks, count, tokens, torch.device("cpu"))
    mask = torch.ones(BATCH, tokens, dtype=torch.bool)
    yield "random", task.keys, task.offsets, [Queries(part, mask[: len(part)]) for part in task.folded.split(BATCH)]


def real_vectors(
    model_path: Path, bank_path: Path, count: int, documents: int | None
) -> Iterator[tuple[str, Tensor, Tensor, list[Queries]]]:
    """The same of every routed layer of a model; the questions are the openings of documents of its bank."""
    model, prompter = read.open_model(model_path)
    bank = Bank.open(bank_path, Encoder(model, prompter, directory=model_path).signature)
    bank = bank.prefix(min(documents or len(bank), len(bank.segments[0])))
    segment = bank.segments[0]
    asked: list[list[Queries]] = [[] for _ in model.config.routed_layers]

    class Listening(BankMemory):
        def winners(self, layer: int, queries: Queries) -> Any:
            asked[layer].append(queries)
            return super().winners(layer, queries)

    for places in torch.linspace(0, len(segment) - 1, count).long().split(BATCH):
        texts = [segment.document(place).text[:80] for place in places.tolist()]
        memory = Listening.plain(bank, len(texts), K)
        with torch.no_grad():
            Session(model, [prompter.opening(text) for text in texts], prompter.pad, len(prompter.head), memory)
    for number, layer, queries in zip(model.config.routed_layers, segment.layers, asked, strict=True):
        yield f"layer {number} of {model_path.name}", layer.routing.exact().float(), segment.offsets, queries


def measure(keys: Tensor, offsets: Tensor, batches: list[Queries], dtype: str) -> dict[str, float]:
    """Largest deficits and mean overlap of one stored precision."""
    kept = Keys.store(keys, dtype)
    part = Part(kept, offsets, torch.arange(len(offsets) - 1))
    worst, overlaps = {"first_pass": 0.0, "exact": 0.0}, []
    for queries in batches:
        documents = exact_documents(queries.tokens, queries.mask, keys, offsets)
        best = documents.topk(K).indices
        scores, _ = dispatch.scores_with_error(queries.tokens, queries.mask, part.stored)
        rough, _ = dispatch.top_documents(scores, offsets, part.doc_ids, K)
        exact = route(queries.tokens, queries.mask, [part], K).place
        for name, places in (("first_pass", rough), ("exact", exact)):
            worst[name] = max(worst[name], shortfall(documents, places))
        overlaps += [float(torch.isin(mine, of).float().mean()) for mine, of in zip(exact, best, strict=True)]
    return worst | {"overlap": sum(overlaps) / len(overlaps), "questions": len(overlaps)}


def main() -> None:
    """Measure every stored precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=given_path, help="a trained model")
    parser.add_argument("--bank", type=given_path, help="its bank")
    add_number(parser, "--documents", None, "its first documents alone (default: its first segment)")
    add_number(parser, "--questions", 1000, "questions (default: 1000)")
    add_number(parser, "--chunks", 15_625, "random chunks (default: 15,625, 1M tokens)")
    add_number(parser, "--tokens", 32, "tokens of a random question (default: 32)")
    precisions = "bfloat16,int8,float8"
    parser.add_argument("--precisions", default=precisions, help=f"stored precisions (default: {precisions})")
    chosen = parser.parse_args()
    if (chosen.model is None) != (chosen.bank is None):
        raise UserError("--model and --bank belong together")
    if chosen.questions < 1 or chosen.chunks < K * CHUNKS_A_DOCUMENT:
        raise UserError(f"--questions and --chunks: at least 1 question and {K * CHUNKS_A_DOCUMENT} chunks")
    found = random_vectors(chosen.questions, chosen.chunks, chosen.tokens)
    if chosen.model:
        found = real_vectors(chosen.model, chosen.bank, chosen.questions, chosen.documents)
    for name, keys, offsets, batches in found:
        for dtype in chosen.precisions.split(","):
            print(json.dumps({"vectors": name, "keys": dtype} | measure(keys, offsets, batches, dtype)), flush=True)


if __name__ == "__main__":
    run_command(main)
