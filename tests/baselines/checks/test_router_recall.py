"""Recall of routers on real text: what is asked where, scores as the model's own, one row a question."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines.checks import router_recall
from baselines.checks.real_text import TextSet, numbered, overlaps, read_nq
from msa.checkpoints import read
from msa.checkpoints.write import save
from msa.model.decoder import MSAModel
from msa.model.prompt import Row
from msa.model.router_form import RouterForm
from msa_base.errors import UserError
from msa_base.tables import read_json
from tests.msa.conftest import WORDS, tokenizer  # noqa: F401 (a fixture)
from tests.small_model import small_config

FORM = RouterForm(1, 1, 32, True, "mean", "question", query_norms=True, layer_weights=(1.0, 3.0), fused=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 passages of Natural Questions, each with a question; the last has a second one."""
    rows = []
    for number in range(24):
        text = " ".join(WORDS[(number * 5 + step) % 12] for step in range(3 + number))
        context = {"title": f"Part {number}", "text": text, "isgold": True}
        rows.append({"question": f"which {WORDS[number % 12]} has {number} parts", "ctxs": [context]})
    rows.append({**rows[-1], "question": "which other"})
    path = tmp_path / "data" / "natural_questions" / "oracle_2655.jsonl.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path / "data"


@pytest.fixture
def models(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A random backbone and the same with random routers, beside each other."""
    monkeypatch.setattr("msa.ops.precision.fast_bfloat16", lambda where: False)
    torch.manual_seed(0)
    for name, routed in (("backbone", {}), ("routed", {"routed_layers": (1, 2), "pool_tokens": 16, "form": FORM})):
        model = MSAModel(replace(small_config(tokenizer.get_vocab_size()), **routed))
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        (tmp_path / name).mkdir()
        save(model, tmp_path / name)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    return tmp_path


def test_cells_ask_the_unseen_over_their_own_passages_and_the_first_over_more(monkeypatch) -> None:
    monkeypatch.setattr(router_recall, "SEEN", 6)
    monkeypatch.setattr(router_recall, "SIZES", (4, 8))
    found = TextSet([str(number) for number in range(10)], ["q"] * 11, [*range(10), 1])
    cells = router_recall.cells(found, "nq")
    asked = {name: (cell.first, cell.last, cell.questions.tolist()) for name, cell in cells.items()}
    assert asked == {
        "nq": (0, 6, [0, 1, 2, 3, 4, 5, 10]),
        "nq_unseen": (6, 10, [6, 7, 8, 9]),
        "nq, first 4 among 4": (0, 4, [0, 1, 2, 3, 10]),
        "nq, first 4 among 8": (0, 8, [0, 1, 2, 3, 10]),
        "nq, first 4 among 10": (0, 10, [0, 1, 2, 3, 10]),
    }


def test_overlap_is_the_share_of_content_words() -> None:
    found = TextSet(["The fox ran home."], ["where is the fox", "who swam", "the"], [0, 0, 0])
    assert overlaps(found) == [1.0, 0.0, 0.0]


def test_what_the_routers_find_is_written_by_question(data, models, monkeypatch, capsys) -> None:
    monkeypatch.setattr(router_recall, "SEEN", 4)
    monkeypatch.setattr(router_recall, "KS", (1, 3))
    monkeypatch.setattr(router_recall, "SIZES", (4, 12))
    monkeypatch.setattr(router_recall, "AT_ONCE", 7)
    given = ["--data", data, "--backbone", models / "backbone", "--states", models / "kept", "--layers", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["router_recall", *map(str, given), "--models", str(models / "routed")])
    router_recall.main()
    rows = read_json(models / "kept" / "recalls.json")
    assert {(row["set"], row["metric"]) for row in rows} >= {
        ("nq", "recall@1"), ("nq_unseen, fewest shared words", "recall@3"), ("nq, first 4 among 24", "lost at 1")
    }  # fmt: skip
    assert "nq_unseen (21 questions), recall@1: routed" in capsys.readouterr().out
    # each question's score is the weighted mean over its tokens of the model's own best chunk
    found = read_nq(data / "natural_questions" / "oracle_2655.jsonl.gz", 100)
    model = read.load(models / "routed")
    backbone = router_recall.Backbone(read.find(models / "backbone"))
    documents = [Row().add(ids) for ids in backbone.prompter.documents(numbered(found.passages))]
    expected = torch.zeros(25, 24)
    with torch.no_grad():
        for layer, share in ((1, 0.25), (2, 0.75)):
            router = model.model.layers[layer].self_attn
            for place, row in enumerate(backbone.asked(found.questions, FORM)):
                asked = states(model, row.ids, layer)[torch.tensor(row.routing)]
                for passage, document in enumerate(documents):
                    h = states(model, document.ids, layer)
                    chunks = torch.stack([part.mean(0) for part in h.split(16)])
                    scores = router.routing_queries(asked) @ router.routing_keys(chunks).T
                    expected[place, passage] += share * scores.amax(1).mean()
    ranks = (expected > expected.gather(1, torch.tensor(found.gold).unsqueeze(1))).sum(1)
    hits = {row["question_id"]: row["routed"] for row in rows if row["set"] == "nq, first 4 among 24"}
    written = [row for row in rows if (row["set"], row["metric"]) == ("nq, first 4 among 24", "recall@3")]
    assert hits and [row["routed"] for row in written] == [int(ranks[int(row["question_id"])] < 3) for row in written]


def states(model: MSAModel, ids: list[int], layer: int) -> torch.Tensor:
    every = model.model.states if hasattr(model.model, "states") else model.states
    return list(every(torch.tensor([ids]), torch.arange(len(ids))))[layer][0]


def test_routers_of_another_form_are_named(data, models) -> None:
    texts = router_recall.CachedTexts(None, None, torch.empty(0), torch.empty(0))
    with pytest.raises(UserError, match="needs routers with fused: true"):
        router_recall.routers_score(models / "backbone", texts)
