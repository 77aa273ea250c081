"""The authors' numeric fixture, transformers' own logits, and bad checkpoints."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from msa.checkpoints import read, write
from msa.checkpoints.__main__ import main
from msa.checkpoints.verify import differences
from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel
from msa_base.errors import UserError, run_command

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def verify(monkeypatch, capsys):
    """The command in this process: exit code, stdout, stderr."""

    def run(directory: Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["msa.checkpoints", "verify", str(directory)])
        with pytest.raises(SystemExit) as left:
            run_command(main)
        return left.value.code, *capsys.readouterr()

    return run


def test_the_released_models_fixture_is_reproduced(verify):
    assert verify(GOLDEN)[0] == 0
    found = differences(GOLDEN)
    assert {"doc_scores.layer2", "doc_scores.layer3", "hidden.4", "logits", "lm_loss", "aux_loss"} <= found.keys()
    assert max(found.values()) <= 1e-4


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.layers.3.self_attn.router_k_proj.0.weight", "model.layers.2.self_attn.v_proj.weight"],
)
def test_a_changed_weight_fails_the_check(tmp_path, name, verify):
    shutil.copytree(GOLDEN, tmp_path / "fixture")
    tensors = load_file(GOLDEN / "model.safetensors")
    tensors[name] = tensors[name] + 0.05 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, tmp_path / "fixture" / "model.safetensors")
    code, said, _ = verify(tmp_path / "fixture")
    assert code == 1 and "ABOVE" in said


def test_corrupt_files_are_named_with_exit_code_2(tmp_path, verify):
    shutil.copytree(GOLDEN, tmp_path / "fixture")
    path = tmp_path / "fixture" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    code, _, said = verify(tmp_path / "fixture")
    assert code == 2 and str(path) in said and len(said.splitlines()) == 1
    assert verify(tmp_path / "nowhere")[0] == 2


def test_both_spellings_of_top_k_are_read():
    content = json.loads((GOLDEN / "config.json").read_text())
    content["msa_config"]["doc_top_k"] = content["msa_config"].pop("top_k_docs")
    assert ModelConfig.from_hub(content, "here").top_k_documents == 3


def test_save_and_load_give_the_same_model(tmp_path, model):
    write.save(model, tmp_path)
    again = read.load(tmp_path)
    assert again.config == ModelConfig.from_hub(model.config.to_hub(), "here")
    ids = torch.arange(12).view(1, 12)
    assert torch.equal(again(ids, torch.arange(12))[0], model(ids, torch.arange(12))[0])


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_logits_equal_those_of_transformers(tmp_path, family):
    import transformers

    torch.manual_seed(0)
    extra = {"head_dim": 16} if family != "Qwen2" else {}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=family == "Qwen3",
        **extra,
    )
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours: MSAModel = read.load(tmp_path)
    ids = torch.randint(97, (2, 33))
    with torch.no_grad():
        hidden, _ = ours(ids, torch.arange(33))
        assert torch.allclose(ours.logits(hidden), theirs(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "gpt2"}, {"rope_scaling": {"type": "yarn"}}, {"hidden_act": "gelu"}, {"num_hidden_layers": None}],
)
def test_what_the_decoder_lacks_is_refused(change):
    content = {**json.loads((GOLDEN / "config.json").read_text()), **change}
    if change.get("num_hidden_layers", 0) is None:
        del content["num_hidden_layers"]
    with pytest.raises(UserError, match=next(iter(change))):
        ModelConfig.from_hub(content, "config.json")
