"""Effective length on hand-made curves."""

from __future__ import annotations

from collections.abc import Callable

from reports.published.reference import read_reference
from reports.tables.effective import effective_length


def test_the_length_ends_where_85_percent_are_no_longer_kept(new_tree: Callable) -> None:
    tree = new_tree(tasks={"scaling_facts": 64})
    curves = {"msa": (1.0, 1.0, 1.0, 1.0), "rag_bm25": (1.0, 1.0, 0.4, 1.0), "rag_dense": (0.0, 0.0, 0.0, 0.0)}
    for system, strengths in curves.items():
        for context, strength in zip(tree.experiment.profile.contexts, strengths, strict=True):
            tree.cell(system, "scaling_facts", context, strength)
    tree.cell("oracle", "scaling_facts", "16K", 1.0)
    evidence = tree.evidence()
    frame = effective_length(evidence, read_reference(systems=evidence.systems)).frame.set_index("system")
    assert set(frame.index) == {"msa", "rag_bm25"}  # one size, or a base of 0, has no length
    assert frame.loc["msa", ["effective", "certain", "last"]].tolist() == ["1M", "1M", "1M"]
    assert frame.loc["rag_bm25", ["effective", "certain", "last"]].tolist() == ["32K", "32K", "64K"]
    assert frame.loc["rag_bm25", "ratio"] < 0.85 and frame.loc["msa", "ratio_low"] >= 0.85


def test_a_point_above_is_not_yet_an_interval_above(evidence) -> None:
    reference = read_reference(systems=evidence.systems)
    table = effective_length(evidence, reference)
    tokens, frame = evidence.tokens, table.frame
    assert all(tokens[row.certain] <= tokens[row.effective] <= tokens[row.last] for row in frame.itertuples())
    needles = frame[frame["task"] == "niah_prose_mean"].set_index("system")
    assert needles.loc["msa", "published_to"] == "MSA-4B: 1M"
    assert "full_attention" not in needles.index
