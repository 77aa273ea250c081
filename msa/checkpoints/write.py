"""Writing checkpoints: weights with their config.json, and beside them a tokenizer that the prompts can use."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from msa.checkpoints.hub import CHAT_TEMPLATE, GENERATION, SHARD_BYTES, Stored, write_tensors
from msa.checkpoints.read import end_tokens, find_tokenizer, read_config
from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.paths import SEAL
from msa_base.seal import MadeFrom, Seal, sealed
from msa_base.tables import write_json


class Checksums(Seal):
    """What a written checkpoint held, for whoever opens it."""

    KEPT: ClassVar[bool] = False


# what other programs read beside weights and tokenizer.json
COMPANIONS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
# config.json keys that say nothing about the decoder's shape, yet matter to other programs
CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")


def save(
    model: MSAModel,
    directory: Path | str,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
    **extra: object,
) -> None:
    """Write config.json, with ``extra`` keys, and then the weights as ``dtype``, each file whole.

    Weights are last, so that their presence means all is there; above ``shard_bytes`` they are shards with an index.
    """
    content = {**extra, **model.config.to_hub(), "torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(content, Path(directory) / "config.json")
    write_tensors(dict(model.state_dict()), Path(directory), dtype, shard_bytes)


def carried(stored: Stored) -> dict[str, Any]:
    """What a model that is made from a checkpoint takes over of its config.json, with all tokens that end a text.

    Raises:
        UserError: ends that are no tokens of the model.
    """
    found = {key: stored.content[key] for key in CARRIED if stored.content.get(key) is not None}
    ends = end_tokens(stored, read_config(stored).vocab_size)
    return found | ({"eos_token_id": sorted(ends)} if ends else {})


def write(
    stored: Stored,
    config: ModelConfig,
    state: dict[str, Tensor],
    directory: Path,
    target: Path,
    dtype: torch.dtype,
    shard_bytes: int,
) -> str:
    """Write model and tokenizer into ``directory``, which becomes ``target``.

    Raises:
        UserError: an end of texts that is no token of the model, or a tokenizer that cannot be read.
    """
    end_tokens(stored, config.vocab_size)
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
    save(model, directory, dtype, shard_bytes, **extra)
    Checksums(made_from=MadeFrom(), files=sealed(directory, [path.name for path in directory.iterdir()])).write(
        directory / SEAL
    )
    size, kind = sum(p.numel() for p in model.parameters()), str(dtype).removeprefix("torch.")
    parts = [f"{target}: {config.family}, {config.layers} layers, {size:,} parameters in {kind}"]
    if config.routed_layers:
        sizes = f"P = {config.pool_tokens}, k = {config.top_k_documents}"
        score = "cosine" if config.normalise_routing else "scaled products"
        parts.append(f"routers on layers {spans(config.routed_layers)}, {sizes}, routing by {score}")
        if not config.form.released:
            parts.append("its routers have a form of their own, which runs here and not in the released engine")
        if config.family != "msa":
            parts.append("the released engine runs Qwen3 alone; this model runs here")
    parts += [f"tokens added: {' '.join(added)}"] if added else []
    parts += [f"no tokenizer: {lacks}"] if lacks else []
    return "\n".join(parts)


def _tokenizer(stored: Stored) -> tuple[Tokenizer | None, str]:
    """The tokenizer of a checkpoint, or why there is none."""
    beside = stored.path.parent / "tokenizer.json"
    if stored.path.suffix != ".gguf" and not beside.exists():
        return None, f"{beside} does not exist"
    try:
        return find_tokenizer(stored), ""
    except UserError as error:
        if beside.exists():
            raise
        return None, str(error)


def _add_special_tokens(
    tokenizer: Tokenizer, config: ModelConfig, state: dict[str, Tensor], was_routed: bool
) -> tuple[ModelConfig, list[str]]:
    """Add the special tokens that are missing to tokenizer and embeddings; the new config and the tokens.

    A released checkpoint spells ``<End-of-Retrieve>`` with ordinary tokens. The token that stands for it here takes the
    row of the first of them, so that it is chosen where the model would have begun to spell.
    """
    added = [token for token in prompts.SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if not added:
        return config, added
    spelled = {token: tokenizer.encode(token, add_special_tokens=False).ids for token in added}
    used = set(tokenizer.get_vocab().values())
    tokenizer.add_special_tokens(added)
    ids = {token: tokenizer.token_to_id(token) for token in added}
    if used & set(ids.values()):
        raise UserError("the tokenizer's ids have gaps, and new tokens would take ids in use; number them from 0 on")
    rows = max([config.vocab_size, *(index + 1 for index in ids.values())])
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & state.keys():
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
    if stored.chat_template is not None:
        (directory / CHAT_TEMPLATE).write_text(stored.chat_template, encoding="utf-8")
    if stored.generation and not (directory / GENERATION).exists():
        write_json(stored.generation, directory / GENERATION)
    if changed or not (beside / "tokenizer.json").exists():
        tokenizer.save(str(directory / "tokenizer.json"))
    else:
        shutil.copyfile(beside / "tokenizer.json", directory / "tokenizer.json")
    if not (directory / "tokenizer_config.json").exists():
        roles = {"eos_token": prompts.IM_END, "pad_token": prompts.END_OF_TEXT}
        known = {role: token for role, token in roles.items() if tokenizer.token_to_id(token) is not None}
        write_json({"tokenizer_class": "PreTrainedTokenizerFast", **known}, directory / "tokenizer_config.json")


def spans(layers: tuple[int, ...]) -> str:
    """Layers as they are written on the command line: ``18-35``."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
