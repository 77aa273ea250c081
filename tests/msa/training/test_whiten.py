"""Whitened routers: moments are those of the states, both sides become white, and scores are cosines of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from msa.checkpoints import read
from msa.checkpoints.write import save
from msa.memory.encode import Encoder
from msa.model.decoder import MSAModel
from msa.model.moments import Moments
from msa.model.prompt import Row
from msa.model.router_form import RouterForm
from msa.ops.reference import pool_chunks
from msa.training import whitened
from msa.training.cached_states import cache
from msa.training.whiten import Backbone, projection, whiten
from msa_base.errors import UserError
from msa_base.paths import Paths
from msa_base.specs import ModelSpec
from msa_base.tables import write_table
from tests.small_model import small_config


def test_batches_sum_up_to_mean_and_covariance_and_whiten() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 500
    moments = Moments(6)
    for part in states.split(77):
        moments.add(part)
    assert torch.allclose(moments.mean, states.double().mean(0))
    assert torch.allclose(moments.covariance, states.T.double().cov(correction=0), atol=1e-6)
    white = (states.double() - moments.mean) @ moments.whitening(0.0)
    assert torch.allclose(white.T.cov(correction=0), torch.eye(6, dtype=torch.float64), atol=1e-6)
    # wholly shrunk, all directions weigh alike
    even = moments.covariance.trace() / 6
    assert torch.allclose(moments.whitening(1.0), torch.eye(6, dtype=torch.float64) * even.rsqrt())


def test_a_narrow_router_keeps_orthonormal_directions() -> None:
    kept = projection(3, 8)
    assert torch.allclose(kept @ kept.T, torch.eye(3, dtype=torch.float64))
    assert torch.equal(projection(8, 8), torch.eye(8, dtype=torch.float64))
    with pytest.raises(UserError, match="9 wide, more than the 8"):
        projection(9, 8)


@pytest.fixture
def place(tmp_path, tokenizer, documents):
    """A backbone, and texts of both sides."""
    torch.manual_seed(0)
    model = MSAModel(small_config(tokenizer.get_vocab_size()))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    save(model, tmp_path / "backbone")
    tokenizer.save(str(tmp_path / "backbone" / "tokenizer.json"))
    lines = [{"text": document.text} for document in documents]
    lines += [{"question": f"what is the number for {document.text}"} for document in documents]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.mark.parametrize("tokens", ["wording", "question"])
def test_a_score_is_the_cosine_of_whitened_states(place, documents, monkeypatch, tokens) -> None:
    monkeypatch.setattr("msa.training.whiten.precision.fast_bfloat16", lambda where: False)
    form = RouterForm(1, 1, 32, bias=True, query_reduce="mean", query_tokens=tokens)
    said = whiten(place / "backbone", place / "msa", place / "texts.jsonl", "1,2", form, 4, 3, shrinkage=0.1)
    assert "routers on layers 1-2, P = 4, k = 3" in said and "form of their own" in said
    model, prompter = read.open_model(place / "msa")
    assert model.config.form == form
    rows, sums = [prompter.opening(f"what is the number for {document.text}") for document in documents], Moments(32)
    for row in rows:
        h = list(model.states(torch.tensor([row.ids]), torch.arange(len(row.ids))))[2]
        sums.add(h[0][torch.tensor(row.routing)])
    question = prompter.text(f"what is the number for {documents[0].text}")
    routed = [token for token, routes in zip(rows[0].ids, rows[0].routing, strict=True) if routes]
    assert routed == question if tokens == "question" else len(routed) > len(question)
    ids, attention = torch.tensor([rows[0].ids]), model.model.layers[2].self_attn
    h = list(model.states(ids, torch.arange(ids.shape[1])))[2]
    expected = F.normalize((h.double() - sums.mean) @ sums.whitening(0.1), dim=-1)
    assert torch.allclose(attention.routing_queries(h).double(), expected, atol=1e-4)
    chunks = Moments(32)
    numbered = [replace(document, doc_id=100_000 + number) for number, document in enumerate(documents)]
    for row in prompter.documents(numbered):
        states = list(model.states(torch.tensor([row]), torch.arange(len(row))))[2]
        chunks.add(pool_chunks(states, torch.tensor([len(row)]), 4)[0])
    given = attention.router_k_proj[0](chunks.mean.float() + torch.eye(32))  # the centre, and a step from it each way
    assert torch.allclose(given.double(), chunks.whitening(0.1), atol=1e-4)
    keys = Encoder(model, prompter, precision="float32").segment(documents).layers[1].routing.values
    assert keys.shape[1] == 32 and torch.allclose(keys.norm(dim=-1), torch.ones(len(keys)), atol=1e-5)


def test_states_are_kept_and_a_killed_call_goes_on(place, documents, monkeypatch) -> None:
    """Chunks of documents and routing tokens of questions are those of the model; nothing is computed twice."""
    monkeypatch.setattr("msa.training.whiten.precision.fast_bfloat16", lambda where: False)
    monkeypatch.setattr("msa.training.whiten.BATCH_TOKENS", 40)
    monkeypatch.setattr("msa.training.cached_states.SAVE_EVERY", 1)
    backbone = Backbone(read.find(place / "backbone"))
    numbered = [replace(document, doc_id=100_000 + number) for number, document in enumerate(documents)]
    texts = [Row().add(ids, routing=True) for ids in backbone.prompter.documents(numbered)]
    asked = backbone.asked([f"what is {document.text}" for document in documents], RouterForm(query_tokens="question"))
    computed, plain = [], backbone.states

    def breaks(*given):
        for found in plain(*given):
            if len(computed) == 2:
                computed.append(None)
                raise KeyboardInterrupt
            computed.append(found[0])
            yield found

    monkeypatch.setattr(backbone, "states", breaks)
    with pytest.raises(KeyboardInterrupt):
        cache(backbone, texts, [1, 2], 4, place / "kept", "documents")
    kept = cache(backbone, texts, [1, 2], 4, place / "kept", "documents")
    numbers = [number for batch in computed if batch for number in batch]
    assert sorted(numbers) == list(range(len(texts)))  # each row once, before or after the kill
    cache(backbone, texts, [1, 2], 4, place / "kept", "documents")
    assert len([batch for batch in computed if batch for _ in batch]) == len(texts)
    questions = cache(backbone, asked, [2], 1, place / "asked", "questions")
    for number, (row, ask) in enumerate(zip(texts, asked, strict=True)):
        h = list(backbone.model.states(torch.tensor([row.ids]), torch.arange(len(row.ids))))[2]
        pooled = pool_chunks(h, torch.tensor([len(row.ids)]), 4)[0]
        begin, end = kept.first[number : number + 2].tolist()
        assert torch.allclose(kept.layer(2)[begin:end].float(), pooled, atol=2e-3)
        h = list(backbone.model.states(torch.tensor([ask.ids]), torch.arange(len(ask.ids))))[2]
        begin, end = questions.first[number : number + 2].tolist()
        assert torch.allclose(questions.layer(2)[begin:end].float(), h[0][torch.tensor(ask.routing)], atol=2e-3)


def test_a_token_counts_by_the_length_of_its_query(place) -> None:
    form = RouterForm(1, 1, 32, bias=True, query_reduce="mean", query_norms=True)
    whiten(place / "backbone", place / "msa", place / "texts.jsonl", "1", form, 4, 3)
    attention = read.load(place / "msa").model.layers[1].self_attn
    h = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    found, plain = attention.routing_queries(h), attention.router_q_proj[0](h)
    assert torch.allclose(found, plain * 32**-0.5, atol=1e-5)
    with pytest.raises(ValueError, match="query_reduce: mean"):
        RouterForm(query_norms=True)


@pytest.mark.parametrize(
    ("texts", "form", "message"),
    [
        ('{"text": "alpha"}\n', {"bias": True}, "no line has the key 'question'"),
        ('{"text": 3}\n', {"bias": True}, "texts.jsonl:1: key 'text' must be a text"),
        (None, {}, "give its form bias: true"),
        (None, {"bias": True, "head_dim": 64}, "more than the 32"),
    ],
)
def test_what_cannot_be_whitened_is_named(place, texts, form, message) -> None:
    if texts is not None:
        (place / "texts.jsonl").write_text(texts)
    with pytest.raises(UserError, match=message):
        whiten(place / "backbone", place / "msa", place / "texts.jsonl", "1", RouterForm(**form))
    assert not (place / "msa").exists()


def test_a_model_of_the_workflow_starts_with_the_same_routers(place, tokenizer, documents, monkeypatch) -> None:
    """What the command writes is what ``whiten`` makes of the same text, and a second call leaves it alone."""
    monkeypatch.setattr("msa.training.whiten.precision.fast_bfloat16", lambda where: False)
    router = {"routed_layers": [1, 2], "pool_tokens": 4, "top_k_documents": 3, "aux_temperature": 0.1}
    router["form"] = {"query_heads": 1, "key_heads": 1, "head_dim": 32, "bias": True, "query_reduce": "mean"}
    params = {"router": router, "shrinkage": 0.1}
    spec = ModelSpec("msa.training.whitened", after="backbone", samples=["text"], params=params)
    whitened.check_model("msa", {"msa": spec}, "models.yaml: msa: params")
    paths = Paths.of("p", place)
    paths.model("backbone").parent.mkdir(parents=True)
    (place / "backbone").rename(paths.model("backbone"))
    banks = [{"bank_id": 0, "doc_id": 100_000 + n, "text": d.text, "num_tokens": 9} for n, d in enumerate(documents)]
    write_table("banks", banks, paths.samples("text") / "banks.parquet")
    asked = [{"question": f"what is the number for {document.text}"} for document in documents]
    rest = {"sample_id": 0, "bank_id": 0, "task": "t", "answer_prefix": "", "answer": "", "chain": [], "notes": None}
    write_table("samples", [row | rest for row in asked], paths.samples("text") / "samples.parquet")
    whitened.whiten("msa", spec, paths)
    form = RouterForm(1, 1, 32, bias=True, query_reduce="mean")
    whiten(paths.model("backbone"), place / "other", place / "texts.jsonl", "1,2", form, 4, 3, shrinkage=0.1)
    ours, theirs = read.load(paths.model("msa")).state_dict(), read.load(place / "other").state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((paths.model("msa") / "train.jsonl").read_text())["documents"] == len(documents)


@pytest.mark.parametrize(
    ("change", "bias", "message"),
    [({"after": None}, True, "need `after`"), ({"samples": ["a", "b"]}, True, "one set"), ({}, False, "bias: true")],
)
def test_a_model_that_cannot_be_whitened_is_named(change, bias, message) -> None:
    router = {"routed_layers": [1], "pool_tokens": 4, "top_k_documents": 3, "aux_temperature": 0.1}
    params = {"router": router | {"form": {"bias": bias}}}
    spec = ModelSpec("msa.training.whitened", **{"after": "b", "samples": ["a"], "params": params} | change)
    with pytest.raises(UserError, match=message):
        whitened.check_model("m", {"m": spec}, "models.yaml: m: params")
