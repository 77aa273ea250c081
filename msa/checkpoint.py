"""Checkpoints: safetensors weights with a Hugging Face config.json, and the check against a numeric fixture.

Compare a fixture directory (config.json, model.safetensors, golden.safetensors) with this implementation::

    python -m msa.checkpoint verify ../shared/golden
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import UserError, run_command
from configs.tables import read_json, whole_file, write_json
from msa import onepass
from msa.config import ModelConfig
from msa.loss import auxiliary_loss
from msa.model import MSAModel
from msa.prompt import Prompter, load_tokenizer

TOLERANCE = 1e-4


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a safetensors file; a missing or corrupt one is a UserError that names it."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); delete it and make it again") from None


def save(model: MSAModel, directory: Path | str) -> None:
    """Write config.json and then model.safetensors, each whole; weights last, so that their presence means all is there."""
    directory = Path(directory)
    write_json(model.config.to_hub(), directory / "config.json")
    tensors = {name: tensor.detach().float().contiguous().clone() for name, tensor in model.state_dict().items()}
    with whole_file(directory / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def load(directory: Path | str) -> MSAModel:
    """Load a checkpoint directory in float32, ready for inference.

    Raises:
        UserError: a missing or corrupt file, an unsupported family, or tensors that do not fit the config.
    """
    directory = Path(directory)
    config = ModelConfig.from_hub(read_json(directory / "config.json"), str(directory / "config.json"))
    path = directory / "model.safetensors"
    tensors = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    if config.family == "msa":  # the released format does not say which of Qwen3's options its backbone has
        config = replace(
            config,
            qk_norm=any(name.endswith("q_norm.weight") for name in tensors),
            qkv_bias=any(name.endswith("q_proj.bias") for name in tensors),
        )
    model = MSAModel(config)
    expected = model.state_dict()
    if config.tied_head:
        tensors.pop("lm_head.weight", None)
    if config.routed_layers:
        tensors.setdefault("temperature", expected["temperature"])
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise UserError(f"{path}: does not fit config.json: missing {missing[:4]}, unknown {unknown[:4]}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} has shape {list(tensor.shape)}, config.json asks for {list(expected[name].shape)}"
            )
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def open_model(directory: Path | str, threads: int = 0) -> tuple[MSAModel, Prompter]:
    """The model of a checkpoint directory and the row builder of its tokenizer.

    Args:
        threads: CPU threads of the process; 0 leaves torch's choice.
    """
    if threads:
        torch.set_num_threads(threads)
    return load(directory), Prompter(load_tokenizer(Path(directory) / "tokenizer.json"))


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
    """``verify``: print the largest differences, exit 1 above the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="compare a fixture's outputs with this implementation")
    verify.add_argument("directory", type=Path, help="with config.json, model.safetensors and golden.safetensors")
    verify.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
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
