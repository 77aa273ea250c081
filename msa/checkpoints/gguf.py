"""GGUF files of the Llama, Qwen2 and Qwen3 families: metadata as a config.json, tensors dequantised one at a time.

Names and layout are llama.cpp's (docs/gguf.md of the ggml repository, ``gguf.constants``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from msa.checkpoints.hub import TYPES, Stored
from msa.checkpoints.vocabulary import read_tokenizer
from msa_base.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from tokenizers import Tokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message: generation ends at each
ROPE_FACTORS = "rope_freqs.weight"
# what the library raises over bytes that are no GGUF file, or not whole
BROKEN = (ValueError, LookupError, ArithmeticError, OSError, MemoryError, TypeError, AttributeError, RecursionError)


def open_file(path: Path) -> Stored:
    """A GGUF file; a UserError where it is missing, corrupt, one of several splits, or of an unknown architecture."""
    with _reading(path):
        reader = _reader(path)
        metadata = _Metadata(reader, path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        content = _config(metadata, tensors, path)
        ends = [metadata.any(f"tokenizer.ggml.{key}_token_id") for key in ENDS]
        generation = {"eos_token_id": [token for token in dict.fromkeys(ends) if token is not None]}
        template = metadata.any("tokenizer.chat_template")
    names = {_hub_name(name): tensor for name, tensor in tensors.items() if name != ROPE_FACTORS}
    types = {name: TYPES.get(tensor.tensor_type.name, torch.float32) for name, tensor in names.items()}
    heads = {"q_proj": content["num_attention_heads"], "k_proj": content["num_key_value_heads"]}

    def read() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in names.items():
            with _reading(path):
                value = _dequantised(tensor, path)
            projection = name.split(".")[-2]
            if content["model_type"] == "llama" and projection in heads and len(value) % (2 * heads[projection]) == 0:
                value = _halves(value, heads[projection])
            yield name, value

    def tokenizer() -> Tokenizer:
        with _reading(path):
            return read_tokenizer(lambda key: metadata.any(f"tokenizer.ggml.{key}"), path)

    return Stored(path, content, types, read, generation, template, tokenizer)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Make a missing or broken file a UserError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except BROKEN as error:
        raise UserError(f"{path}: not a readable GGUF file, or cut short ({error}); fetch it again") from None


def _reader(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading GGUF files needs two packages more: pip install gguf transformers") from None

    class WholeReader(GGUFReader):
        """The library's reader takes what lies behind the end of a file for empty, and counts there for hours."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
            if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, override_order)

    reader = WholeReader(path)
    if reader.byte_order != "I":
        raise UserError(f"{path}: written for the other byte order, which is not supported")
    return reader


class _Metadata:
    """Values of one architecture by llama.cpp's key."""

    def __init__(self, reader: GGUFReader, path: Path):
        self.reader, self.path = reader, path
        self.architecture = self.any("general.architecture")
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UserError(f"{path}: general.architecture {self.architecture!r} is not supported (known: {known})")

    def any(self, key: str) -> Any:
        """A value, None where there is none; single-precision numbers as they are spelled."""
        field = self.reader.get_field(key)
        value = None if field is None else field.contents()
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def get(self, key: str, default: Any = None) -> Any:
        value = self.any(f"{self.architecture}.{key}")
        return default if value is None else value

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.path}: metadata key '{self.architecture}.{key}' is missing")
        return value


def _config(metadata: _Metadata, tensors: dict[str, ReaderTensor], path: Path) -> dict[str, Any]:
    """The config.json of a file's metadata."""
    if (metadata.any("split.count") or 1) > 1:
        raise UserError(f"{path}: one of {metadata.any('split.count')} splits; join them with llama-gguf-split --merge")
    if metadata.get("expert_count"):
        raise UserError(f"{path}: a mixture of experts ({metadata.get('expert_count')}) is not supported")
    if "token_embd.weight" not in tensors:
        raise UserError(f"{path}: tensor token_embd.weight is missing")
    heads, hidden = metadata.need("attention.head_count"), metadata.need("embedding_length")
    kv_heads = metadata.get("attention.head_count_kv", heads)
    for key, value in (("head_count", heads), ("head_count_kv", kv_heads)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{path}: attention.{key} is {value!r}; it must be one number above 0 for all layers")
    head_dim = metadata.get("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.get(key, head_dim) != head_dim:
            raise UserError(f"{path}: {key} {metadata.get(key)} is not supported where head_dim is {head_dim}")
    biased = {name.split(".")[2] for name in tensors if name.startswith("blk.0.") and name.endswith(".bias")}
    return {
        "model_type": metadata.architecture,
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "hidden_size": hidden,
        "intermediate_size": metadata.need("feed_forward_length"),
        "num_hidden_layers": metadata.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": metadata.need("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.get("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(metadata, tensors, path),
        "max_position_embeddings": metadata.get("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": bool(biased & {"attn_q", "attn_output"}),
        "mlp_bias": bool(biased & {"ffn_gate", "ffn_up", "ffn_down"}),
        "bos_token_id": metadata.any("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.any("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.any("tokenizer.ggml.padding_token_id"),
    }


def _rope_scaling(metadata: _Metadata, tensors: dict[str, ReaderTensor], path: Path) -> dict[str, Any] | None:
    """RoPE scaling in Hugging Face's terms; Llama 3.1's stands in a tensor of divisors, one a frequency."""
    kind = metadata.get("rope.scaling.type", "none")
    factor = metadata.get("rope.scaling.factor", metadata.get("rope.scale_linear"))
    if kind == "none" and factor not in (None, 0, 1):
        kind = "linear"  # files older than the key
    if ROPE_FACTORS in tensors:
        if kind != "none":
            raise UserError(f"{path}: rope.scaling.type {kind!r} together with {ROPE_FACTORS} is not supported")
        divisors = _dequantised(tensors[ROPE_FACTORS], path).tolist()
        return {
            "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0,
            "original_max_position_embeddings": metadata.need("context_length"),
            "short_factor": divisors, "long_factor": divisors,
        }  # fmt: skip
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    if kind != "yarn":
        raise UserError(f"{path}: rope.scaling.type {kind!r} is not supported (known: none, linear, yarn)")
    if any(metadata.get(f"rope.scaling.{key}", 1.0) != 1.0 for key in ("attn_factor", "yarn_attn_factor")):
        raise UserError(f"{path}: a rope.scaling.attn_factor other than 1 is not supported")
    return {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": metadata.get("rope.scaling.original_context_length"),
        "beta_fast": metadata.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": metadata.get("rope.scaling.yarn_beta_slow"),
    }


def _hub_name(name: str) -> str:
    """Hugging Face's name of a tensor; one that is not known keeps its own."""
    parts = name.split(".")
    if len(parts) == 2 and parts[0] in TOP:
        return f"{TOP[parts[0]]}.{parts[1]}"
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER:
        return f"model.layers.{parts[1]}.{LAYER[parts[2]]}.{parts[3]}"
    return name


def _dequantised(tensor: ReaderTensor, path: Path) -> Tensor:
    """A tensor in float32, or as it is stored where that is a plain 16-bit type."""
    from gguf import dequantize

    # read, not mapped: pages of the map would count beside the copy
    raw = np.fromfile(path, np.uint8, tensor.n_bytes, offset=tensor.data_offset)
    raw = raw.view(tensor.data.dtype).reshape(tensor.data.shape)
    try:
        value = raw if tensor.tensor_type.name == "F16" else dequantize(raw, tensor.tensor_type)
    except NotImplementedError:
        raise UserError(f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which is not supported") from None
    return torch.from_numpy(np.ascontiguousarray(value))


def _halves(value: Tensor, heads: int) -> Tensor:
    """Rows of a projection [heads * D, ...] from neighbouring pairs (llama.cpp's RoPE) to halves (Hugging Face's)."""
    return value.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()
