"""Backbones in Hugging Face directories: logits equal transformers' own, and what is wrong with a directory is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from msa import checkpoint
from msa.config import ModelConfig
from msa.model import Cache
from msa.rope import RopeScaling, rotary_angles

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 48,
}  # fmt: skip
# family, options, rope: what differs between checkpoints of each family
KINDS = {
    "llama": ("Llama", {}, {}),
    "llama-heads": ("Llama", {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "hidden_size": 66}, {}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, {"rope_type": "linear", "factor": 3.0}),
    "llama3": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}, LLAMA3),
    "qwen2": ("Qwen2", {"num_key_value_heads": 4}, {}),
    "qwen2-yarn": ("Qwen2", {"tie_word_embeddings": True}, YARN),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}, {}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 16, "attention_bias": True}, {**YARN, "beta_fast": 16.0, "truncate": False}),
}


def build(kind: str):
    """A random model of transformers, its weights and biases large enough to matter."""
    import transformers

    family, options, rope = KINDS[kind]
    shape = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default", **rope},
    }  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**{**shape, **options})).eval()
    torch.manual_seed(len(kind))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_equal_those_of_transformers(tmp_path, kind, sharded):
    theirs = build(kind)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    ours = checkpoint.load(tmp_path)
    ids = torch.randint(97, (2, 101), generator=torch.Generator().manual_seed(0))  # past the original length
    expected = theirs(ids).logits
    assert expected.std() > 0.1
    assert torch.allclose(ours.logits(ours(ids, torch.arange(101))[0]), expected, atol=1e-4)
    cache, found = Cache(), []
    for first, last in ((0, 33), (33, 34), (34, 99), (99, 100), (100, 101)):
        found.append(ours(ids[:, first:last], torch.arange(first, last), cache=cache)[0])
    assert torch.allclose(ours.logits(torch.cat(found, 1)), expected, atol=1e-4)


@pytest.mark.parametrize("rope", [
    {"rope_type": "linear", "factor": 2.5}, LLAMA3, {**LLAMA3, "original_max_position_embeddings": 8192}, YARN,
    {**YARN, "attention_factor": 1.5}, {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1}, {**YARN, "factor": 1.0},
    {**YARN, "beta_fast": 64.0, "beta_slow": 2.0, "truncate": False}, {**YARN, "original_max_position_embeddings": 3},
    {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 16, "short_factor": [1.5] * 32, "long_factor": [1.5] * 32},
])  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True])
def test_rotary_angles_are_those_of_transformers(rope, legacy):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    common = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 131072}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**common, rope_parameters={"rope_theta": 500000.0, **rope}))
    content = {**common, "rope_theta": 500000.0}
    if legacy:
        content["rope_scaling"] = {("type" if key == "rope_type" else key): value for key, value in rope.items()}
    else:
        content["rope_parameters"] = {"rope_theta": 500000.0, **rope}
    scaling = RopeScaling.from_hub(content, "here", 64)
    assert RopeScaling.from_hub({"rope_scaling": scaling.to_hub()}, "here", 64) == scaling
    positions = torch.tensor([[0, 1, 7, 129, 8191, 131071]])
    for mine, other in zip(rotary_angles(positions, 64, 500000.0, scaling), theirs(torch.zeros(1), positions), strict=True):
        assert torch.allclose(mine, other[..., :32], atol=1e-6)
