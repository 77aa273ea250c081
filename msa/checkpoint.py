"""Checkpoints: Llama, Qwen2, Qwen3 and MSA from Hugging Face directories and GGUF files, and back.

Compare a fixture directory (config.json, model.safetensors, golden.safetensors) with this implementation::

    python -m msa.checkpoint verify ../shared/golden

Turn a backbone into MSA, with fresh routers on the upper half of its layers::

    python -m msa.checkpoint convert Qwen3-4B-Instruct-2507 msa-4b --dtype bfloat16
    python -m msa.checkpoint convert Qwen3-0.6B-Q8_0.gguf msa-0.6b --routed-layers 14-27 --pool-tokens 32 --top-k 8

Read any of them and write it for others: MSA in the released format, anything else for transformers::

    python -m msa.checkpoint export MSA-4B msa-4b --released-inference
    python -m msa.checkpoint export results/tiny/_models/msa plain --to hf
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from configs.errors import UserError, run_command
from configs.tables import write_json
from msa import gguf, onepass, parallel
from msa.config import ModelConfig
from msa.hub import SHARD_BYTES, Stored, open_directory, read_tensors, write_tensors
from msa.loss import auxiliary_loss
from msa.model import MSAModel
from msa.prompt import Prompter, load_tokenizer

TOLERANCE = 1e-4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# buffers of other implementations that say nothing beyond config.json
REDUNDANT = ("rotary_emb.inv_freq",)


def save(
    model: MSAModel, directory: Path | str, dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES, **extra: object
) -> None:
    """Write config.json and then the weights, each file whole; weights last, so that their presence means all is there.

    Args:
        dtype: of the written weights.
        shard_bytes: more than this goes into shards with an index.
        extra: more keys of config.json.
    """
    directory = Path(directory)
    content = {**extra, **model.config.to_hub(), "torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(content, directory / "config.json")
    write_tensors(dict(model.state_dict()), directory, dtype, shard_bytes)


def find(path: Path | str) -> Stored:
    """What a path holds: a Hugging Face directory, a GGUF file, or a directory with one.

    Raises:
        UserError: none of these, or a corrupt one.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if not files or (path / "config.json").exists():
            return open_directory(path)
        if len(files) > 1:
            raise UserError(f"{path}: holds {len(files)} GGUF files; name one: {', '.join(file.name for file in files[:4])}")
        path = files[0]
    if path.suffix == ".gguf":
        return gguf.open_file(path)
    raise UserError(f"{path}: not a checkpoint; name a .gguf file, or the directory that holds config.json")


def load(path: Path | str, dtype: torch.dtype = torch.float32, released_inference: bool = False) -> MSAModel:
    """Load a checkpoint, ready for inference; weights are read one by one, so that memory holds about one copy.

    Args:
        path: Hugging Face directory (safetensors, sharded or not), GGUF file, or directory with one.
        released_inference: route as the released code does at inference; see :class:`msa.config.ModelConfig`.

    Raises:
        UserError: a missing or corrupt file, an unsupported family or feature, or tensors that do not fit the config.
    """
    return read_model(find(path), dtype, released_inference)


def read_model(stored: Stored, dtype: torch.dtype = torch.float32, released_inference: bool = False) -> MSAModel:
    """The model of an opened checkpoint; see :func:`load`."""
    config = read_config(stored, released_inference)
    with torch.device("meta"):
        model = MSAModel(config)
    expected = model.state_dict()
    ignored = {name for name in stored.types if name.endswith(REDUNDANT)}
    ignored |= {"lm_head.weight"} if config.tied_head else set()
    ignored |= {"b"} if config.routed_layers else set()  # the bias of the released code's BCE loss
    state = {"temperature": torch.tensor(config.aux_temperature)} if config.routed_layers else {}
    unknown = sorted(stored.types.keys() - expected.keys() - ignored)
    missing = sorted(expected.keys() - stored.types.keys() - state.keys())
    if missing or unknown:
        raise UserError(f"{stored.path}: does not fit its config: missing {missing[:4]}, unknown {unknown[:4]}")
    for name, tensor in stored.tensors():
        if name in ignored:
            continue
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{stored.path}: {name} has shape {list(tensor.shape)}, its config asks for {list(expected[name].shape)}"
            )
        state[name] = tensor.to(torch.float32 if name == "temperature" else dtype)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def read_config(stored: Stored, released_inference: bool = False) -> ModelConfig:
    """The shape of an opened checkpoint; raises UserError like :func:`load`."""
    where = stored.path if stored.path.suffix == ".gguf" else stored.path.parent / "config.json"
    config = ModelConfig.from_hub(stored.content, str(where), released_inference)
    names = stored.types.keys()

    def has(part: str) -> bool:
        return any(name.endswith(f".{part}") for name in names)

    # neither says which of the family's options its backbone has
    if stored.content["model_type"] == "msa" or stored.path.suffix == ".gguf":
        config = replace(config, qkv_bias=has("q_proj.bias"), output_bias=has("o_proj.bias"), mlp_bias=has("gate_proj.bias"))
    if stored.content["model_type"] == "msa":
        config = replace(config, qk_norm=has("q_norm.weight"))
    return config


def open_model(path: Path | str, threads: int = 0, dtype: torch.dtype = torch.float32) -> tuple[MSAModel, Prompter]:
    """The model of a checkpoint, on this process's device, and the row builder of its tokenizer.

    Args:
        threads: CPU threads of the process; 0 leaves torch's choice.
    """
    if threads:
        torch.set_num_threads(threads)
    stored = find(path)
    prompter = Prompter(find_tokenizer(stored))
    config = read_config(stored)
    if max(prompter.special.values()) >= config.vocab_size:
        raise UserError(
            f"{stored.path}: has rows for {config.vocab_size} tokens, and the tokenizer has special tokens beyond them; "
            "`python -m msa.checkpoint convert` adds rows"
        )
    return read_model(stored, dtype).to(parallel.device()), prompter


def find_tokenizer(stored: Stored) -> Tokenizer:
    """The tokenizer.json beside a checkpoint, or else the tokenizer in its GGUF file.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    beside = stored.path.parent / "tokenizer.json"
    if stored.path.suffix == ".gguf" and not beside.exists():
        return gguf.load_tokenizer(stored)
    return load_tokenizer(beside)


@torch.no_grad()
def differences(directory: Path | str) -> dict[str, float]:
    """Largest absolute difference from a fixture's outputs, by name: scores, hidden states, logits, losses.

    Hidden states and logits are compared at template, question and response positions; document positions of the
    released model above its first routed layer are not read by anything.

    Raises:
        UserError: a file or tensor is missing.
    """
    directory = Path(directory)
    model, golden = load(directory), read_tensors(directory / "golden.safetensors")
    try:
        inputs = [golden[name] for name in ("input_ids", "doc_ids", "position_ids")]
        outputs = [onepass.forward(model, *sample) for sample in zip(*inputs, strict=True)]
        result = {}
        for number, layer in enumerate(model.config.routed_layers):
            expected = golden[f"doc_scores.layer{layer}"]  # column 0 is unused
            found = torch.full_like(expected, -torch.inf)
            for row, output in zip(found, outputs, strict=True):
                row[1 : 1 + len(output.scores[number])] = output.scores[number]
            result[f"doc_scores.layer{layer}"] = _largest(found[:, 1:], expected[:, 1:])
        reads = torch.stack([output.reads for output in outputs])
        for layer in range(model.config.layers + 1):
            found = torch.stack([output.hidden[layer] for output in outputs])
            result[f"hidden.{layer}"] = _largest(found[reads], golden[f"hidden.{layer}"][reads])
        logits = torch.stack([output.logits for output in outputs])
        result["logits"] = _largest(logits[reads], golden["logits"][reads])
        result["lm_loss"] = _largest(onepass.language_loss(outputs, golden["labels"]), golden["lm_loss"])
        losses = []
        for number in range(len(model.config.routed_layers)):
            scores = torch.nn.utils.rnn.pad_sequence(
                [output.scores[number] for output in outputs], batch_first=True, padding_value=-torch.inf
            )
            positives = golden["aux_labels"][:, : scores.shape[1]] > 0
            losses.append(auxiliary_loss(scores, positives, model.temperature))
        result["aux_loss"] = _largest(torch.stack(losses).mean(), golden["aux_loss"])
    except KeyError as error:
        raise UserError(f"{directory / 'golden.safetensors'}: tensor {error} is missing") from None
    return result


def _largest(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; equal infinities agree, and anything else that is not finite is infinite."""
    found, expected = torch.broadcast_tensors(found.float(), expected.float())
    difference = torch.where(found == expected, 0.0, (found - expected).abs())
    return float(difference.nan_to_num(nan=torch.inf).max())


def main() -> int:
    """``verify`` prints the largest differences and exits with 1 above the tolerance; ``convert`` and ``export`` write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("verify", help="compare a fixture's outputs with this implementation")
    check.add_argument("directory", type=Path, help="with config.json, model.safetensors and golden.safetensors")
    check.add_argument("--json", action="store_true", help="print JSON")
    convert = commands.add_parser(
        "convert", help="turn a backbone into MSA by adding fresh routers",
        epilog="example: python -m msa.checkpoint convert Qwen3-0.6B msa-0.6b --routed-layers 14-27 --dtype bfloat16",
    )  # fmt: skip
    convert.add_argument("--routed-layers", default=None, help="such as 18-35 or 2,3 (default: the upper half)")
    convert.add_argument("--pool-tokens", type=int, default=64, help="P, tokens of a chunk (default: 64)")
    convert.add_argument("--top-k", type=int, default=16, help="documents chosen a layer (default: 16)")
    convert.add_argument("--seed", type=int, default=0, help="of the routers' weights (default: 0)")
    export = commands.add_parser(
        "export", help="write any checkpoint in the released MSA format or for transformers",
        epilog="example: python -m msa.checkpoint export MSA-4B msa-4b --released-inference",
    )  # fmt: skip
    export.add_argument("--to", choices=("msa", "hf"), help="default: msa where there are routers; hf leaves them out")
    export.add_argument(
        "--released-inference", action="store_true", help="record that routing normalises only where the released inference code does"
    )
    for command in (convert, export):
        command.add_argument("source", type=Path, help="Hugging Face directory, .gguf file, or directory with one")
        command.add_argument("target", type=Path, help="directory to write; it must not exist")
        command.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="default: auto, what holds the source exactly")
        command.add_argument("--shard-gb", type=float, default=SHARD_BYTES / 1e9, help="largest weights file in GB (default: 5)")
    arguments = parser.parse_args()
    if arguments.command == "verify":
        return _verify(arguments)
    from msa import convert as writer

    dtype = None if arguments.dtype == "auto" else DTYPES[arguments.dtype]
    shard_bytes = int(arguments.shard_gb * 1e9)
    if shard_bytes < 1:
        raise UserError(f"--shard-gb {arguments.shard_gb}: must be above 0")
    if arguments.command == "convert":
        report = writer.convert(
            arguments.source, arguments.target, arguments.routed_layers, arguments.pool_tokens, arguments.top_k,
            arguments.seed, dtype, shard_bytes,
        )  # fmt: skip
    else:
        report = writer.export(arguments.source, arguments.target, arguments.to, arguments.released_inference, dtype, shard_bytes)
    print(report)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    result = differences(arguments.directory)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:20s} {value:.2e}{'' if value <= TOLERANCE else '  ABOVE THE TOLERANCE'}")
        print(f"largest: {max(result.values()):.2e} (tolerance {TOLERANCE:.0e})")
    return 0 if max(result.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    run_command(main)
