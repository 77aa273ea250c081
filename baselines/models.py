"""The models that systems open: a checkpoint of this project, or a reference to a model that lives elsewhere.

    python -m baselines.models --profile paper --model llama_70b

writes the reference of a models.yaml entry whose ``kind`` names a module of baselines/ (or any dotted module), such as
``endpoint``: nothing is trained, and the model's directory holds reference.json and whatever the module keeps there.
Such a module has a dataclass ``ModelParams``, and the openers of what its models can do:

``open_reader(model: Reference) -> Reader``
``open_embedder(model: Reference) -> Embedder``
``open_reranker(model: Reference) -> Reranker``
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from baselines.base import load_module, read_params
from baselines.provenance import REFERENCE
from configs.errors import UserError, run_command
from configs.load import DIRECTORY, ModelSpec, check_known, load
from configs.paths import Paths
from configs.records import Document, Generation, Question
from configs.tables import read_json, write_json

OWN_KINDS = ("msa.train", "pretrained")  # their directories hold a checkpoint


class Reader(Protocol):
    """A model that writes."""

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[Generation]:
        """The reply to each prompt, a user's message, with its tokens, in order."""

    def prompt_tokens(self, documents: list[Document], question: Question) -> int:
        """Tokens of the prompt of :meth:`answer`."""

    def answer(self, pairs: list[tuple[list[Document], Question]]) -> list[Generation]:
        """The answer to each question from its own documents."""

    def answer_shared(self, documents: list[Document], questions: list[Question]) -> list[Generation]:
        """The answer to each question from one long context."""


class Embedder(Protocol):
    """A model that turns texts into unit vectors [N, E] float32."""

    def documents(self, documents: list[Document]) -> np.ndarray:
        """Vectors of documents."""

    def queries(self, questions: list[str]) -> np.ndarray:
        """Vectors of questions."""


class Reranker(Protocol):
    """A model that reads a question and a document together."""

    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        """How well each document answers its question [N] float32; only differences under one question mean anything."""


@dataclass(frozen=True)
class Reference:
    """An opened reference.json: the checked parameters, the directory they stand in, and the threads to use."""

    params: Any
    directory: Path
    threads: int


def open_reader(model: Path | None, threads: int) -> Reader:
    """The reader over a model directory. Raises UserError where the system's entry names no model."""
    if found := _referred(model, threads, "open_reader", "a system that reads needs a model"):
        return found
    from msa.reader import Reader as OwnReader

    return OwnReader(model, threads)


def open_embedder(model: Path | None, threads: int) -> Embedder:
    """The embedder over a model directory. Raises UserError where the index's entry names no model."""
    if found := _referred(model, threads, "open_embedder", "a dense index needs a model that embeds"):
        return found
    from msa.embed import Embedder as OwnEmbedder

    return OwnEmbedder(model, threads)


def open_reranker(model: Path | None, threads: int) -> Reranker:
    """The reranker over a model directory; a checkpoint of this project scores by query likelihood.

    Raises:
        UserError: the system's entry names no model, or one that cannot rerank.
    """
    if found := _referred(model, threads, "open_reranker", "a system that reranks needs a model"):
        return found
    from msa.likelihood import QueryLikelihood

    return QueryLikelihood(model, threads)


def take_usage(**models: Any) -> dict[str, Any]:
    """What the served ones among some models cost since this was last asked, by their role."""
    return {role: model.take_usage() for role, model in models.items() if hasattr(model, "take_usage")}


def _referred(model: Path | None, threads: int, opener: str, need: str) -> Any:
    """What a reference's module opens; None for a checkpoint of this project."""
    if model is None:
        raise UserError(f"systems.yaml: {need}; add `model:` to its entry")
    path = model / REFERENCE
    if not path.exists():
        return None
    content = read_json(path)
    where = f"models.yaml: {model.name}"
    module = load_module(content["kind"], where)
    if not hasattr(module, opener):
        raise UserError(f"{where}: {need}, which kind '{content['kind']}' has not ({opener}); name another model")
    params = read_params(module.ModelParams, content["params"], f"{where}: params")
    return getattr(module, opener)(Reference(params, model, threads))


def check_reference(spec: ModelSpec, where: str) -> Any:
    """The checked parameters of a models.yaml entry that is a reference.

    Raises:
        UserError: no such module, one that holds no models, or a bad parameter.
    """
    module = load_module(spec.kind, where)
    if not hasattr(module, "ModelParams"):
        raise UserError(f"{where}: kind '{spec.kind}' holds no models; name a module with ModelParams")
    return read_params(module.ModelParams, spec.params, f"{where}: params")


def main() -> None:
    """Write the reference of one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--model", required=True, help="a model of the profile that is a reference")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results stand (default: results)")
    chosen = parser.parse_args()
    experiment = load(chosen.profile, chosen.configs)
    referred = {name: spec for name, spec in experiment.models.items() if spec.kind not in OWN_KINDS}
    check_known([chosen.model], referred, "--model", chosen.configs / "models.yaml")
    spec = referred[chosen.model]
    check_reference(spec, f"{chosen.configs / 'models.yaml'}: {chosen.model}")
    directory = Paths.of(chosen.profile, chosen.results).model(chosen.model)
    write_json({"kind": spec.kind, "params": spec.params}, directory / REFERENCE)


if __name__ == "__main__":
    run_command(main)
