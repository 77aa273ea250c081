"""Turning backbones into MSA, and writing any checkpoint in a form that other programs open."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from configs import prompts
from configs.errors import UserError
from configs.fields import Fields
from configs.tables import whole_directory, write_json
from msa import checkpoint
from msa.config import ModelConfig, layer_numbers
from msa.hub import SHARD_BYTES, Stored
from msa.model import MSAModel

ROUTERS = ("router_q_proj.0.weight", "router_k_proj.0.weight")
# what other programs read beside weights and tokenizer.json
COMPANIONS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
# config.json keys that say nothing about the decoder's shape, yet matter to other programs
CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")


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

    Special tokens that the prompts need and the tokenizer lacks are added; a new token's row is the mean of the rows that
    spelled it.

    Args:
        routed_layers: such as ``18-35``; default the upper half (paper: 18 to 35 of 36).
        dtype: of the written weights; None for the narrowest that holds the source exactly.

    Returns:
        What was written, in words.

    Raises:
        UserError: the source is not a backbone, the target exists, or an option makes no sense.
    """
    stored = checkpoint.find(source)
    config = checkpoint.read_config(stored)
    if config.routed_layers:
        raise UserError(f"{stored.path}: has routers already (layers {_spans(config.routed_layers)}); use export")
    if min(pool_tokens, top_k) < 1:
        raise UserError(f"--pool-tokens {pool_tokens}, --top-k {top_k}: both must be above 0")
    layers = layer_numbers(routed_layers or f"{config.layers // 2}-{config.layers - 1}", config.layers, "--routed-layers")
    with whole_directory(target) as directory:
        dtype = dtype or stored.dtype
        model = checkpoint.read_model(stored, dtype)
        state = dict(model.state_dict())
        generator = torch.Generator().manual_seed(seed)
        deviation = Fields(stored.content, str(stored.path)).positive("initializer_range", 0.02)
        for layer in layers:
            for name, heads in zip(ROUTERS, (config.query_heads, config.kv_heads), strict=True):
                weight = torch.randn(heads * config.head_dim, config.hidden_size, generator=generator) * deviation
                state[f"model.layers.{layer}.self_attn.{name}"] = weight.to(dtype)
        config = replace(config, routed_layers=layers, pool_tokens=pool_tokens, top_k_documents=top_k)
        state["temperature"] = torch.tensor(config.aux_temperature)
        return _write(stored, config, state, directory, target, dtype, shard_bytes)


def export(
    source: Path,
    target: Path,
    to: str | None = None,
    released_inference: bool = False,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Write a checkpoint for other programs: MSA in the released format, or a plain LM for transformers.

    Args:
        to: msa, or hf, which leaves routers out; default msa where there are routers.
        released_inference: see :func:`msa.checkpoint.load`; it is recorded in the target's config.json.

    Returns:
        What was written, in words.

    Raises:
        UserError: the source has no routers to write or cannot be read, or the target exists.
    """
    stored = checkpoint.find(source)
    config = checkpoint.read_config(stored, released_inference)
    to = to or ("msa" if config.routed_layers else "hf")
    if to == "msa" and not config.routed_layers:
        raise UserError(f"{stored.path}: has no routers; use convert")
    if released_inference and to == "hf":
        raise UserError("--released-inference: a plain LM does not route")
    with whole_directory(target) as directory:
        dtype = dtype or stored.dtype
        state = dict(checkpoint.read_model(stored, dtype, released_inference).state_dict())
        if to == "hf":
            state = {name: tensor for name, tensor in state.items() if name != "temperature" and not name.endswith(ROUTERS)}
            config = replace(config, routed_layers=())
        return _write(stored, config, state, directory, target, dtype, shard_bytes)


def _write(
    stored: Stored, config: ModelConfig, state: dict[str, Tensor], directory: Path, target: Path, dtype: torch.dtype, shard_bytes: int
) -> str:
    """Write model and tokenizer into ``directory``, which becomes ``target``."""
    extra = {key: stored.content[key] for key in CARRIED if stored.content.get(key) is not None}
    tokenizer, lacks = _tokenizer(stored)
    added: list[str] = []
    if tokenizer is not None:
        if config.routed_layers:
            was_routed = bool(stored.content.get("msa_config"))
            config, added = _add_special_tokens(tokenizer, config, state, was_routed)
        _write_tokenizer(stored, tokenizer, directory, bool(added))
        for key, token in (("eos_token_id", prompts.IM_END), ("pad_token_id", prompts.END_OF_TEXT)):
            if tokenizer.token_to_id(token) is not None:
                extra.setdefault(key, tokenizer.token_to_id(token))
    with torch.device("meta"):
        model = MSAModel(config)
    model.load_state_dict(state, assign=True)
    checkpoint.save(model, directory, dtype, shard_bytes, **extra)
    parts = [
        f"{target}: {config.family}, {config.layers} layers, {sum(p.numel() for p in model.parameters()):,} parameters in "
        f"{str(dtype).removeprefix('torch.')}"
    ]
    if config.routed_layers:
        parts.append(
            f"routers on layers {_spans(config.routed_layers)}, P = {config.pool_tokens}, k = {config.top_k_documents}, "
            f"routing by {'cosine' if config.normalise_routing else 'scaled products'}"
        )
        if config.family != "msa":
            parts.append("the released engine runs Qwen3 alone; this model runs here")
    parts += [f"tokens added: {' '.join(added)}"] if added else []
    parts += [f"no tokenizer: {lacks}"] if lacks else []
    return "\n".join(parts)


def _tokenizer(stored: Stored) -> tuple[Tokenizer | None, str]:
    """The tokenizer of a checkpoint, or why there is none."""
    beside = stored.path.parent / "tokenizer.json"
    if beside.exists():
        return checkpoint.find_tokenizer(stored), ""
    if stored.path.suffix != ".gguf":
        return None, f"{beside} does not exist"
    try:
        return checkpoint.find_tokenizer(stored), ""
    except UserError as error:
        return None, str(error)


def _add_special_tokens(
    tokenizer: Tokenizer, config: ModelConfig, state: dict[str, Tensor], was_routed: bool
) -> tuple[ModelConfig, list[str]]:
    """Add the special tokens that are missing to tokenizer and embeddings; the new config and the tokens.

    A released checkpoint spells ``<End-of-Retrieve>`` with ordinary tokens. The token that stands for it here takes the row
    of the first of them, so that it is chosen where the model would have begun to spell.
    """
    added = [token for token in prompts.SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    spelled = {token: tokenizer.encode(token, add_special_tokens=False).ids for token in added}
    used = set(tokenizer.get_vocab().values())
    tokenizer.add_special_tokens(added)
    ids = {token: tokenizer.token_to_id(token) for token in added}
    if used & set(ids.values()):
        raise UserError("the tokenizer's ids have gaps, so that new tokens would take ids in use; number them from 0 without any")
    rows = max([config.vocab_size, *(index + 1 for index in ids.values())])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if not added or name not in state:
            continue
        old = state[name]
        new = torch.cat((old, old.new_zeros(rows - len(old), old.shape[1])))
        for token, index in ids.items():
            pieces = [piece for piece in spelled[token] if piece < len(old)][: 1 if was_routed else None]
            new[index] = (old[pieces] if pieces else old).float().mean(0).to(old.dtype)
        state[name] = new
    return replace(config, vocab_size=rows), added


def _write_tokenizer(stored: Stored, tokenizer: Tokenizer, directory: Path, changed: bool) -> None:
    beside = stored.path.parent
    for name in COMPANIONS:
        if (beside / name).exists():
            shutil.copyfile(beside / name, directory / name)
    if changed or not (beside / "tokenizer.json").exists():
        tokenizer.save(str(directory / "tokenizer.json"))
    else:
        shutil.copyfile(beside / "tokenizer.json", directory / "tokenizer.json")
    if not (directory / "tokenizer_config.json").exists():
        roles = {"eos_token": prompts.IM_END, "pad_token": prompts.END_OF_TEXT}
        known = {role: token for role, token in roles.items() if tokenizer.token_to_id(token) is not None}
        write_json({"tokenizer_class": "PreTrainedTokenizerFast", **known}, directory / "tokenizer_config.json")


def _spans(layers: tuple[int, ...]) -> str:
    """Layers as they are written on the command line: ``18-35``."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
