"""Random weights in the released form: sharded, opened, answering, adopted as fetched ones are, and exported again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from msa.checkpoints import pretrained, random_weights, read
from msa.generation.reader import Reader
from msa_base.errors import UserError
from msa_base.paths import DIRECTORY, Paths
from msa_base.records import Document, Question
from msa_base.specs import ModelSpec
from tasks.stages.vocabulary import byte_tokenizer

SHAPE = {
    "hidden_size": 512, "intermediate_size": 64, "layers": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 16,
    "rope_theta": 1e6,
}  # fmt: skip
ROUTER = {"routed_layers": [1], "pool_tokens": 8, "top_k_documents": 4, "aux_temperature": 0.1}


def make(place: Path, monkeypatch: pytest.MonkeyPatch, **params: object) -> Path:
    """The directory of a model of this kind, made by its command."""
    configs = place / "configs"
    (configs / "profiles").mkdir(parents=True, exist_ok=True)
    for name in ("contexts", "tasks", "systems", "models"):
        (configs / f"{name}.yaml").write_text((DIRECTORY / f"{name}.yaml").read_text())
    entry = {"kind": "msa.checkpoints.random_weights", "params": {"shape": SHAPE, "shard_mb": 1, **params}}
    with open(configs / "models.yaml", "a") as models:
        models.write(f"drawn: {json.dumps(entry)}\n")
    profile = {
        "title": "t", "tokenizer": {"kind": "bytes"}, "contexts": ["16K"], "tasks": {"scaling_facts": 1}, "seeds": [0],
        "systems": ["closed_book"], "models": [{"reader": "drawn"}], "samples": {}, "latency": {"task": "scaling_facts",
        "questions": 1},
    }  # fmt: skip
    (configs / "profiles" / "drawn.yaml").write_text(json.dumps(profile))
    paths = Paths.of("drawn", place / "results")
    paths.tokenizer.parent.mkdir(parents=True, exist_ok=True)
    byte_tokenizer([f"the {n} birds of page {n * n}" for n in range(99)], 600).save(str(paths.tokenizer))
    command = ["random_weights", "--profile", "drawn", "--model", "reader", "--configs", str(configs)]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(place / "results")])
    random_weights.main()
    return paths.model("reader")


def test_a_checkpoint_in_shards_is_opened_answers_and_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, monkeypatch, router=ROUTER)
    assert len(list(made.glob("model-*.safetensors"))) > 1
    config = json.loads((made / "config.json").read_text())
    assert config["model_type"] == "msa" and config["torch_dtype"] == "bfloat16"
    (answer,) = Reader(made, 1).answer([([Document(3, "page 81", 4)], Question("q", "What page?", "", 4))])
    assert answer.output_tokens == 4
    assert "<|im_start|>assistant" in Reader(made, 1).prompter.tokenizer.decode(
        answer.prompt, skip_special_tokens=False
    )

    shape = {**SHAPE, "vocab_size": 600, "norm_eps": 1e-6, "qk_norm": True, "tied_head": True}
    spec = ModelSpec("pretrained", params={"hub": "a/b", "revision": "0" * 40, "path": str(made), "shape": shape})
    adopted = tmp_path / "adopted"
    adopted.mkdir()
    assert pretrained.missing("m", spec) is None
    pretrained.adopt("m", spec, adopted)
    ours, theirs = read.load(made).state_dict(), read.load(adopted).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_seed_alone_decides_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = (read.load(make(tmp_path / name, monkeypatch, seed=3)).state_dict() for name in "ab")
    other = read.load(make(tmp_path / "c", monkeypatch, seed=4)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_router_on_a_layer_that_is_not_there_is_refused() -> None:
    spec = ModelSpec(
        "msa.checkpoints.random_weights", params={"shape": SHAPE, "router": {**ROUTER, "routed_layers": [2]}}
    )
    with pytest.raises(UserError, match="routed_layers"):
        random_weights.check_model("m", {"m": spec}, "models.yaml: m: params")
