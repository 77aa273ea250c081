"""Routers that learn from cached states: they start whitened, score as the model does, and survive a kill."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from msa.checkpoints import read
from msa.checkpoints.write import save
from msa.model.decoder import MSAModel
from msa.training import warm_up, whitened
from msa_base.errors import UserError
from msa_base.paths import Paths
from msa_base.specs import ModelSpec
from msa_base.tables import write_table
from msa_base.validate import build
from tests.small_model import small_config

FORM = {"query_heads": 1, "key_heads": 1, "head_dim": 32, "bias": True, "query_reduce": "mean", "fused": True}
ROUTER = {"routed_layers": [1, 2], "pool_tokens": 4, "top_k_documents": 3, "aux_temperature": 0.1, "form": FORM}
PARAMS = {"router": ROUTER, "shrinkage": 0.1, "steps": 6, "rows": 3, "negatives": 2, "evaluate_every": 2}


@pytest.fixture
def place(tmp_path, tokenizer, documents, monkeypatch):
    """A backbone and two sample sets of a profile."""
    monkeypatch.setattr("msa.training.whiten.precision.fast_bfloat16", lambda where: False)
    torch.manual_seed(0)
    model = MSAModel(small_config(tokenizer.get_vocab_size()))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    paths = Paths.of("p", tmp_path)
    paths.model("backbone").mkdir(parents=True)
    save(model, paths.model("backbone"))
    tokenizer.save(str(paths.model("backbone") / "tokenizer.json"))
    for name in ("fit", "development"):
        banks = [
            {"bank_id": 0, "doc_id": 100_000 + n, "text": d.text, "num_tokens": 9} for n, d in enumerate(documents)
        ]
        write_table("banks", banks, paths.samples(name) / "banks.parquet")
        rest = {"bank_id": 0, "task": "t", "answer_prefix": "", "answer": "", "notes": None}
        asked = [
            {"sample_id": n, "question": f"what of {row['text']}", "chain": [[row["doc_id"]]], **rest}
            for n, row in enumerate(banks)
        ]
        write_table("samples", asked, paths.samples(name) / "samples.parquet")
    return paths


def spec(**params) -> ModelSpec:
    return ModelSpec("msa.training.warm_up", after="backbone", samples=["fit", "development"], params=PARAMS | params)


def test_it_starts_whitened_and_learns(place) -> None:
    entry = spec(learning_rate=1e-9)
    warm_up.check_model("msa", {"msa": entry}, "models.yaml: msa: params")
    warm_up.warm_up("msa", entry, place, "d")
    params = {key: PARAMS[key] for key in ("router", "shrinkage")}
    plain = ModelSpec("msa.training.whitened", after="backbone", samples=["fit"], params=params)
    whitened.whiten("plain", plain, place)
    ours, theirs = read.load(place.model("msa")).state_dict(), read.load(place.model("plain")).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():  # one reads half-precision states, the other all digits
        assert torch.allclose(tensor, theirs[name], atol=0.02 * float(theirs[name].abs().max())), name
    log = [json.loads(line) for line in (place.model("msa") / "train.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [0, 2, 4, 6] and not place.model(".msa.resume").exists()


def test_scores_are_those_of_the_model_that_is_written(place, documents) -> None:
    """The cached states' fused score of each document is the mean over tokens of the model's own routers."""
    stored, entry = read.find(place.model("backbone")), spec()
    params = warm_up.read_params(entry, "p")
    config = whitened.routed_config("msa", params, stored)
    config = replace(config, form=replace(config.form, query_norms=True))
    backbone = warm_up.Backbone(stored)
    texts = warm_up.read_texts(place.samples("fit"), backbone, config, params, place.model("kept"))
    moments = {each: (texts.questions.moments(each), texts.documents.moments(each)) for each in (1, 2)}
    routers = warm_up.Routers(config, moments, 0.1)
    with torch.no_grad():
        for side in routers.sides["2"]:
            side.change.normal_(std=0.1)
            side.bias.normal_(std=0.1)
    routers.eval()
    every = torch.arange(len(documents))
    found = routers(texts, every, every)
    model = MSAModel(config)
    model.load_state_dict(backbone.model.state_dict() | routers.tensors())
    expected = torch.zeros_like(found)
    for layer in (1, 2):
        attention = model.model.layers[layer].self_attn
        queries = attention.routing_queries(texts.questions.layer(layer).float())
        keys = attention.routing_keys(texts.documents.layer(layer).float())
        for q, k in ((q, k) for q in range(len(every)) for k in range(len(every))):
            asked = queries[texts.questions.first[q] : texts.questions.first[q + 1]]
            chunks = keys[texts.documents.first[k] : texts.documents.first[k + 1]]
            expected[q, k] += 0.5 * (asked @ chunks.T).amax(1).mean()
    assert torch.allclose(found, expected, atol=1e-3)


def test_layers_learn_how_much_they_count(place) -> None:
    warm_up.warm_up("msa", spec(layer_learning_rate=0.1), place, "d")
    log = [json.loads(line) for line in (place.model("msa") / "train.jsonl").read_text().splitlines()]
    kept, alike = read.read_config(read.find(place.model("msa"))).form.layer_weights, (0.5, 0.5)
    assert sum(kept) == pytest.approx(1, abs=1e-5)
    found = [sum(entry[f"recall@{k}"] for k in warm_up.KS) for entry in log]
    assert (kept != alike) == (max(found) > found[0])  # the start is kept where nothing found more
    warm_up.warm_up("fixed", spec(), place, "d")
    assert read.read_config(read.find(place.model("fixed"))).form.layer_weights == ()


def test_hard_negatives_are_what_words_find() -> None:
    texts = ["red fox", "red fox runs", "blue whale", "green tree"]
    hard = warm_up.first_found(texts, ["fox runs", "a whale"])
    assert hard[0, :2].tolist() == [1, 0] and hard[1, 0] == 2
    few = warm_up.CachedStates(None, torch.ones(9, dtype=torch.long), 1)
    fit = warm_up.CachedTexts(few, few, torch.tensor([8] * 9), torch.tensor([[3, 5]] * 9))
    params = build(warm_up.ModelParams, PARAMS | {"negatives": 1, "hard_negatives": 1}, "p")
    draws = [warm_up.draw(fit, params, step) for step in range(20)]
    assert all(len(asked) == 3 and 8 in documents and {3, 5} & set(documents.tolist()) for asked, documents in draws)
    assert any(len({3, 5} & set(documents.tolist())) == 2 for _, documents in draws)


def test_a_killed_training_equals_one_that_was_not(place, monkeypatch) -> None:
    warm_up.warm_up("whole", spec(), place, "d")
    plain, looks = warm_up.ranks, []

    def breaks(*given):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(warm_up, "ranks", breaks)
    with pytest.raises(KeyboardInterrupt):
        warm_up.warm_up("msa", spec(), place, "d")
    warm_up.warm_up("msa", spec(), place, "d")
    assert len(looks) == 5  # at 0 and 2, killed at 4; then 4 and 6
    ours, theirs = read.load(place.model("msa")).state_dict(), read.load(place.model("whole")).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("change", "form", "message"),
    [({"after": None}, {}, "need"), ({"samples": ["a"]}, {}, "development set"), ({}, {"fused": False}, "fused: true")],
)
def test_what_cannot_be_warmed_up_is_named(change, form, message) -> None:
    entry = replace(spec(router=ROUTER | {"form": FORM | form}), **change)
    with pytest.raises(UserError, match=message):
        warm_up.check_model("m", {"m": entry}, "models.yaml: m: params")
