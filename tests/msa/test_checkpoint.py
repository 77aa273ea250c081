"""The authors' numeric fixture, transformers' own logits, and bad checkpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from msa import checkpoint
from msa.config import ModelConfig
from msa.model import MSAModel

GOLDEN = Path(__file__).parent / "golden"


def verify(directory: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "msa.checkpoint", "verify", str(directory)], capture_output=True, text=True)


def test_the_released_models_fixture_is_reproduced():
    done = verify(GOLDEN)
    assert done.returncode == 0, done.stdout + done.stderr
    found = checkpoint.differences(GOLDEN)
    assert {"doc_scores.layer2", "doc_scores.layer3", "hidden.4", "logits", "lm_loss", "aux_loss"} <= found.keys()
    assert max(found.values()) <= 1e-4


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.3.self_attn.router_k_proj.0.weight", "model.layers.2.self_attn.v_proj.weight"]
)
def test_a_changed_weight_fails_the_check(tmp_path, name):
    shutil.copytree(GOLDEN, tmp_path / "fixture")
    tensors = load_file(GOLDEN / "model.safetensors")
    tensors[name] = tensors[name] + 0.05 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, tmp_path / "fixture" / "model.safetensors")
    done = verify(tmp_path / "fixture")
    assert done.returncode == 1
    assert "ABOVE" in done.stdout


def test_corrupt_files_are_named_with_exit_code_2(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "fixture")
    path = tmp_path / "fixture" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    done = verify(tmp_path / "fixture")
    assert done.returncode == 2
    assert str(path) in done.stderr and len(done.stderr.splitlines()) == 1
    assert verify(tmp_path / "nowhere").returncode == 2


def test_both_spellings_of_top_k_are_read():
    content = json.loads((GOLDEN / "config.json").read_text())
    content["msa_config"]["doc_top_k"] = content["msa_config"].pop("top_k_docs")
    assert ModelConfig.from_hub(content, "here").top_k_documents == 3


def test_save_and_load_give_the_same_model(tmp_path, model):
    checkpoint.save(model, tmp_path)
    again = checkpoint.load(tmp_path)
    assert again.config == ModelConfig.from_hub(model.config.to_hub(), "here")
    ids = torch.arange(12).view(1, 12)
    assert torch.equal(again(ids, torch.arange(12))[0], model(ids, torch.arange(12))[0])


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_logits_equal_those_of_transformers(tmp_path, family):
    import transformers

    torch.manual_seed(0)
    extra = {"head_dim": 16} if family != "Qwen2" else {}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=family == "Qwen3", **extra,
    )
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours: MSAModel = checkpoint.load(tmp_path)
    ids = torch.randint(97, (2, 33))
    with torch.no_grad():
        hidden, _ = ours(ids, torch.arange(33))
        assert torch.allclose(ours.logits(hidden), theirs(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    "change", [{"model_type": "gpt2"}, {"rope_scaling": {"type": "yarn"}}, {"hidden_act": "gelu"}, {"num_hidden_layers": None}]
)
def test_what_the_decoder_lacks_is_refused(change):
    content = {**json.loads((GOLDEN / "config.json").read_text()), **change}
    if change.get("num_hidden_layers", 0) is None:
        del content["num_hidden_layers"]
    with pytest.raises(UserError, match=next(iter(change))):
        ModelConfig.from_hub(content, "config.json")
