"""Backbones in Hugging Face directories: logits equal transformers' own, and what is wrong with a directory is
named.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from msa.checkpoints import read, write
from msa.model.config import ModelConfig
from msa.model.decoder import Cache, MSAModel
from msa.model.rope import rotary_angles
from msa.model.rope_scaling import RopeScaling
from msa_base.errors import UserError

SHAPE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}  # fmt: skip
# family, options, rope: what differs between checkpoints of each family
KINDS = {
    "llama": ("Llama", {}, {}),
    "llama-heads": (
        "Llama",
        {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "hidden_size": 66},
        {},
    ),
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
    parameters = {"rope_theta": 5000.0, "rope_type": "default", **rope}
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, "rope_parameters": parameters, **options})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
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
    ours = read.load(tmp_path)
    ids = torch.randint(97, (2, 101), generator=torch.Generator().manual_seed(0))  # past the original length
    expected = theirs(ids).logits
    assert expected.std() > 0.1
    assert torch.allclose(ours.logits(ours(ids, torch.arange(101))[0]), expected, atol=1e-4)
    cache, found = Cache(), []
    for first, last in ((0, 33), (33, 34), (34, 99), (99, 100), (100, 101)):
        found.append(ours(ids[:, first:last], torch.arange(first, last), cache=cache)[0])
    assert torch.allclose(ours.logits(torch.cat(found, 1)), expected, atol=1e-4)


@pytest.mark.parametrize("rope", [
    {}, {"rope_type": "linear", "factor": 2.5}, LLAMA3, {**LLAMA3, "original_max_position_embeddings": 8192}, YARN,
    {**YARN, "attention_factor": 1.5}, {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1}, {**YARN, "factor": 1.0},
    {**YARN, "beta_fast": 64.0, "beta_slow": 2.0, "truncate": False}, {**YARN, "original_max_position_embeddings": 3},
    {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 16, "short_factor": [1.5] * 32,
    "long_factor": [1.5] * 32},
])  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True])
def test_rotary_angles_are_those_of_transformers(rope, legacy):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    common = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 131072}
    parameters = {"rope_theta": 500000.0, "rope_type": "default", **rope}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**common, rope_parameters=parameters))
    content = {**common, "rope_theta": 500000.0}
    if legacy:
        content["rope_scaling"] = {("type" if key == "rope_type" else key): value for key, value in rope.items()}
    else:
        content["rope_parameters"] = parameters
    scaling = RopeScaling.from_hub(content, "here", 64)
    assert scaling is None or RopeScaling.from_hub({"rope_scaling": scaling.to_hub()}, "here", 64) == scaling
    positions = torch.tensor([[0, 1, 7, 129, 8191, 131071]])
    for mine, other in zip(
        rotary_angles(positions, 64, 500000.0, scaling), theirs(torch.zeros(1), positions), strict=True
    ):
        assert torch.allclose(mine, other[..., :32], atol=1e-6)


def sharded(directory):
    """A sharded Llama directory, its index and the names of its shards."""
    build("llama").save_pretrained(directory, max_shard_size="60KB")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return index, sorted(set(index["weight_map"].values()))


def test_a_missing_shard_is_named(tmp_path):
    _, shards = sharded(tmp_path)
    (tmp_path / shards[1]).unlink()
    with pytest.raises(UserError, match=f"index.json.*{shards[1]}.*1 of {len(shards)}"):
        read.load(tmp_path)


def test_an_index_that_lacks_a_tensor_is_refused(tmp_path):
    index, _ = sharded(tmp_path)
    shard = index["weight_map"].pop("model.norm.weight")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"{shard}: .*not in the index .*model.norm.weight"):
        read.load(tmp_path)
    tensors = load_file(tmp_path / shard)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / shard)
    with pytest.raises(UserError, match=r"index.json: .*missing .*model.norm.weight"):
        read.load(tmp_path)


def test_a_shard_that_lacks_what_the_index_promises_is_refused(tmp_path):
    index, shards = sharded(tmp_path)
    name = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    index["weight_map"][name] = shards[1]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"{shards[0]}|{shards[1]}"):
        read.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {"a": 3}}',
    ],
)
def test_a_senseless_index_is_named(tmp_path, content):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model.safetensors.index.json"):
        read.load(tmp_path)


def test_a_truncated_shard_is_named(tmp_path):
    _, shards = sharded(tmp_path)
    for size in (0, 5, 2000):
        (tmp_path / shards[-1]).write_bytes((tmp_path / shards[-1]).read_bytes()[:size])
        with pytest.raises(UserError, match=f"{shards[-1]}: not a readable"):
            read.load(tmp_path)


def test_directories_without_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such"):
        read.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"model.safetensors: no such file"):
        read.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickled"):
        read.load(tmp_path)
    build("llama").save_pretrained(tmp_path / "one")
    with pytest.raises(UserError, match=r"name a .gguf file, or the directory"):
        read.load(tmp_path / "one" / "model.safetensors")
    (tmp_path / "one" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: no such file"):
        read.load(tmp_path / "one")


def test_tensors_that_do_not_fit_are_named(tmp_path):
    build("qwen2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for change, said in (
        ({"model.norm.weight": torch.ones(65)}, r"model.norm.weight has shape \[65\]"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int8)}, "model.norm.weight is of type I8"),
        ({"model.layers.3.self_attn.q_proj.weight": torch.ones(64, 64)}, "unknown .*layers.3"),
        ({"model.layers.0.self_attn.q_proj.bias": None}, "missing .*q_proj.bias"),
        ({"lm_head.weight": None}, "missing .*lm_head"),
    ):
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=said):
            read.load(tmp_path)
    save_file(
        {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, tmp_path / "model.safetensors"
    )
    assert not read.load(tmp_path).config.tied_head  # a buffer that old files have changes nothing


@pytest.mark.parametrize(("change", "said"), [
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ({"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one RoPE"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary"),
    ({"rope_scaling": {"type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
    "short_factor equals"),
    ({"rope_scaling": {"type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]}}, "8 numbers"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"), ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": 66}, "head_dim"),
    ({"num_key_value_heads": 3}, "multiple of KV heads"), ({"head_dim": 15}, "even"),
    ({"rms_norm_eps": -1}, "rms_norm_eps"),
    ({"rope_theta": "x"}, "rope_theta"), ({"vocab_size": None}, "vocab_size"), ({"model_type": "qwen2_vl"}, "qwen2_vl"),
])  # fmt: skip
def test_what_the_decoder_lacks_is_refused(change, said):
    with pytest.raises(UserError, match=f"config.json: .*{said}"):
        ModelConfig.from_hub({"model_type": "llama", **SHAPE, **change}, "config.json")


def test_silent_keys_mean_what_they_mean_to_transformers():
    import transformers

    for family in ("Llama", "Qwen2", "Qwen3"):
        content = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"} | {
            "num_attention_heads": 32,
            "hidden_size": 128,
        }
        theirs = getattr(transformers, f"{family}Config")(**content)
        ours = ModelConfig.from_hub({"model_type": family.lower(), **content}, "here")
        assert ours.kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or 4)
        assert (ours.tied_head, ours.rope_theta, ours.norm_eps) == (False, 10000.0, 1e-6)
    ignored = {
        "pretraining_tp": 1,
        "use_cache": False,
        "attention_dropout": 0.1,
        "sliding_window": 4096,
        "use_sliding_window": False,
    }
    assert ModelConfig.from_hub({"model_type": "qwen2", **SHAPE, **ignored}, "here").layers == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_survives_the_hub(tmp_path, kind):
    build(kind).config.save_pretrained(tmp_path)
    config = ModelConfig.from_hub(json.loads((tmp_path / "config.json").read_text()), "here")
    assert ModelConfig.from_hub(config.to_hub(), "there") == config
    assert config.family == kind.split("-")[0].removesuffix("3" if kind == "llama3" else "")


@torch.no_grad()
def test_a_bfloat16_model_runs_and_stays_near(tmp_path, model, prompter, documents):
    from msa.generation.decode import Session
    from msa.memory.encode import Encoder
    from msa.memory.routed import BankMemory

    write.save(model, tmp_path, torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    narrow = read.load(tmp_path, torch.bfloat16)
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    wide = read.load(tmp_path)
    logits = []
    for each in (narrow, wide):
        bank = Encoder(each, prompter).bank(documents)
        memory = BankMemory(bank, None, torch.zeros(1, 0, dtype=torch.bool), [[]], len(documents))
        session = Session(each, [prompter.opening("what is alpha")], prompter.pad, len(prompter.head), memory)
        session.feed([[7]])
        logits.append(session.logits.float())
    assert torch.nn.functional.cosine_similarity(*logits).item() > 0.99


def test_loading_holds_about_one_copy(tmp_path):
    """Weights of 160 MB in shards, loaded in a process of its own."""
    config = ModelConfig(2000, 512, 6000, 4, 8, 8, 64, tied_head=False)
    write.save(MSAModel(config), tmp_path, shard_bytes=5 * 10**7)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    script = (
        "import resource, sys; from msa.checkpoints import read, write; import msa.checkpoints.gguf, tokenizers\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = read.load(sys.argv[1])\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert size > 1.5e8 and int(done.stdout) < 1.2 * size
