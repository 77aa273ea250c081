"""The engine's measurements: they measure what they say, and leave the bank as it was."""

from __future__ import annotations

import argparse
import hashlib
import json

import numpy as np
import pytest

from msa.bench import memory as measure
from msa.checkpoints import write
from msa.memory.encode import Encoder
from msa_base.errors import UserError
from msa_base.records import Document


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, model, tokenizer, prompter):
    """Arguments of every measurement: a model, a bank of 600 documents in segments, and the documents themselves."""
    root = tmp_path_factory.mktemp("measure")
    write.save(model, root / "model")
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    texts = [f"the number for alpha is {number}" for number in range(600)]
    (root / "documents.jsonl").write_text(
        "\n".join(json.dumps({"doc_id": n, "text": text}) for n, text in enumerate(texts))
    )
    documents = [Document(n, text, len(prompter.documents([Document(n, text, 0)])[0])) for n, text in enumerate(texts)]
    Encoder(model, prompter, directory=root / "model").build(documents, root / "bank", segment_tokens=900)
    return argparse.Namespace(
        bank=root / "bank", model=root / "model", documents=root / "documents.jsonl", number=6, repetitions=2,
        precision="float32", ranks=2, threads=2,
    )  # fmt: skip


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_encoding_is_compared_with_its_own_products(chosen):
    found = measure.encode(chosen)
    assert found["n"] == 2 and found["tokens_per_s"] == pytest.approx(found["tokens"] / found["encode_s"])
    assert found["share_of_floor"] == pytest.approx(found["floor_s"] / found["encode_s"])


def test_the_slope_is_that_of_its_points(chosen, monkeypatch):
    monkeypatch.setattr(measure, "SMALLEST_PREFIX", 64)
    found = measure.slope(chosen)
    sizes, seconds = np.array(found["tokens"]), np.array(found["seconds"])
    assert len(sizes) >= 5 and (np.diff(sizes) > 0).all() and sizes[0] < 900 < sizes[-1]
    x, y = np.log(sizes) - np.log(sizes).mean(), np.log(seconds)
    assert found["slope"] == pytest.approx((x * y).sum() / (x * x).sum())


def test_a_bank_without_seconds_has_no_slope(chosen, tmp_path):
    (tmp_path / "bank.json").write_text(json.dumps({"segments": [{"file": "a"}]}))
    with pytest.raises(UserError, match=r"bank\.json: no segment has 'encode_s'"):
        measure._build_seconds(tmp_path)


def test_measuring_edits_and_overlays_leaves_the_bank_alone(chosen):
    before = digests(chosen.bank)
    replaced, planted, opened = measure.replace_one(chosen), measure.overlay(chosen), measure.open_bank(chosen)
    assert replaced["times_cheaper"] == pytest.approx(replaced["rebuild_s"] / replaced["replace_s"])
    assert planted["documents"] == 6 and planted["ratio"] == pytest.approx(planted["overlay_s"] / planted["encode_s"])
    assert opened["documents"] == 600
    assert digests(chosen.bank) == before


def test_ranks_share_the_keys_and_give_the_same_documents(chosen):
    found = measure.ranks(chosen)
    assert found["same_documents"] and found["key_share_of_a_rank"] == pytest.approx(0.5, abs=0.1)
