"""A model of the workflow whose routers start whitened and are not trained: a backbone, and text like what is read.

    python -m msa.training.whitened --profile small --model msa

An entry of models.yaml names the backbone (``after``), one sample set and the router; documents and questions of the
set give mean and covariance (msa.training.whiten).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from msa.checkpoints import hub, read
from msa.checkpoints.write import write
from msa.model.config import ModelConfig
from msa.model.stated import Router
from msa.ops import precision
from msa.training.sources import TABLES, made_from, stated_layers
from msa.training.whiten import SHRINKAGE, Backbone, routers
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.options import add_threads
from msa_base.paths import SEAL, Paths
from msa_base.records import Document
from msa_base.seal import Seal, write_seal
from msa_base.specs import ModelSpec
from msa_base.tables import read_arrow, whole_file
from msa_base.validate import Count, Share, build, check_known

TRAINS = True  # the workflow runs it for the models whose `kind` names it
LOG = "train.jsonl"
__all__ = ["TRAINS", "check_model"]


@dataclass(frozen=True)
class ModelParams:
    """The ``params`` of a models.yaml entry of this kind; the first ``documents`` and ``questions`` of its sample set
    whiten, and ``shrinkage`` is the share of the mean variance in place of the measured covariance.
    """

    router: Router
    documents: Count = 700
    questions: Count = 3500
    shrinkage: Share = SHRINKAGE


def read_params(spec: ModelSpec, where: str) -> ModelParams:
    """The checked parameters of an entry; a UserError for a bad one, or one without a parent or with several sets."""
    params: ModelParams = build(ModelParams, spec.params, where)
    if spec.after is None or len(spec.samples) != 1:
        raise UserError(f"{where}: whitened routers need `after`, a backbone, and one set under `samples`")
    if not params.router.form.bias:
        raise UserError(f"{where}: router: form: whitened routers centre what they read; write bias: true")
    return params


def check_model(name: str, models: Mapping[str, ModelSpec], where: str) -> None:
    """Raise a UserError for an entry that could not be made; ``models`` holds its ancestors where they are known."""
    params = read_params(models[name], where)
    if layers := stated_layers(name, models):
        params.router.check_layers(layers, where)


def routed_config(name: str, params: ModelParams, stored: hub.Stored) -> ModelConfig:
    """A backbone's config with an entry's routers; a UserError where their parts do not fit each other."""
    router = {**vars(params.router), "routed_layers": tuple(params.router.routed_layers)}
    config = replace(read.read_config(stored), **router)
    heads, groups, _ = config.routing_heads
    config.form.check(heads, groups, len(config.routed_layers), f"models.yaml: {name}: params: router: form")
    return config


def whiten(name: str, spec: ModelSpec, paths: Paths, _: str = "") -> None:
    """Write the checkpoint, and one line of train.jsonl: what it read, and how long that took."""
    params, started = read_params(spec, f"models.yaml: {name}: params"), time.perf_counter()
    stored, samples = read.find(paths.model(spec.after)), paths.samples(spec.samples[0])
    config = routed_config(name, params, stored)
    banks, asked = (read_arrow(table, samples / f"{table}.parquet").to_pylist() for table in TABLES)
    by_text = {row["text"]: Document(row["doc_id"], row["text"], row["num_tokens"]) for row in banks}
    documents = list(by_text.values())[: params.documents]
    questions = list(dict.fromkeys(row["question"] for row in asked))[: params.questions]
    backbone = Backbone(stored)
    state = dict(backbone.model.state_dict()) | routers(backbone, config, documents, questions, params.shrinkage)
    directory = paths.model(name)
    directory.mkdir(parents=True, exist_ok=True)
    print(write(stored, config, state, directory, directory, torch.float32, hub.SHARD_BYTES))
    entry = {"step": 0, "phase": "whitening", "seconds": round(time.perf_counter() - started, 3)}
    entry |= {"precision": precision.chosen()["encoding"], "documents": len(documents), "questions": len(questions)}
    with whole_file(directory / LOG) as temporary:
        temporary.write_text(json.dumps(entry) + "\n")


def run(description: str | None, kind: str, make: Callable[[str, ModelSpec, Paths, str], None]) -> None:
    """The command of a kind: make the model of an entry and seal it, unless it is there and current."""
    parser = experiment_parser(description)
    parser.add_argument("--model", required=True, help="an entry of models.yaml of this kind")
    add_threads(parser, 0, "CPU threads in all (default: 0, torch's choice)", least=0)
    chosen = parser.parse_args()
    experiment, paths = open_experiment(chosen)
    known = {name: entry for name, entry in experiment.models.items() if entry.kind == kind}
    check_known([chosen.model], known, "--model", chosen.configs / "models.yaml")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    spec, directory = known[chosen.model], paths.model(chosen.model)
    seal: Path = directory / SEAL
    made = made_from(spec, paths)
    if Seal.current(seal, made):
        return
    make(chosen.model, spec, paths, made.digest)
    write_seal(seal, made_from(spec, paths), [LOG, *Seal.read(seal).files])


def main() -> None:
    run(__doc__, __spec__.name, whiten)


if __name__ == "__main__":
    run_command(main)
