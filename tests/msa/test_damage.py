"""Damaged files of checkpoints and banks: each ends in a clear error, or in what its clean twin gives.

HYPOTHESIS_PROFILE=soak draws thousands of accidents.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from msa.checkpoints import hub, read, write
from msa.checkpoints.convert import export
from msa.generation.generate import Interleave, Limits
from msa.generation.reader import Reader
from msa.memory.bank import Bank
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa.model.config import ModelConfig
from msa.model.prompt import Prompter, guarded, load_tokenizer
from msa.model.rope import rotary_frequencies
from msa_base.errors import UserError
from msa_base.paths import SEAL
from msa_base.records import Question
from tests.damage import damaged, edited

QUESTION = Question("q", "what is alpha", "The answer is", 3)
CHECKPOINT = ("config.json", "tokenizer.json", hub.WEIGHTS, hub.GENERATION)


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, tokenizer, prompter, documents) -> Path:
    """A checkpoint, the same one sealed, a bank of two segments, and a GGUF file."""
    root = tmp_path_factory.mktemp("damage")
    write.save(model, root / "plain", eos_token_id=[9])
    (root / "plain" / hub.GENERATION).write_text('{"eos_token_id": 9}')
    tokenizer.save(str(root / "plain" / "tokenizer.json"))
    export(root / "plain", root / "sealed")
    bank = Encoder(model, prompter).build(documents, root / "bank", segment_tokens=80)
    bank.remove([documents[2].doc_id])
    _write_gguf(root / "model.gguf")
    return root


def _write_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "qwen3")
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": 16, "feed_forward_length": 8}
    for key, value in sizes.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (12, 16), "output_norm": (16,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in {
        "attn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16),
        "attn_q_norm": (8,), "attn_k_norm": (8,), "ffn_norm": (16,), "ffn_gate": (8, 16), "ffn_up": (8, 16),
        "ffn_down": (16, 8),
    }.items()}  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def accident(path: Path) -> st.SearchStrategy[bytes]:
    whole = path.read_bytes()
    return st.one_of(damaged(whole), edited(whole)) if path.suffix == ".json" else damaged(whole)


class Swapped:
    """A file with other bytes for a while."""

    def __init__(self, path: Path, content: bytes):
        self.path, self.content, self.whole = path, content, path.read_bytes()

    def __enter__(self) -> None:
        self.path.write_bytes(self.content)

    def __exit__(self, *_) -> None:
        self.path.write_bytes(self.whole)


@given(data=st.data())
@pytest.mark.parametrize("name", [*CHECKPOINT, SEAL])
def test_a_sealed_checkpoint_is_refused_or_the_same(place, model, prompter, name, data):
    path = place / "sealed" / name
    with Swapped(path, data.draw(accident(path))):
        try:
            again, words = read.open_model(place / "sealed")
        except UserError as error:
            assert str(place / "sealed") in str(error)
            return
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    assert again.config == read.load(place / "plain").config and words.ends == {9, prompter.im_end}
    assert words.tokenizer.to_str() == load_tokenizer(place / "plain").to_str()


@given(data=st.data())
@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_checkpoint_of_others_is_refused_or_answers(place, documents, name, data):
    """Without checksums a changed value may stay unseen; nothing else than an answer or a clear error comes of it."""
    path = place / "plain" / name
    with Swapped(path, data.draw(accident(path))):
        try:
            Reader(place / "plain").answer([(documents[:1], QUESTION)])
        except UserError as error:
            assert str(error)


STRETCHED = [
    {},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
    {"type": "linear", "factor": 2.0},
]


@given(data=st.data())
@pytest.mark.parametrize("stretch", STRETCHED, ids=lambda stretch: str(stretch.get("rope_type", len(stretch))))
def test_a_config_is_refused_or_gives_a_shape_and_frequencies(place, stretch, data):
    content = json.loads((place / "plain" / "config.json").read_text()) | {"max_position_embeddings": 512}
    whole = json.dumps({**content, "rope_scaling": stretch, "layer_types": ["full_attention"] * 4}).encode()
    changed = json.loads(data.draw(edited(whole)))
    try:
        config = ModelConfig.from_hub(changed, "config.json")
    except UserError as error:
        assert str(error).startswith("config.json: ")
        return
    assert config.layers <= 2048 and set(config.routed_layers) <= set(range(config.layers))
    if config.head_dim <= 64:
        found = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, torch.device("cpu"))
        assert found.shape == (config.head_dim // 2,) and bool(found.isfinite().all())


@given(data=st.data())
def test_a_gguf_file_is_refused_or_read(place, data):
    path = place / "model.gguf"
    with Swapped(path, data.draw(accident(path))):
        try:
            assert read.load(path).config.layers == 1
        except UserError as error:
            assert "model.gguf" in str(error)


def found(bank: Bank, model, prompter) -> tuple:
    """All that a bank holds and gives."""
    memory = BankMemory.plain(bank, 1, 3)
    trace = Interleave(model, prompter, Limits(), lambda _, doc_id: bank.document(doc_id)).answer([QUESTION], memory)[0]
    texts = [bank.document(doc_id) for doc_id in bank.doc_ids.tolist()]
    return bank.signature, texts, trace.text, trace.cited, trace.routed


@pytest.fixture(scope="module")
def clean(place, model, prompter) -> tuple:
    """What the undamaged bank gives."""
    return found(Bank.open(place / "bank"), model, prompter)


@given(data=st.data())
@pytest.mark.parametrize("name", ["bank.json", "segment-00000.safetensors", "segment-00001.safetensors"])
def test_a_bank_is_refused_or_the_same(place, model, prompter, clean, name, data):
    path = place / "bank" / name
    with Swapped(path, data.draw(accident(path))):
        try:
            bank = Bank.open(place / "bank")
            assert found(bank, model, prompter) == clean
        except UserError as error:
            assert name in str(error) or "segment-" in str(error)
            return


@given(data=st.data())
@pytest.mark.parametrize("name", ["segment-00000.safetensors", "segment-00001.safetensors"])
def test_a_shard_is_refused_or_the_same(place, name, data):
    """A rank opens the bank unread and verifies its own shard alone."""
    path = place / "bank" / name
    clean = [Bank.open(place / "bank").shard(rank, 2).doc_ids.tolist() for rank in range(2)]
    with Swapped(path, data.draw(accident(path))):
        for rank in range(2):
            try:
                shard = Bank.open(place / "bank", verify=False).shard(rank, 2)
                shard.verify()
            except UserError as error:
                assert name in str(error)
            else:
                assert shard.doc_ids.tolist() == clean[rank]


def test_a_tokenizer_that_panics_is_named(tmp_path, monkeypatch):
    class PanicException(BaseException):  # what a panic of the library's Rust becomes
        pass

    def panics(path: str) -> Tokenizer:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("msa.model.prompt.Tokenizer.from_file", panics)
    with pytest.raises(UserError, match="not a readable tokenizer file"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_that_fails_on_a_text_is_named(tokenizer):
    broken = json.loads(tokenizer.to_str())
    del broken["model"]["vocab"]["[UNK]"]
    with pytest.raises(UserError, match=r"cannot spell a text .* its tokenizer.json is broken, fetch it again"):
        Prompter(guarded(Tokenizer.from_str(json.dumps(broken)))).text("unheard")
