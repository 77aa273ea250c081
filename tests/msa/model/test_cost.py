"""The cost model: what it says equals what models and banks are, and what was published."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.msa_system import estimate_index, index_parts
from msa.memory.encode import Encoder
from msa.model import cost as plan
from msa.model.config import ModelConfig
from msa.model.cost import Documents, Storage
from msa.model.decoder import MSAModel
from msa.ops import keys
from msa_base.errors import UserError
from msa_base.load import load
from msa_base.specs import IndexSpec, ModelSpec
from tests.small_model import small_config

PAPER = ModelConfig(
    vocab_size=151936, hidden_size=2560, intermediate_size=9728, layers=36, query_heads=32, kv_heads=8, head_dim=128,
    routed_layers=tuple(range(18, 36)), pool_tokens=64,
)  # fmt: skip
SMALL = small_config(50, pool_tokens=4)


def shaped(**changes) -> ModelConfig:
    return ModelConfig(**{**vars(SMALL), **changes})


def lengths_of(*lengths: int) -> Documents:
    return Documents(np.array(lengths, dtype=np.int64), 0)


def test_at_100m_tokens_the_paper_shape_has_the_formulas_bytes() -> None:
    bank = plan.bank_bytes(PAPER, Documents.even(100_000_000, 64), Storage("bfloat16", "bfloat16"))
    assert (bank["routing keys"], bank["content"]) == (57_600_000_000, 115_200_000_000)


def test_known_models_have_their_published_parameters() -> None:
    models = load("paper").models
    counts = {
        name: sum(plan.parameters(plan.planned_config(name, models, 0)).values())
        for name in ("qwen3_4b_instruct", "smollm2_135m")
    }
    assert counts == {"qwen3_4b_instruct": 4_022_468_096, "smollm2_135m": 134_515_008}


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        shaped(routed_layers=(1, 3)),
        shaped(tied_head=False, qk_norm=False, qkv_bias=True),
        shaped(qk_norm=False, qkv_bias=True, output_bias=True, mlp_bias=True, query_heads=6, kv_heads=1),
    ],
)
def test_parameters_are_those_of_the_model(config: ModelConfig) -> None:
    assert sum(plan.parameters(config).values()) == sum(p.numel() for p in MSAModel(config).parameters())


@pytest.mark.parametrize(
    "stored", [("float32", "float32"), ("bfloat16", "bfloat16"), ("float8", "bfloat16"), ("int8", "float32")]
)
def test_bank_bytes_are_those_of_an_encoded_bank_with_odd_tails(tmp_path, model, prompter, documents, stored) -> None:
    lengths = [len(tokens) for tokens in prompter.documents(documents)]
    assert any(length % model.config.pool_tokens for length in lengths)
    bank = Encoder(model, prompter, *stored).build(documents, tmp_path / "bank", segment_tokens=40)
    planned = plan.bank_bytes(model.config, lengths_of(*lengths), Storage(*stored), len(bank.segments))
    assert len(bank.segments) > 1
    assert sum(planned.values()) == bank.nbytes
    layers = [layer for segment in bank.segments for layer in segment.layers]
    assert planned["routing keys"] == sum(layer.routing.nbytes for layer in layers)
    assert planned["content"] == sum(layer.content.nbytes for layer in layers)


def test_what_an_index_takes_on_disk_is_planned_text_and_segments_counted(tmp_path, model, prompter, documents) -> None:
    many = [replace(item, doc_id=item.doc_id + 1000 * copy) for copy in range(120) for item in documents]
    lengths = [len(tokens) for tokens in prompter.documents(many)]
    Encoder(model, prompter, "bfloat16", "bfloat16").build(many, tmp_path, segment_tokens=4000)
    measured = sum(path.stat().st_size for path in tmp_path.iterdir())
    params = {"key_dtype": "bfloat16", "content_dtype": "bfloat16", "segment_tokens": 4000}
    held = Documents(np.array(lengths), sum(len(item.text.encode()) for item in many))
    made = estimate_index(IndexSpec("msa_system", params=params), model.config, held, "float32")
    # what is not planned are the headers of files
    assert 0.96 * measured < sum(part.bytes for part in made.parts if part.tier == "disk") < measured
    assert {part.name: part.bytes for part in made.parts}["routing keys"] == index_parts(tmp_path)["routing keys"] > 0


def counted(work) -> int:
    """FLOPs of a call's matrix products, as torch counts them, without attention's."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))


@pytest.mark.parametrize("routed", [(2, 3), (1,), (0, 2)])
def test_encoding_takes_the_flops_that_torch_counts(routed: tuple[int, ...]) -> None:
    config = shaped(routed_layers=routed)
    lengths = torch.tensor([10, 10, 10])  # two chunks and a tail
    ids = torch.ones(3, 10, dtype=torch.long)
    attention = routed[-1] * plan.attention_flops(config, 30, 5.5)
    assert plan.encode_cost(config, lengths_of(10, 10, 10)).flops - attention == counted(
        lambda: MSAModel(config).encode(ids, lengths)
    )


def test_reading_takes_the_flops_that_torch_counts() -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    model = MSAModel(SMALL)
    expected = 2 * (plan.read_cost(SMALL, 7).flops - SMALL.layers * plan.attention_flops(SMALL, 7, 4))
    assert counted(lambda: model(ids, torch.arange(7))) == expected
    head = plan.read_cost(SMALL, 7, logits=1).flops - plan.read_cost(SMALL, 7).flops
    assert counted(lambda: model.logits(torch.ones(1, 32))) == head


def test_encoding_100m_tokens_takes_what_the_performance_notes_say() -> None:
    assert plan.encode_cost(PAPER, Documents.even(100_000_000, 512)).flops == pytest.approx(7.2e17, rel=0.02)


def test_routing_reads_every_key_once_for_a_batch() -> None:
    one = plan.route_cost(PAPER, 15_625, 32, "bfloat16")
    assert one.read_bytes == 576_000_000
    assert one.flops == 18 * 2 * 32 * 15_625 * 1024
    eight = plan.route_cost(PAPER, 15_625, 32, "float8", batch=8)
    assert (eight.read_bytes, eight.flops) == (36_000_000, one.flops)
    assert plan.route_cost(PAPER, 15_625, 32, "int8").read_bytes == 18 * 15_625 * 1028


def test_attention_of_documents_grows_with_the_square_of_each_length() -> None:
    one, two = (plan.encode_cost(PAPER, lengths_of(*lengths)).flops for lengths in ((128,), (64, 64)))
    assert one - two == 35 * (plan.attention_flops(PAPER, 128, 64.5) - plan.attention_flops(PAPER, 128, 32.5))


@pytest.mark.parametrize(("lengths", "chunks"), [([1, 63, 64, 65, 128], 7), ([], 0), ([1], 1)])
def test_a_tail_is_a_chunk(lengths: list[int], chunks: int) -> None:
    assert lengths_of(*lengths).chunks(64) == chunks


def test_even_documents_end_with_what_is_left() -> None:
    assert Documents.even(250, 96).lengths.tolist() == [96, 96, 58]
    assert Documents.even(192, 96).lengths.tolist() == [96, 96] and Documents.even(192, 96).text_bytes == 768
    assert len(Documents.even(0, 96)) == Documents.even(-5, 96).tokens == 0


def test_precisions_are_those_of_the_engine() -> None:
    assert {
        name: torch.empty(0, dtype=dtype).element_size() for name, dtype in keys.DTYPES.items()
    } == plan.ELEMENT_BYTES


def test_a_shape_comes_from_an_entry_or_its_parent() -> None:
    shape = {
        name: value
        for name, value in vars(SMALL).items()
        if name in ("hidden_size", "intermediate_size", "layers", "query_heads", "kv_heads", "head_dim")
    }
    router = {"routed_layers": [2, 3], "pool_tokens": 8, "top_k_documents": 5, "aux_temperature": 0.1}
    models = {
        "base": ModelSpec("msa.training.train", params={"shape": {**shape, "logit_gain": 0.15}}),
        "msa": ModelSpec("msa.training.train", after="base", params={"router": router}),
        "reader": ModelSpec("msa.training.train", after="msa"),
        "foreign": ModelSpec("mypackage.train", params={"size": 3}),
    }
    found = plan.planned_config("reader", models, 77)
    assert (found.vocab_size, found.routed_layers, found.pool_tokens, found.hidden_size) == (77, (2, 3), 8, 32)
    assert plan.planned_config("base", models, 77).routed_layers == ()
    assert plan.planned_config("foreign", models, 77) is None
    models["base"].params["shape"].pop("layers")
    with pytest.raises(UserError, match=r"models.yaml: base: params: .*'layers'"):
        plan.planned_config("msa", models, 77)
