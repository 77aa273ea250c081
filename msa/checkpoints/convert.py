"""Turning a backbone into MSA, and writing any checkpoint for other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from msa.checkpoints.hub import SHARD_BYTES
from msa.checkpoints.read import find, read_config, read_model
from msa.checkpoints.write import spans, write
from msa.model.config import layer_numbers
from msa.model.router_form import RouterForm
from msa_base.errors import UserError
from msa_base.fields import Fields
from msa_base.tables import whole_directory

ROUTERS = ("router_q_proj.0.weight", "router_k_proj.0.weight")


def convert(
    source: Path,
    target: Path,
    routed_layers: str | None = None,
    pool_tokens: int = 64,
    top_k: int = 16,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Write a backbone as MSA with fresh routers: linear, no bias, normal with the family's standard deviation.

    Special tokens that the prompts need and the tokenizer lacks are added; a new token's row is the mean of the rows
    that spelled it. Returns what was written, in words.

    Args:
        routed_layers: such as ``18-35``; default the upper half (paper: 18 to 35 of 36).
        dtype: of the written weights; None for the narrowest that holds the source exactly.

    Raises:
        UserError: the source is not a backbone, the target exists, or an option makes no sense.
    """
    stored = find(source)
    config = read_config(stored)
    if config.routed_layers:
        raise UserError(f"{stored.path}: has routers already (layers {spans(config.routed_layers)}); use export")
    upper_half = f"{config.layers // 2}-{config.layers - 1}"
    layers = layer_numbers(routed_layers or upper_half, config.layers, "--routed-layers")
    with whole_directory(target) as directory:
        dtype = dtype or stored.dtype
        state = dict(read_model(stored, dtype).state_dict())
        generator = torch.Generator().manual_seed(seed)
        deviation = Fields(stored.content, str(stored.path)).positive("initializer_range", 0.02)
        for layer in layers:
            for name, heads in zip(ROUTERS, (config.query_heads, config.kv_heads), strict=True):
                weight = torch.randn(heads * config.head_dim, config.hidden_size, generator=generator) * deviation
                state[f"model.layers.{layer}.self_attn.{name}"] = weight.to(dtype)
        config = replace(config, routed_layers=layers, pool_tokens=pool_tokens, top_k_documents=top_k)
        state["temperature"] = torch.tensor(config.aux_temperature)
        return write(stored, config, state, directory, target, dtype, shard_bytes)


def export(
    source: Path,
    target: Path,
    to: str | None = None,
    released_inference: bool = False,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Write MSA in the released format, or a plain LM for transformers; returns what was written, in words.

    Args:
        to: msa, or hf, which leaves routers out; default msa where there are routers.
        released_inference: see :func:`msa.checkpoints.read.load`; it is recorded in the target's config.json.

    Raises:
        UserError: the source has no routers to write or cannot be read, or the target exists.
    """
    stored = find(source)
    config = read_config(stored, released_inference)
    to = to or ("msa" if config.routed_layers else "hf")
    if to == "msa" and not config.routed_layers:
        raise UserError(f"{stored.path}: has no routers; use convert")
    if released_inference and to == "hf":
        raise UserError("--released-inference: a plain LM does not route")
    with whole_directory(target) as directory:
        dtype = dtype or stored.dtype
        state = dict(read_model(stored, dtype, released_inference).state_dict())
        if to == "hf":
            state = {name: tensor for name, tensor in state.items() if "router_" not in name}
            state.pop("temperature", None)
            config = replace(config, routed_layers=(), form=RouterForm())
        return write(stored, config, state, directory, target, dtype, shard_bytes)
