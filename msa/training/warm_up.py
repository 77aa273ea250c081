"""Routers trained on cached states of a frozen backbone: the warm-up of the paper's recipe (section 3.3), in minutes.

    python -m msa.training.warm_up --profile small_qa_trained --model msa

An entry of models.yaml names the backbone (``after``), two sample sets, the second of which decides when to stop, and
the router. Each router starts whitened (msa.training.whiten); its two projections, and how much each layer counts in
the fused list, learn by InfoNCE over a bank that a step's questions share. A killed call goes on where it last saved.

Shape legend: Q questions, T their tokens, N documents, C chunks of a document (padded), E hidden size, W routing width.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from msa.checkpoints import hub, read
from msa.checkpoints.write import write
from msa.model import router
from msa.model.config import ModelConfig
from msa.model.moments import Moments
from msa.model.prompt import Row
from msa.ops import precision
from msa.training.cached_states import CachedStates, cache
from msa.training.sources import TABLES, stated_layers
from msa.training.whiten import Backbone, projection
from msa.training.whitened import LOG, routed_config, run
from msa.training.whitened import ModelParams as WhitenedParams
from msa_base.errors import UserError, run_command
from msa_base.paths import Paths
from msa_base.records import Document
from msa_base.specs import ModelSpec
from msa_base.tables import read_arrow, whole_file
from msa_base.validate import Count, Positive, Rate, Share, Whole, build

TRAINS = True  # the workflow runs it for the models whose `kind` names it
__all__ = ["TRAINS", "check_model"]
KS = (1, 5, 16)
ASKED_AT_ONCE = 512  # questions
TOKENS_AT_ONCE = 1024
HARD = 8  # documents that BM25 finds first, of which a question's hard negatives are drawn


@dataclass(frozen=True)
class ModelParams(WhitenedParams):
    """The ``params`` of a models.yaml entry of this kind, beside those of whitened routers.

    A step asks ``rows`` questions over their gold documents, ``negatives`` others, and for each question
    ``hard_negatives`` of those that BM25 finds first. ``temperature`` divides scores, ``dropout`` is of whitened
    states. ``layer_learning_rate`` is that of the layers' weights, as logarithms; without it they stay as stated. Every
    ``evaluate_every`` steps the development set is asked, and training stops when ``patience`` looks in a row found no
    better recall (the sum of recall@1, @5 and @16).
    """

    steps: Count = 300
    rows: Count = 32
    negatives: Count = 192
    hard_negatives: Whole = 0
    learning_rate: Rate = 1e-3
    layer_learning_rate: Rate | None = None
    temperature: Positive = 0.02
    dropout: Share = 0.1
    evaluate_every: Count = 50
    patience: Count = 3


@dataclass(frozen=True)
class CachedTexts:
    """Cached documents and questions; ``gold`` [Q] is the place of the document that answers each question.

    ``hard`` [Q, at most HARD] are those that BM25 finds first.
    """

    documents: CachedStates
    questions: CachedStates
    gold: Tensor
    hard: Tensor


class RouterSide(nn.Module):
    """One projection of a router, as what it adds to whitened states."""

    def __init__(self, moments: Moments, shrinkage: float, width: int, repeats: int, length: int):
        super().__init__()
        whitening = moments.whitening(shrinkage)
        self.register_buffer("mean", moments.mean.float())
        self.register_buffer("whitening", whitening.float())
        start = projection(width, len(whitening)).unflatten(0, (-1, length)).repeat_interleave(repeats, 0).flatten(0, 1)
        self.register_buffer("start", start.float())
        self.change = nn.Parameter(torch.zeros_like(self.start))
        self.bias = nn.Parameter(torch.zeros(len(self.start)))
        self.length = length

    def forward(self, states: Tensor, dropout: float = 0.0) -> Tensor:
        """Heads [..., H, D] of states [..., E]."""
        white = F.dropout((states.float() - self.mean) @ self.whitening, dropout, self.training)
        return F.linear(white, self.start + self.change, self.bias).unflatten(-1, (-1, self.length))

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the same projection of states as they are."""
        weight = (self.start + self.change).double() @ self.whitening.double()
        return weight.float(), (self.bias.double() - weight @ self.mean.double()).float()


class Routers(nn.Module):
    """All routers of a model, over cached states."""

    def __init__(self, config: ModelConfig, moments: dict[int, tuple[Moments, Moments]], shrinkage: float):
        super().__init__()
        self.config, (heads, groups, length) = config, config.routing_heads
        self.sides = nn.ModuleDict()
        for layer, (queries, keys) in moments.items():
            width = config.routing_width
            both = (
                RouterSide(queries, shrinkage, width, heads // groups, length),
                RouterSide(keys, shrinkage, width, 1, length),
            )
            self.sides[str(layer)] = nn.ModuleList(both)
        self.layers = nn.Parameter(torch.tensor(config.form.shares(len(moments))).log())
        self.precision = precision.choose("training", "auto", torch.device("cpu"))

    def stated(self) -> ModelConfig:
        """The config with the layers' weights as they are now."""
        weights = tuple(round(share, 6) for share in self.layers.softmax(0).tolist())
        return replace(self.config, form=replace(self.config.form, layer_weights=weights))

    def tensors(self) -> dict[str, Tensor]:
        """As a checkpoint names them, the temperature of their loss with them."""
        state = {"temperature": torch.tensor(self.config.aux_temperature)}
        for layer, sides in self.sides.items():
            for name, side in zip(("router_q_proj", "router_k_proj"), sides, strict=True):
                place = f"model.layers.{layer}.self_attn.{name}.0"
                state[f"{place}.weight"], state[f"{place}.bias"] = (part.detach() for part in side.linear())
        return state

    def forward(self, texts: CachedTexts, questions: Tensor, documents: Tensor, dropout: float = 0.0) -> Tensor:
        """Scores of the fused list, weighted over layers: numbers of questions and documents -> [Q, N]."""
        form, groups, total = self.config.form, self.config.routing_heads[1], 0.0
        tokens, asked = texts.questions.where(questions)
        chunks, _ = texts.documents.where(documents)
        counts = texts.documents.counts[documents]
        for (layer, (query, key)), share in zip(self.sides.items(), self.layers.softmax(0), strict=True):
            with precision.autocast(self.precision, tokens.device):
                k = router.normalise_keys(key(texts.documents.layer(int(layer))[chunks], dropout))
                q = query(texts.questions.layer(int(layer))[tokens], dropout)
                q = router.fold_queries(q, groups, not form.query_norms, form.head_weights)
                total = total + share * mean_scores(q, k, asked, counts)
        return total


def mean_scores(queries: Tensor, keys: Tensor, asked: Tensor, counts: Tensor) -> Tensor:
    """Mean over each question's tokens of their best chunk's score in each document [Q, N] float32.

    Args:
        queries [tokens, W], keys [chunks, W]: of one layer; asked [tokens]: each token's question, in order;
        counts [N]: chunks of each document.
    """
    real = torch.arange(int(counts.max())) < counts.unsqueeze(1)
    padded = keys.new_zeros(*real.shape, keys.shape[-1]).masked_scatter(real.unsqueeze(-1), keys).flatten(0, 1).T
    best = torch.cat([router.document_scores((part @ padded).float(), real) for part in queries.split(TOKENS_AT_ONCE)])
    sizes = torch.bincount(asked)
    return best.new_zeros(len(sizes), len(counts)).index_add(0, asked, best) / sizes.unsqueeze(1)


@torch.no_grad()
def ranks(routers: Routers, texts: CachedTexts, questions: Tensor) -> Tensor:
    """Of each question's gold document among all, from 0 [Q]."""
    routers.eval()
    every, found = torch.arange(len(texts.documents.lengths)), []
    for part in questions.split(ASKED_AT_ONCE):
        scores = routers(texts, part, every)
        own = scores.gather(1, texts.gold[part].unsqueeze(1))
        found.append((scores > own).sum(1))
    return torch.cat(found)


def recall(ranked: Tensor) -> dict[str, float]:
    """Share of questions whose gold document is among the first k."""
    return {f"recall@{k}": round(float((ranked < k).float().mean()), 4) for k in KS}


def read_params(spec: ModelSpec, where: str) -> ModelParams:
    """The checked parameters of an entry; a UserError for a bad one, or one without a parent or with other sets."""
    params: ModelParams = build(ModelParams, spec.params, where)
    if spec.after is None or len(spec.samples) != 2:
        raise UserError(
            f"{where}: a warm-up needs `after`, a backbone, and under `samples` a training and a development set"
        )
    form = params.router.form
    if not (form.bias and form.fused and form.query_reduce == "mean"):
        raise UserError(
            f"{where}: router: form: a warm-up trains one list of mean scores; write bias: true, fused: true and"
            " query_reduce: mean"
        )
    return params


def check_model(name: str, models: Mapping[str, ModelSpec], where: str) -> None:
    """Raise a UserError for an entry that could not be made; ``models`` holds its ancestors where they are known."""
    params = read_params(models[name], where)
    if layers := stated_layers(name, models):
        params.router.check_layers(layers, where)


def first_found(texts: list[str], questions: list[str], k: int = HARD) -> Tensor:
    """The documents that BM25 finds first for each question [Q, at most k]; bm25s as it comes."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(questions, show_progress=False)
    found, _ = index.retrieve(asked, k=min(k, len(texts)), show_progress=False)
    return torch.from_numpy(found.astype("int64"))


def read_texts(samples: Path, backbone: Backbone, config: ModelConfig, params: ModelParams, kept: Path) -> CachedTexts:
    """A sample set's first documents and the questions on them, their states cached in ``kept``."""
    banks, asked = (read_arrow(table, samples / f"{table}.parquet").to_pylist() for table in TABLES)
    by_text = {row["text"]: Document(row["doc_id"], row["text"], row["num_tokens"]) for row in banks}
    documents = list(by_text.values())[: params.documents]
    place = {document.text: number for number, document in enumerate(documents)}
    texts = {(row["bank_id"], row["doc_id"]): row["text"] for row in banks}
    pairs = [(row["question"], texts[row["bank_id"], row["chain"][0][0]]) for row in asked]
    pairs = [pair for pair in dict.fromkeys(pairs) if pair[1] in place][: params.questions]
    if not pairs:
        raise UserError(
            f"{samples}: no question on its first {params.documents} documents; give the set more questions"
        )
    layers, form = list(config.routed_layers), config.form
    rows = [Row().add(ids, routing=True) for ids in backbone.prompter.documents(documents)]
    states = cache(backbone, rows, layers, config.pool_tokens, kept / "documents", f"{samples.name} documents")
    rows = backbone.asked([question for question, _ in pairs], form)
    questions = cache(backbone, rows, layers, 1, kept / "questions", f"{samples.name} questions")
    hard = first_found(list(place), [question for question, _ in pairs])
    return CachedTexts(states, questions, torch.tensor([place[text] for _, text in pairs]), hard)


def draw(fit: CachedTexts, params: ModelParams, step: int) -> tuple[Tensor, Tensor]:
    """Numbers of the questions and documents of a step."""
    drawn = torch.Generator().manual_seed(step)
    asked = torch.randperm(len(fit.gold), generator=drawn)[: params.rows]
    others = torch.randperm(len(fit.documents.lengths), generator=drawn)[: params.negatives]
    places = torch.rand(len(asked), fit.hard.shape[1], generator=drawn).argsort(1)[:, : params.hard_negatives]
    return asked, torch.cat((fit.gold[asked], others, fit.hard[asked].gather(1, places).flatten())).unique()


def learn(
    routers: Routers, fit: CachedTexts, development: CachedTexts, params: ModelParams, kept: Path
) -> list[dict[str, Any]]:
    """Train; ``routers`` keep the weights that find most for development. Returns the log; goes on from ``kept``."""
    routers.layers.requires_grad_(params.layer_learning_rate is not None)
    groups = [
        {"params": list(routers.sides.parameters()), "most": params.learning_rate},
        {"params": [routers.layers], "most": params.layer_learning_rate or 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    place, every = kept / "state.pt", torch.arange(len(development.gold))
    if place.exists():
        state = torch.load(place, weights_only=True)
        routers.load_state_dict(state["routers"])
        optimizer.load_state_dict(state["optimizer"])
        best, log = state["best"], state["log"]
    else:
        best = {name: tensor.clone() for name, tensor in routers.state_dict().items()}
        log = [{"step": 0, "phase": "warm-up", **recall(ranks(routers, development, every))}]

    def figure(entry: dict[str, Any]) -> float:
        return sum(entry[f"recall@{k}"] for k in KS)

    begun = log[-1]["step"]
    bar = tqdm(range(begun, params.steps), initial=begun, total=params.steps, desc="warm-up", mininterval=5)
    for step in bar:
        if len(log) > params.patience and max(map(figure, log)) > max(map(figure, log[-params.patience :])):
            break
        torch.manual_seed(step)  # of the dropout
        asked, documents = draw(fit, params, step)
        share = min(1.0, (step + 1) / 20) * (1 - step / params.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["most"] * share
        routers.train()
        scores = routers(fit, asked, documents, params.dropout) / params.temperature
        loss = F.cross_entropy(scores, torch.searchsorted(documents, fit.gold[asked]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % params.evaluate_every == 0 or step + 1 == params.steps:
            entry = {"step": step + 1, "phase": "warm-up", "loss": round(loss.item(), 4)}
            log.append(entry | recall(ranks(routers, development, every)))
            bar.set_postfix(log[-1], refresh=False)
            if figure(log[-1]) > max(map(figure, log[:-1])):
                best = {name: tensor.clone() for name, tensor in routers.state_dict().items()}
            content = {"routers": routers.state_dict(), "optimizer": optimizer.state_dict(), "best": best, "log": log}
            with whole_file(place) as temporary:
                torch.save(content, temporary)
    routers.load_state_dict(best)
    return log


def warm_up(name: str, spec: ModelSpec, paths: Paths, digest: str) -> None:
    """Write the checkpoint, and train.jsonl: a line for each look at the development set."""
    params, started = read_params(spec, f"models.yaml: {name}: params"), time.perf_counter()
    stored = read.find(paths.model(spec.after))
    config, backbone = routed_config(name, params, stored), Backbone(stored)
    kept = paths.model(name).with_name(f".{name}.resume")
    sets = [read_texts(paths.samples(each), backbone, config, params, kept / each) for each in spec.samples]
    moments = {
        each: (sets[0].questions.moments(each), sets[0].documents.moments(each)) for each in config.routed_layers
    }
    routers = Routers(config, moments, params.shrinkage)
    (kept / digest).mkdir(exist_ok=True)
    log = learn(routers, *sets, params, kept / digest)
    state = dict(backbone.model.state_dict()) | routers.tensors()
    directory = paths.model(name)
    directory.mkdir(parents=True, exist_ok=True)
    stated = routers.stated() if params.layer_learning_rate else config
    print(write(stored, stated, state, directory, directory, torch.float32, hub.SHARD_BYTES))
    log[-1] |= {"seconds": round(time.perf_counter() - started, 3), "precision": routers.precision}
    with whole_file(directory / LOG) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in log))
    shutil.rmtree(kept)


def main() -> None:
    run(__doc__, __spec__.name, warm_up)


if __name__ == "__main__":
    run_command(main)
