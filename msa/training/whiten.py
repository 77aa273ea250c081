"""Routers that start from whitened states: no training, only the mean and covariance of text like what they will read.

Turn a backbone into MSA whose routers compare whitened states as they are::

    python -m msa.training.whiten weights/SmolLM2-135M-Instruct whitened --texts squad.jsonl --routed-layers 6,9

The texts are JSON lines with ``text`` of a passage or ``question``. Each side is centred and whitened by its own:
chunks of passages, tokens of questions. A token's score of a chunk is then the cosine of two whitened states.

Shape legend: B rows, M tokens, n states, E hidden size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from msa.checkpoints import read
from msa.checkpoints.hub import SHARD_BYTES, Stored
from msa.checkpoints.write import write
from msa.generation.reader import by_length
from msa.model.config import ModelConfig, layer_numbers
from msa.model.decoder import MSAModel
from msa.model.moments import Moments
from msa.model.prompt import Prompter, Row, guarded, pad_rows
from msa.model.router_form import QUERY_REDUCE, QUERY_TOKENS, RouterForm
from msa.ops import dispatch, precision
from msa_base import prompts
from msa_base.errors import UserError, run_command
from msa_base.json_lines import read_json_lines
from msa_base.options import add_number, add_threads, given_path
from msa_base.records import Document
from msa_base.seal import checkpoint_digest, file_digest
from msa_base.tables import whole_directory

BATCH_TOKENS = 4096
SHRINKAGE = 0.01


class Backbone:
    """A checkpoint whose layers' inputs are looked at."""

    def __init__(self, stored: Stored):
        tokenizer = read.find_tokenizer(stored)
        tokenizer.add_special_tokens(list(prompts.SPECIAL_TOKENS))  # the rows built here hold none that it lacks
        self.prompter = Prompter(guarded(tokenizer))
        self.model: MSAModel = read.read_model(stored)
        self.precision = precision.choose("encoding", "auto", self.model.device)
        self.digest = file_digest(stored.path) if stored.tokenizer else checkpoint_digest(stored.path.parent)

    def asked(self, questions: list[str], form: RouterForm) -> list[Row]:
        """Questions as a model of such routers is asked them, with the tokens that route."""
        self.prompter.query_tokens = form.query_tokens
        return [self.prompter.opening(question) for question in questions]

    @torch.no_grad()
    def states(
        self, rows: list[list[int]], layers: list[int], said: str, done: int = 0
    ) -> Iterator[tuple[list[int], Tensor, dict[int, Tensor]]]:
        """Numbers of some rows, their lengths [B], and the normed inputs [B, M, E] of some layers.

        ``done`` batches are left out.
        """
        batches = list(by_length(list(map(len, rows)), BATCH_TOKENS))[done:]
        total = sum(len(rows[number]) for batch in batches for number in batch)
        with tqdm(total=total, desc=said, unit="token", unit_scale=True, mininterval=5) as bar:
            for batch in batches:
                ids, kept = pad_rows([rows[number] for number in batch], self.prompter.pad), {}
                lengths = torch.tensor([len(rows[number]) for number in batch])
                with precision.autocast(self.precision, ids.device):
                    for layer, h in enumerate(self.model.states(ids, torch.arange(ids.shape[1]))):
                        if layer in layers:
                            kept[layer] = h.float()
                        if len(kept) == len(layers):
                            break
                yield batch, lengths, kept
                bar.update(int(lengths.sum()))

    def moments(
        self, passages: list[list[int]], questions: list[Row], layers: list[int], pools: list[int]
    ) -> dict[tuple[int, int], Moments]:
        """By layer and pooling: of chunks of wrapped passages, and under 0 of the tokens of questions that route."""
        sums = {(layer, pool): Moments(self.model.config.hidden_size) for layer in layers for pool in (*pools, 0)}
        for _, lengths, kept in self.states(passages, layers, "training passages"):
            for layer, h in kept.items():
                for pool in pools:
                    real = torch.arange(-(-h.shape[1] // pool)) * pool < lengths.unsqueeze(1)
                    sums[layer, pool].add(dispatch.pool_chunks(h, lengths, pool)[real])
        for batch, _, kept in self.states([row.ids for row in questions], layers, "training questions"):
            routing = pad_rows([list(map(int, questions[number].routing)) for number in batch], 0).bool()
            for layer, h in kept.items():
                sums[layer, 0].add(h[routing])
        return sums


def projection(width: int, hidden: int, seed: int = 0) -> Tensor:
    """What a router keeps of whitened states [width, E] float64: all of them, or random orthonormal directions."""
    if width == hidden:
        return torch.eye(hidden, dtype=torch.float64)
    if width > hidden:
        raise UserError(f"a router's keys are {width} wide, more than the {hidden} of the backbone's states")
    drawn = torch.randn(hidden, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T


def whitened(config: ModelConfig, layer: int, queries: Moments, keys: Moments, shrinkage: float) -> dict[str, Tensor]:
    """A router's tensors: the query heads of a key head are alike, and its bias centres.

    Raises:
        UserError: the form has no bias, or keys wider than the hidden states.
    """
    if not config.form.bias:
        raise UserError("a whitened router centres what it reads; give its form bias: true")
    heads, groups, length = config.routing_heads
    kept = projection(config.routing_width, config.hidden_size)
    state = {}
    for name, side, repeats in (("router_q_proj", queries, heads // groups), ("router_k_proj", keys, 1)):
        weight = (kept @ side.whitening(shrinkage)).unflatten(0, (groups, length))
        weight = weight.repeat_interleave(repeats, 0).flatten(0, 1)
        place = f"model.layers.{layer}.self_attn.{name}.0"
        state |= {f"{place}.weight": weight.float(), f"{place}.bias": -(weight @ side.mean).float()}
    return state


def routers(
    backbone: Backbone, config: ModelConfig, documents: list[Document], questions: list[str],
    shrinkage: float = SHRINKAGE,
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of whitened routers of ``config``, its temperature with them, from text like what they will read."""
    rows = backbone.prompter.documents(documents), backbone.asked(questions, config.form)
    moments = backbone.moments(*rows, list(config.routed_layers), [config.pool_tokens])
    state = {"temperature": torch.tensor(config.aux_temperature)}
    for layer in config.routed_layers:
        state |= whitened(config, layer, moments[layer, 0], moments[layer, config.pool_tokens], shrinkage)
    return state


def whiten(
    source: Path, target: Path, texts: Path, layers: str, form: RouterForm, pool_tokens: int = 16, top_k: int = 16,
    shrinkage: float = SHRINKAGE,
) -> str:  # fmt: skip
    """Write a backbone as MSA with whitened routers; returns what was written, in words.

    Raises:
        UserError: the source is not a backbone, the target exists, the texts lack a side, or an option makes no sense.
    """
    stored = read.find(source)
    config = read.read_config(stored)
    if config.routed_layers:
        raise UserError(f"{stored.path}: has routers already; whiten its backbone")
    routed = layer_numbers(layers, config.layers, "--routed-layers")
    config = replace(config, routed_layers=routed, pool_tokens=pool_tokens, top_k_documents=top_k, form=form)
    heads, groups, _ = config.routing_heads
    form.check(heads, groups, len(routed), "form")
    with whole_directory(target) as directory:
        found: dict[str, list[str]] = {"text": [], "question": []}
        for number, row in read_json_lines(texts):
            for key, given in found.items():
                if isinstance(row, dict) and key in row:
                    if not isinstance(row[key], str):
                        raise UserError(f"{texts}:{number}: key '{key}' must be a text")
                    given.append(row[key])
        for key, given in found.items():
            if not given:
                raise UserError(f"{texts}: no line has the key '{key}'; both sides are whitened, each by its own text")
        backbone = Backbone(stored)
        documents = [Document(100_000 + number, text, 0) for number, text in enumerate(found["text"])]
        state = dict(backbone.model.state_dict()) | routers(backbone, config, documents, found["question"], shrinkage)
        return write(stored, config, state, directory, target, torch.float32, SHARD_BYTES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=given_path, help="the backbone: Hugging Face directory or .gguf file")
    parser.add_argument("target", type=given_path, help="directory to write; it must not exist")
    parser.add_argument("--texts", type=given_path, required=True, help="JSON lines with text or question")
    parser.add_argument("--routed-layers", required=True, help="such as 6,9 or 18-29")
    add_number(parser, "--pool-tokens", 16, "P, tokens of a chunk (default: 16)", most=2**20)
    add_number(parser, "--top-k", 16, "documents chosen (default: 16)", most=2**20)
    add_number(parser, "--width", 0, "of a routing key, in one head (default: 0, the hidden size)", least=0, most=2**20)
    parser.add_argument(
        "--query-reduce", choices=QUERY_REDUCE, default="mean", help="over a question's tokens (default: mean)"
    )
    parser.add_argument(
        "--query-tokens", choices=QUERY_TOKENS, default="question", help="of a request, that route (default: question)"
    )
    parser.add_argument("--fused", action="store_true", help="one list of documents for all layers")
    told = f"share of the mean variance in place of the measured covariance (default: {SHRINKAGE})"
    add_number(parser, "--shrinkage", SHRINKAGE, told, least=0, most=1, kind=float)
    add_threads(parser, 1, "CPU threads (default: 1)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    width = chosen.width or read.read_config(read.find(chosen.source)).hidden_size
    form = RouterForm(1, 1, width, True, chosen.query_reduce, chosen.query_tokens, fused=chosen.fused)
    more = chosen.pool_tokens, chosen.top_k, chosen.shrinkage
    print(whiten(chosen.source, chosen.target, chosen.texts, chosen.routed_layers, form, *more))


if __name__ == "__main__":
    run_command(main)
