"""The comparison on real passages: sets read as they are, both rankings over one index, one row a question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import baselines.hipporag
from baselines.checks.hipporag_check import rankings, read_musique, recalls
from msa_base.errors import UserError

PASSAGES = [
    ("Ada Rook", "She was born in Calm Bay."),
    ("Calm Bay", "It is a town in the far north."),
    ("Ben Dale", "He likes tea."),
]


def write_set(data: Path, corpus: list[tuple[str, str]]) -> None:
    (data / "musique").mkdir()
    paragraphs = [
        {"title": title, "paragraph_text": text, "is_supporting": title != "Ben Dale"} for title, text in PASSAGES
    ]
    questions = [{"id": "q1", "question": "Where is the town in which Ada Rook was born ?", "paragraphs": paragraphs}]
    (data / "musique" / "train_100.json").write_text(json.dumps(questions))
    rows = [{"title": title, "text": text} for title, text in corpus]
    (data / "musique" / "train_100_corpus.json").write_text(json.dumps(rows))


def test_recall_of_both_over_one_index(tmp_path: Path) -> None:
    write_set(
        tmp_path, [*PASSAGES, PASSAGES[0], *(("Filler", f"Words {n} of no use where the town is .") for n in range(9))]
    )
    judged = read_musique(tmp_path)
    assert len(judged.documents) == 12 and judged.documents[0].text == "Ada Rook\nShe was born in Calm Bay."
    assert judged.grades == {"q1": {0: 1, 1: 1}}
    search = baselines.hipporag.GraphSearch(extractor="rules", fact_filter="names", phrases="words")
    found = rankings(judged, Path("none"), None, search, 1)
    assert sorted(found["dense"][0]) == sorted(found["hipporag"][0]) == list(range(12))
    (row,) = recalls("musique", judged, found)
    assert row["hipporag"] == 1.0 and row["metric"] == "recall@5"
    assert row["dense"] == len({0, 1} & set(found["dense"][0][:5])) / 2


def test_a_lost_paragraph_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, PASSAGES[:1])
    with pytest.raises(UserError, match="'Calm Bay' of question q1 is not in"):
        read_musique(tmp_path)
