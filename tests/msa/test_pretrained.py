"""Pretrained weights: what is missing is said with the command that fetches it; what is there becomes a model."""

from __future__ import annotations

import pytest

from configs.errors import UserError
from configs.load import ModelSpec
from msa import pretrained

SHAPE = {"vocab_size": 8}


def entry(path, revision="abc") -> ModelSpec:
    params = {"hub": "somebody/something", "path": str(path), "shape": SHAPE, "revision": revision}
    return ModelSpec("pretrained", params={key: value for key, value in params.items() if value})


def test_missing_weights_come_with_the_command_that_fetches_them(tmp_path) -> None:
    reason = pretrained.missing("reader", entry(tmp_path / "w"))
    assert f"`hf download somebody/something --revision abc --local-dir {tmp_path / 'w'}`" in reason
    assert "(no *.safetensors, tokenizer.json, config.json)" in reason
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text("{}")
    assert "(no *.safetensors, tokenizer.json)" in pretrained.missing("reader", entry(tmp_path / "w"))
    with pytest.raises(UserError, match="fetch them with"):
        pretrained.adopt("reader", entry(tmp_path / "w"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_without_a_pinned_commit_are_not_used(tmp_path) -> None:
    assert "no commit of somebody/something is pinned" in pretrained.missing("msa", entry(tmp_path, revision=None))


def test_fetched_files_become_a_model(tmp_path) -> None:
    weights = tmp_path / "w"
    weights.mkdir()
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (weights / name).write_text(name)
    (weights / "pytorch_model.bin").write_text("pickled")
    for _ in range(2):  # a second time changes nothing
        pretrained.adopt("reader", entry(weights), tmp_path / "model")
        found = {path.name: path.read_text() for path in (tmp_path / "model").iterdir()}
        assert found == {name: name for name in found} and "pytorch_model.bin" not in found and len(found) == 4


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(UserError, match=r"models.yaml: x: params: unknown key 'revison'; did you mean 'revision'"):
        pretrained.missing("x", ModelSpec("pretrained", params={"hub": "a/b", "path": "c", "shape": {}, "revison": "d"}))
