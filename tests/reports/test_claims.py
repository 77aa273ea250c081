"""Verdicts on hand-made intervals, and findings on hand-made trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from configs.errors import UserError
from reports.claims import REFERENCE, Claim, Measure, Side, find, read_reference, show, verdict
from reports.statistics import Interval


def claim(statistic: str = "gain", published: float = 16.0, **bound: float) -> Claim:
    """A claim with the one bound given."""
    side, measure = Side("msa", "1M"), Measure("accuracy")
    return Claim("title", "source", published, statistic, side, side, measure, measure, "why", **bound)


def interval(low: float, high: float) -> Interval:
    """An interval whose point is its middle."""
    return Interval((low + high) / 2, low, high, 100, "")


@pytest.mark.parametrize(
    ("low", "high", "exact", "word"),
    [
        (1.0, 8.9, False, "holds in miniature"),
        (1.0, 9.0, True, "reproduced"),
        (1.0, 9.1, False, "inconclusive"),
        (9.1, 12.0, False, "does not hold in miniature"),
        (9.1, 12.0, True, "not reproduced"),
    ],
)
def test_upper_bound(low: float, high: float, exact: bool, word: str) -> None:
    assert verdict(claim("loss", 8.8, at_most=9), interval(low, high), exact) == word


@pytest.mark.parametrize(
    ("low", "high", "exact", "word"),
    [
        (0.1, 5.0, False, "holds in miniature"),
        (0.1, 5.0, True, "not reproduced"),  # a gain, and wholly smaller than the published one
        (0.1, 17.0, True, "reproduced"),
        (20.0, 30.0, True, "reproduced"),
        (-1.0, 17.0, True, "inconclusive"),
        (0.0, 5.0, False, "inconclusive"),  # the bound itself is no gain
        (-5.0, -0.1, False, "does not hold in miniature"),
        (-5.0, 0.0, True, "not reproduced"),
    ],
)
def test_lower_bound(low: float, high: float, exact: bool, word: str) -> None:
    assert verdict(claim(above=0), interval(low, high), exact) == word


def test_no_interval_is_not_measured() -> None:
    assert verdict(claim(above=0), None, exact=True) == "not measured"


def test_a_good_point_alone_decides_nothing() -> None:
    assert verdict(claim("loss", 8.8, at_most=9), Interval(2.0, -3.0, 14.0, 6, ""), exact=False) == "inconclusive"


def test_findings_of_a_full_tree(evidence) -> None:
    found = {finding.name: finding for finding in find(evidence, read_reference())}
    whole = found["scaling_loss_to_100M"]
    assert whole.verdict == "not measured"
    assert whole.remark.startswith("measured 16K to 1M: ")
    assert found["scaling_loss_to_1M"].where == "16K to 1M"
    assert found["interleave_largest"].verdict == "holds in miniature"
    assert found["interleave_largest"].where == "at 1M"
    assert found["full_attention_at_1M"].remark == "Full attention at 1M: unsupported context"
    assert found["linear_inference"].measured.value == pytest.approx(0.6)
    assert all("reproduced" not in finding.verdict for finding in found.values())


def test_largest_is_what_both_sides_have(new_tree: Callable) -> None:
    tree = new_tree()
    for context in ("16K", "32K"):
        tree.cell("msa", "two_hop", context, 0.9)
        tree.cell("msa_no_interleave", "two_hop", context, 0.5)
    tree.cell("msa", "two_hop", "1M", 0.9)
    found = {finding.name: finding for finding in find(tree.evidence(), read_reference())}
    assert found["interleave_largest"].where == "at 32K"


def test_findings_of_an_empty_tree(new_tree: Callable) -> None:
    findings = find(new_tree().evidence(), read_reference())
    assert {finding.verdict for finding in findings} == {"not measured"}


def test_exact_claims_are_measured_on_the_papers_own_tasks(new_tree: Callable) -> None:
    tree = new_tree()
    for context in ("16K", "32K", "64K", "1M"):
        tree.cell("msa", "scaling_facts", context, 0.9)
    reference = read_reference()
    reference["paper"]["profile"] = "toy"
    found = {finding.name: finding for finding in find(tree.evidence(), reference)}
    assert found["scaling_loss_to_1M"].verdict == "not measured"  # an accuracy never speaks for the judge's score
    assert found["scaling_loss_to_1M"].remark == "its tasks are not in this profile"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at_most": 9, "above": 1}, "one of the keys"),
        ({"statistic": "median"}, "unknown name 'median'"),
        ({"publishd": 1}, "did you mean 'published'"),
    ],
)
def test_a_broken_claim_is_named(tmp_path: Path, change: dict, message: str) -> None:
    content = yaml.safe_load(REFERENCE.read_text())
    content["claims"] = {"broken": {**content["claims"]["scaling_loss_to_1M"], **change}}
    path = tmp_path / "reference.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as raised:
        read_reference(path)
    assert "claims: broken" in str(raised.value)


def test_the_published_numbers_agree_with_one_another() -> None:
    reference = read_reference()
    curve = dict(zip(reference["scaling"]["contexts"], reference["scaling"]["series"]["MSA-4B"], strict=True))
    claims = reference["claims"]
    assert claims["scaling_loss_to_100M"].published == pytest.approx(100 * (1 - curve["100M"] / curve["16K"]), abs=0.05)
    assert claims["scaling_loss_to_1M"].published == pytest.approx(100 * (1 - curve["1M"] / curve["16K"]), abs=0.05)
    quality = reference["quality"]["rows"]
    best = max(quality["RAG, Qwen3-4B"])
    assert claims["gain_over_rag_dense"].published == pytest.approx(100 * (quality["MSA"][0] / best - 1), abs=0.05)
    rows = reference["ablation"]["rows"]
    published = rows["MSA, after SFT stage 1"][1] / rows["without Memory Interleave"][1]
    assert claims["interleave_largest"].published == pytest.approx(published, abs=0.005)


def test_intervals_as_text() -> None:
    assert show(Interval(2.04, 1.0, 3.06, 10, ""), " %") == "2.0 % [1.0, 3.1]"
    assert show(Interval(float("inf"), 10.5, float("inf"), 10, ""), " x") == "∞ x [10.50, ∞]"
    assert show(Interval(float("nan"), -float("inf"), 100, 10, ""), " %") == "undefined (0 against 0) [-∞, 100.0]"


def test_a_model_that_knows_nothing_gets_no_verdict(new_tree: Callable) -> None:
    tree = new_tree()
    for context in ("16K", "1M"):
        tree.cell("msa", "scaling_facts", context, 0.0)
    found = {finding.name: finding for finding in find(tree.evidence(), read_reference())}
    assert found["scaling_loss_to_1M"].verdict == "inconclusive"


def test_a_role_is_played_by_the_first_of_its_systems_that_the_profile_has() -> None:
    for systems, ours in (((), "msa"), (("msa_stored",), "msa_stored"), (("msa_stored", "msa"), "msa")):
        reference = read_reference(systems=systems)
        claim = reference["claims"]["scaling_loss_to_100M"]
        assert reference["roles"]["ours"] == claim.first.system == claim.second.system == ours
    assert read_reference()["claims"]["interleave_smallest"].second.system == "msa_no_interleave"
