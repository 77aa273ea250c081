"""How far the k-th document of rounded keys and queries scores below the k-th best one, in float64, over many questions.

    python -m msa.bench.deficit                                            1,000 random questions at the paper's shape
    python -m msa.bench.deficit --model MODEL --bank BANK --questions 1000     real ones: a trained model over its own bank

Prints one JSON object a stored precision: the first pass alone (``first_pass``), and the whole of routing (``exact``), whose scores
are those of the stored keys. ``overlap`` is with the k best documents of float32 keys.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import UserError, run_command
from configs.records import Question
from msa.bench.peers import CHUNKS_A_DOCUMENT, K, Task
from msa.keys import Keys, Queries
from msa.ops import dispatch, reference
from msa.ops.route import Part, route

BATCH = 8


def random_vectors(count: int, chunks: int, tokens: int) -> Iterator[tuple[str, Tensor, Tensor, list[Queries]]]:
    """Name, keys [T, W], offsets and batches of questions at the paper's shape."""
    task = Task.random(chunks, count, tokens, torch.device("cpu"))
    mask = torch.ones(BATCH, tokens, dtype=torch.bool)
    yield "random", task.keys, task.offsets, [Queries(part, mask[: len(part)]) for part in task.folded.split(BATCH)]


def real_vectors(model_path: Path, bank_path: Path, count: int, documents: int | None) -> Iterator[tuple[str, Tensor, Tensor, list[Queries]]]:
    """The same of every routed layer of a model, asked with the openings of documents of its bank."""
    from msa import checkpoint
    from msa.bank import Bank
    from msa.decode import Session
    from msa.encode import Encoder
    from msa.memory import BankMemory

    model, prompter = checkpoint.open_model(model_path)
    bank = Bank.open(bank_path, Encoder(model, prompter, directory=model_path).signature)
    bank = bank.prefix(min(documents or len(bank), len(bank.segments[0])))
    segment = bank.segments[0]
    asked: list[list[Queries]] = [[] for _ in model.config.routed_layers]

    class Listening(BankMemory):
        def winners(self, layer: int, queries: Queries) -> Any:
            asked[layer].append(queries)
            return super().winners(layer, queries)

    places = torch.linspace(0, len(segment) - 1, count).long().split(BATCH)
    for some in places:
        texts = [Question("", segment.document(place).text[:80], "", 1).text for place in some.tolist()]
        memory = Listening(bank, None, torch.zeros(len(texts), 0, dtype=torch.bool), [[] for _ in texts], K)
        with torch.no_grad():
            Session(model, [prompter.opening(text) for text in texts], prompter.pad, len(prompter.head), memory)
    for number, (layer, queries) in enumerate(zip(segment.layers, asked, strict=True)):
        name = f"layer {model.config.routed_layers[number]} of {model_path.name}"
        yield name, layer.routing.exact().float(), segment.offsets, queries


def measure(keys: Tensor, offsets: Tensor, batches: list[Queries], dtype: str) -> dict[str, float]:
    """Largest deficits and mean overlap of one stored precision."""
    kept = Keys.store(keys, dtype)
    part = Part(kept, offsets, torch.arange(len(offsets) - 1))
    rough_deficit = exact_deficit = overlap = 0.0
    asked = 0
    for queries in batches:
        true = torch.cat([(queries.tokens.double() @ rows.double().T).masked_fill(~queries.mask.unsqueeze(-1), -torch.inf).amax(1)
                          for rows in keys.split(4096)], 1)  # fmt: skip
        documents = _maximum(true, offsets)
        best = documents.topk(K, dim=1)
        scores, _ = dispatch.scores_with_error(queries.tokens, queries.mask, part.stored)
        rough, _ = dispatch.top_documents(scores, offsets, part.doc_ids, K)
        exact = route(queries.tokens, queries.mask, [part], K).place
        rough_deficit, exact_deficit = (
            max(worst, float((best.values[:, -1] - documents.gather(1, places).amin(1)).max()))
            for worst, places in ((rough_deficit, rough), (exact_deficit, exact))
        )
        overlap += sum(float(torch.isin(mine, theirs).float().mean()) for mine, theirs in zip(exact, best.indices, strict=True))
        asked += len(exact)
    return {"first_pass": rough_deficit, "exact": exact_deficit, "overlap": overlap / asked, "questions": asked}


def _maximum(scores: Tensor, offsets: Tensor) -> Tensor:
    counts = offsets.diff()
    if bool((counts == counts[0]).all()) and len(scores[0]) == int(offsets[-1]):
        return scores.view(len(scores), -1, int(counts[0])).amax(2)
    return reference.document_scores(scores, offsets)


def main() -> None:
    """Measure every stored precision."""
    parser = argparse.ArgumentParser(prog="python -m msa.bench.deficit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a trained model")
    parser.add_argument("--bank", type=Path, help="its bank")
    parser.add_argument("--documents", type=int, help="the first documents of the bank alone (default: its first segment)")
    parser.add_argument("--questions", type=int, default=1000, help="questions (default: 1000)")
    parser.add_argument("--chunks", type=int, default=15_625, help="random chunks (default: 15,625, 1M tokens)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a random question (default: 32)")
    parser.add_argument("--precisions", default="bfloat16,int8,float8", help="stored precisions (default: bfloat16,int8,float8)")
    chosen = parser.parse_args()
    if (chosen.model is None) != (chosen.bank is None):
        raise UserError("--model and --bank belong together")
    if chosen.questions < 1 or chosen.chunks < K * CHUNKS_A_DOCUMENT:
        raise UserError(f"--questions and --chunks: at least 1 question and {K * CHUNKS_A_DOCUMENT} chunks")
    found = real_vectors(chosen.model, chosen.bank, chosen.questions, chosen.documents) if chosen.model else random_vectors(chosen.questions, chosen.chunks, chosen.tokens)
    for name, keys, offsets, batches in found:
        for dtype in chosen.precisions.split(","):
            print(json.dumps({"vectors": name, "keys": dtype} | measure(keys, offsets, batches, dtype)), flush=True)


if __name__ == "__main__":
    run_command(main)
