"""Reading checkpoints: Llama, Qwen2, Qwen3 and MSA from Hugging Face directories and GGUF files.

:func:`open_model` is what most callers want: the model and the row builder of its tokenizer. :func:`open_reader` is for
models that are asked as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.overrides import TorchFunctionMode

from msa.checkpoints import gguf
from msa.checkpoints.hub import GENERATION, Stored, open_directory
from msa.model.chat import ChatPrompter
from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel
from msa.model.prompt import Prompter, load_tokenizer
from msa.ops.finite import all_finite
from msa.ops.precision import device
from msa_base import prompts
from msa_base.errors import UserError

# buffers of other implementations that say nothing beyond config.json
REDUNDANT = ("rotary_emb.inv_freq",)
BIASES = {"qkv_bias": "q_proj", "output_bias": "o_proj", "mlp_bias": "gate_proj"}


def find(path: Path | str) -> Stored:
    """The Hugging Face directory, GGUF file, or directory with one at a path; a UserError for anything else."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if not files or (path / "config.json").exists():
            return open_directory(path)
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:4])
            raise UserError(f"{path}: holds {len(files)} GGUF files; name one: {names}")
        path = files[0]
    if path.suffix == ".gguf":
        return gguf.open_file(path)
    raise UserError(f"{path}: not a checkpoint; name a .gguf file, or the directory that holds config.json")


def load(path: Path | str, dtype: torch.dtype = torch.float32, released_inference: bool = False) -> MSAModel:
    """Load a checkpoint, ready for inference; weights are read one by one, so that memory holds about one copy.

    Args:
        path: what :func:`find` takes.
        released_inference: route as the released code does at inference; see :class:`msa.model.config.ModelConfig`.

    Raises:
        UserError: a missing or corrupt file, an unsupported family or feature, or tensors that do not fit the config.
    """
    return read_model(find(path), dtype, released_inference)


class Unfilled(TorchFunctionMode):
    """Leaves out a normal draw of initial values, which on the meta device imports torch._dynamo: a second or more."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.init.normal_:
            return None
        return func(*args, **(kwargs or {}))


def read_model(stored: Stored, dtype: torch.dtype = torch.float32, released_inference: bool = False) -> MSAModel:
    """The model of an opened checkpoint; see :func:`load`."""
    config = read_config(stored, released_inference)
    held = {name.split(".")[2] for name in stored.types if name.startswith("model.layers.") and name.count(".") > 2}
    if len(held) < config.layers:
        raise UserError(f"{stored.path}: holds {len(held)} layers, its config asks for {config.layers}")
    try:
        with torch.device("meta"), Unfilled():
            model = MSAModel(config)
    except (RuntimeError, OverflowError) as error:  # sizes whose product no tensor can have
        raise UserError(f"{stored.path}: does not fit its config: {str(error).splitlines()[0]}") from None
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
            found, wanted = list(tensor.shape), list(expected[name].shape)
            raise UserError(f"{stored.path}: {name} has shape {found}, its config asks for {wanted}")
        if not all_finite(tensor):
            raise UserError(f"{stored.path}: {name} holds NaN or infinity; fetch or train the weights again")
        state[name] = tensor.to(torch.float32 if name == "temperature" else dtype)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def read_config(stored: Stored, released_inference: bool = False) -> ModelConfig:
    """The shape of an opened checkpoint; raises UserError like :func:`load`."""
    where = stored.path if stored.path.suffix == ".gguf" else stored.path.parent / "config.json"
    config = ModelConfig.from_hub(stored.content, str(where), released_inference)
    ends = {".".join(name.split(".")[-2:]) for name in stored.types}
    biases = {option: f"{part}.bias" in ends for option, part in BIASES.items()}
    # neither says which of the family's options its backbone has
    if stored.content["model_type"] == "msa":
        return replace(config, qk_norm="q_norm.weight" in ends, **biases)
    return replace(config, **biases) if stored.path.suffix == ".gguf" else config


def open_model(path: Path | str, threads: int = 0, dtype: torch.dtype = torch.float32) -> tuple[MSAModel, Prompter]:
    """The model of a checkpoint, on this process's device, and the row builder of its tokenizer.

    Args:
        threads: CPU threads of the process; 0 leaves torch's choice.
    """
    return _open(path, threads, dtype, _prompter)


def open_reader(
    path: Path | str, threads: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[MSAModel, Prompter | ChatPrompter]:
    """Like :func:`open_model`, of a model that reads documents as text.

    One with a chat template is asked in it. Without one, it was trained on this project's wording if its tokenizer has
    the special tokens of that; if not, it is a plain language model and goes on behind the request.
    """
    return _open(path, threads, dtype, _reading_prompter)


def _open(path: Path | str, threads: int, dtype: torch.dtype, prompter_of: Callable[..., Any]) -> tuple[MSAModel, Any]:
    if threads:
        torch.set_num_threads(threads)
    stored = find(path)
    config = read_config(stored)
    try:
        prompter = prompter_of(stored, config)
    except UserError as error:
        raise UserError(f"{stored.path}: {error}") from None
    prompter.where = str(stored.path)
    return read_model(stored, dtype).to(device()), prompter


def _prompter(stored: Stored, config: ModelConfig) -> Prompter:
    rows = config.vocab_size
    asked = config.released_prompts, config.form.query_tokens
    return Prompter(find_tokenizer(stored), rows, end_tokens(stored, rows), *asked)


def _reading_prompter(stored: Stored, config: ModelConfig) -> Prompter | ChatPrompter:
    tokenizer, rows = find_tokenizer(stored), config.vocab_size
    known = all(tokenizer.token_to_id(token) is not None for token in prompts.SPECIAL_TOKENS)
    if stored.chat_template is None and known:
        return _prompter(stored, config)
    ids = {name: stored.content.get(f"{name}_id") for name in ("bos_token", "eos_token")}
    names = {name: tokenizer.id_to_token(index) or "" for name, index in ids.items() if isinstance(index, int)}
    return ChatPrompter(tokenizer, rows, end_tokens(stored, rows), stored.chat_template, {"bos_token": "", **names})


def end_tokens(stored: Stored, rows: int) -> set[int]:
    """What ends a text: ``eos_token_id`` of config.json and of generation_config.json, each a token or a list of them.

    Raises:
        UserError: something else, or a token that the model has no row for.
    """
    ends: set[int] = set()
    for name, content in (("config.json", stored.content), (GENERATION, stored.generation)):
        found = content.get("eos_token_id")
        for token in found if isinstance(found, list) else [] if found is None else [found]:
            if type(token) is not int or not 0 <= token < rows:
                where = stored.path if stored.path.suffix == ".gguf" else stored.path.parent / name
                raise UserError(f"{where}: eos_token_id is {found!r}; it must name tokens from 0 to {rows - 1}")
            ends.add(token)
    return ends


def find_tokenizer(stored: Stored) -> Tokenizer:
    """The tokenizer.json beside a checkpoint, or else the one in its GGUF file; a UserError where neither reads."""
    beside = stored.path.parent / "tokenizer.json"
    if stored.tokenizer is not None and not beside.exists():
        return stored.tokenizer()
    return load_tokenizer(beside)
