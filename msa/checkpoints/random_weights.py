"""A checkpoint of random weights in the released form, by its shape alone: what a rehearsal opens in place of weights.

    python -m msa.checkpoints.random_weights --profile paper_rehearsal --model msa

It proves paths, formats and memory; what it answers means nothing. Matrices are normal with Qwen's range, gains one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers import Tokenizer

from msa.checkpoints import write
from msa.checkpoints.hub import CHAT_TEMPLATE
from msa.model.cost import planned_config
from msa.model.decoder import MSAModel
from msa.model.stated import Router, Shape
from msa_base import prompts
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.options import add_threads
from msa_base.paths import SEAL
from msa_base.seal import Seal, write_seal
from msa_base.specs import ModelSpec
from msa_base.stages import model as made_of
from msa_base.tables import whole_file
from msa_base.validate import Count, Seed, build

TRAINS = True  # it makes a checkpoint, as a trainer does (msa_base.kinds)
RANGE = 0.02  # initializer_range of the released config.json
# Qwen's own, without tools: messages between marks, then the assistant's mark
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class ModelParams:
    """The ``params`` of a models.yaml entry of this kind; above ``shard_mb`` the weights are shards with an index."""

    shape: Shape
    router: Router | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    shard_mb: Count = 100
    seed: Seed = 0


def check_model(name: str, models: Mapping[str, ModelSpec], where: str) -> None:
    """Raise a UserError for an entry with a bad key."""
    params: ModelParams = build(ModelParams, models[name].params, where)
    if params.router:
        params.router.check_layers(params.shape.layers, where)


def drawn(name: str, models: Mapping[str, ModelSpec], vocab_size: int) -> MSAModel:
    """The model of an entry with its weights."""
    params: ModelParams = build(ModelParams, models[name].params, f"models.yaml: {name}: params")
    torch.manual_seed(params.seed)
    model = MSAModel(planned_config(name, models, vocab_size))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=RANGE)
    return model


def main() -> None:
    """Write one model of a profile."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--model", required=True, help="an entry of models.yaml")
    add_threads(parser, 0, "CPU threads (default: 0, torch's choice)", least=0)
    arguments = parser.parse_args()
    experiment, paths = open_experiment(arguments)
    if arguments.model not in experiment.models:
        raise UserError(f"--model {arguments.model}: unknown (known in models.yaml: {', '.join(experiment.models)})")
    spec, directory = experiment.models[arguments.model], paths.model(arguments.model)
    made_from = made_of(spec).of(paths.root, paths.tokenizer)
    if Seal.current(directory / SEAL, made_from):
        return
    params: ModelParams = build(ModelParams, spec.params, f"models.yaml: {arguments.model}: params")
    tokenizer = Tokenizer.from_file(str(paths.tokenizer))
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("*.safetensors*"):
        stale.unlink()
    with whole_file(directory / "tokenizer.json") as temporary:
        shutil.copyfile(paths.tokenizer, temporary)
    with whole_file(directory / CHAT_TEMPLATE) as temporary:
        temporary.write_text(TEMPLATE)
    model = drawn(arguments.model, experiment.models, tokenizer.get_vocab_size())
    ends = {"eos_token_id": tokenizer.token_to_id(prompts.IM_END)}
    write.save(model, directory, getattr(torch, params.dtype), params.shard_mb * 10**6, **ends)
    write_seal(directory / SEAL, made_from, [path.name for path in directory.iterdir() if path.name != SEAL])


if __name__ == "__main__":
    run_command(main)
