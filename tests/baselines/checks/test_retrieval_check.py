"""The check of retrieval: its metrics by hand, its data format, and that it finds a ranking that differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from baselines.checks import retrieval_check
from baselines.checks.retrieval_check import main, ndcg, recall
from msa_base.errors import UserError


def test_metrics_are_those_worked_out_by_hand() -> None:
    grades = {1: 3, 2: 2, 3: 1, 4: 0}
    assert recall([9, 2, 1], grades, 2, 2) == 0.5 and recall([9, 2, 1], grades, 2, 3) == 1.0
    assert recall([1], {4: 0}, 1, 5) is None
    ideal = 3 + 2 / 1.584962500721156 + 1 / 2
    assert ndcg([3, 1, 9, 2], grades) == pytest.approx((1 + 3 / 1.584962500721156 + 2 / 2.321928094887362) / ideal)
    assert ndcg([1, 2, 3], grades) == pytest.approx(1.0) and ndcg([5], {4: 0}) is None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Both sets, three questions each."""
    hits = [
        {"docid": str(10 + place), "content": text}
        for place, text in enumerate(("red fox", "blue sky", "old red barn"))
    ]
    (tmp_path / "msmarco").mkdir()
    for name in ("bm25", "splade"):
        content = [{"query": "red fox", "hits": hits}, {"query": "sky", "hits": hits[:2]}]
        (tmp_path / "msmarco" / f"{name}_candidates_dl19.json").write_text(json.dumps(content))
    (tmp_path / "msmarco" / "qrels.dl19-passage.txt").write_text("1 Q0 10 3\n1 Q0 11 0\n2 Q0 11 2\n2 Q0 99 1\n")
    (tmp_path / "msmarco" / "topics.dl19-passage.txt").write_text("1\tred fox\n2\tsky\n3\tunjudged\n")
    row = {"_id": "a", "question": "who saw the fox", "supporting_facts": [["Fox", 0], ["Barn", 1]]}
    row["context"] = [["Fox", ["A fox.", " It ran."]], ["Barn", ["A barn."]], ["Sky", ["Blue."]]]
    (tmp_path / "hotpotqa").mkdir()
    (tmp_path / "hotpotqa" / "amor_test_500.json").write_text(json.dumps(row) + "\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command's exit code."""
    monkeypatch.setattr(sys, "argv", ["retrieval_check", *arguments])
    return main()


def test_both_sets_are_compared_row_by_row(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    arguments = ("--data", str(data), "--output", str(tmp_path / "rows.json"), "--embedder", str(tmp_path / "model"))
    monkeypatch.setattr(retrieval_check, "open_embedder", sys.modules["baselines.dense"].open_embedder)
    assert run(monkeypatch, *arguments) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 2 * 3 * 3
    found = {(row["set"], row["pair"], row["metric"]): row["own"] for row in rows}
    assert found["msmarco", "BM25, bm25s", "recall@10"] == 100
    # question 2's grade-1 document is not in the corpus: the ideal counts it all the same
    assert found["msmarco", "BM25, bm25s", "nDCG@10"] == pytest.approx(
        (100 + 100 * 2 / (2 + 1 / 1.584962500721156)) / 2
    )
    assert found["hotpotqa", "BM25, bm25s", "recall@5"] == 100


def test_the_first_questions_come_with_their_passages_alone(data: Path) -> None:
    whole, part = retrieval_check.read_msmarco(data), retrieval_check.read_msmarco(data, 1)
    assert [question.text for question in whole.questions] == ["red fox", "sky"]
    assert [question.text for question in part.questions] == ["red fox"] and len(part.documents) == 3
    assert len(retrieval_check.read_hotpotqa(data, 0).documents) == 0


def test_a_ranking_that_differs_is_found(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = retrieval_check.own_ranking
    monkeypatch.setattr(retrieval_check, "own_ranking", lambda *items: [ids[::-1] for ids in own(*items)])
    assert run(monkeypatch, "--data", str(data), "--sets", "msmarco") == 1


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"amor_test_500\.json: no such file; name the data directory"):
        run(monkeypatch, "--data", str(tmp_path), "--sets", "hotpotqa")
