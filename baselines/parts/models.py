"""The models that systems open: a checkpoint of this project, or a reference to a model that lives elsewhere.

    python -m baselines.parts.models --profile paper --model llama_70b

writes the reference of a models.yaml entry whose ``kind`` names a module of baselines/ (or any dotted module), such as
``endpoint``: nothing is trained, and the model's directory holds reference.json and whatever the module keeps there.
Such a module has a dataclass ``ModelParams``, and the openers of what its models can do:

``open_reader(model: ModelReference) -> ReadingModel``
``open_embedder(model: ModelReference) -> EmbeddingModel``
``open_reranker(model: ModelReference) -> RerankingModel``

and, where its parameters may name files on this machine, ``model_files(params) -> list[Path]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.kinds import holds_checkpoint, import_kind
from msa_base.paths import SEAL
from msa_base.records import Document, Generation, Question
from msa_base.seal import checkpoint_digest, file_digest, value_digest, write_seal
from msa_base.specs import ModelSpec
from msa_base.stages import model as made_of
from msa_base.tables import read_json, write_json
from msa_base.validate import build, check_known

REFERENCE = "reference.json"


class ReadingModel(Protocol):
    """A model that writes. ``identity``, where it has one, says all that its texts depend on beside what it reads."""

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[Generation]:
        """The reply to each prompt, a user's message, with its tokens, in order."""

    def prompt_tokens(self, documents: list[Document], question: Question) -> int:
        """Tokens of the prompt of :meth:`answer`."""

    def answer(self, pairs: list[tuple[list[Document], Question]]) -> list[Generation]:
        """The answer to each question from its own documents."""

    def answer_shared(self, documents: list[Document], questions: list[Question]) -> list[Generation]:
        """The answer to each question from one long context."""


class EmbeddingModel(Protocol):
    """A model that turns texts into unit vectors [N, E] float32."""

    def documents(self, documents: list[Document]) -> np.ndarray:
        """Vectors of documents."""

    def queries(self, questions: list[str]) -> np.ndarray:
        """Vectors of questions."""


class RerankingModel(Protocol):
    """A model that reads a question and a document together."""

    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        """How well each document answers its question [N] float32; only differences under one question count."""


@dataclass(frozen=True)
class ModelReference:
    """An opened reference.json: the checked parameters, the directory they stand in, and the threads to use."""

    params: Any
    directory: Path
    threads: int


def open_reader(model: Path | None, threads: int) -> ReadingModel:
    """The reader over a model directory. Raises UserError where the system's entry names no model."""
    if found := _referred(model, threads, "open_reader", "a system that reads needs a model"):
        return found
    from msa.generation.reader import Reader

    return Reader(model, threads)


def open_embedder(model: Path | None, threads: int) -> EmbeddingModel:
    """The embedder over a model directory. Raises UserError where the index's entry names no model."""
    if found := _referred(model, threads, "open_embedder", "a dense index needs a model that embeds"):
        return found
    from msa.generation.embed import Embedder

    return Embedder(model, threads)


def open_reranker(model: Path | None, threads: int) -> RerankingModel:
    """The reranker over a model directory; a checkpoint of this project scores by query likelihood. Raises likewise."""
    if found := _referred(model, threads, "open_reranker", "a system that reranks needs a model"):
        return found
    from msa.generation.likelihood import QueryLikelihood

    return QueryLikelihood(model, threads)


def _referred(model: Path | None, threads: int, opener: str, need: str) -> Any:
    """What a reference's module opens; None for a checkpoint of this project."""
    if model is None:
        raise UserError(f"systems.yaml: {need}; add `model:` to its entry")
    path = model / REFERENCE
    if not path.exists():
        return None
    content = read_json(path)
    where = f"models.yaml: {model.name}"
    module = import_kind(content["kind"], "baselines.parts", where)
    if not hasattr(module, opener):
        raise UserError(f"{where}: {need}, which kind '{content['kind']}' has not ({opener}); name another model")
    params = build(module.ModelParams, content["params"], f"{where}: params")
    check_here(params, where)
    return getattr(module, opener)(ModelReference(params, model, threads))


def model_digest(model: Path) -> str:
    """One digest of a model directory: of a checkpoint, or of a reference and the files that it names."""
    path = model / REFERENCE
    if not path.exists():
        return checkpoint_digest(model)
    content = read_json(path)
    module = import_kind(content["kind"], "baselines.parts", f"models.yaml: {model.name}")
    files = getattr(module, "model_files", lambda params: [])(content["params"])
    named = {str(file): file_digest(file) for file in files}
    return value_digest([file_digest(path), named]) if named else file_digest(path)


def check_reference(spec: ModelSpec, where: str) -> Any:
    """The checked parameters of a models.yaml entry that is a reference; a UserError where it is none, or bad."""
    module = import_kind(spec.kind, "baselines.parts", where)
    if not hasattr(module, "ModelParams"):
        raise UserError(f"{where}: kind '{spec.kind}' holds no models; name a module with ModelParams")
    return build(module.ModelParams, spec.params, f"{where}: params")


def check_here(params: Any, where: str) -> None:
    """Raise a UserError where a reference that is to be used lacks what it needs here: a key, a pinned commit."""
    try:
        getattr(params, "check_here", lambda: None)()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("--model", required=True, help="a model of the profile that is a reference")
    chosen = parser.parse_args()
    experiment, paths = open_experiment(chosen)
    referred = {name: spec for name, spec in experiment.models.items() if not holds_checkpoint(spec.kind)}
    check_known([chosen.model], referred, "--model", chosen.configs / "models.yaml")
    spec = referred[chosen.model]
    where = f"{chosen.configs / 'models.yaml'}: {chosen.model}"
    check_here(check_reference(spec, where), where)
    directory = paths.model(chosen.model)
    write_json({"kind": spec.kind, "params": spec.params}, directory / REFERENCE)
    write_seal(directory / SEAL, made_of(spec).of(paths.root), [REFERENCE])


if __name__ == "__main__":
    run_command(main)
