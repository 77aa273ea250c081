"""Verdicts on hand-made intervals, and findings on hand-made trees."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import reports.check
from msa_base.errors import UserError
from msa_base.load import load
from msa_base.paths import DIRECTORY
from reports import paper_cells
from reports.claims import find, lacking, needed, show, verdict
from reports.published import reference as published
from reports.published.reference import LEDGER, Claim, Least, Measure, Side, read_reference
from reports.published.tables import read_tables
from reports.statistics import Interval
from reports.tables.ledger import ledger

LEAST = Least(questions=32, heads=4, sizes=4, timings=3)


def claim(statistic: str = "gain", published: float = 16.0, **bound: float) -> Claim:
    """A claim with the one bound given."""
    side, measure = Side("msa", "1M"), Measure(["tiny"], "accuracy")
    sides = {"first": side, "second": side, "exact": measure, "miniature": measure}
    words = {"title": "title", "source": "source", "bound_source": "why", "family": "cost"}
    return Claim(published=published, statistic=statistic, **sides, **words, **bound)


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
    assert verdict(claim("loss", 8.8, at_most=9), interval(low, high), exact, LEAST) == word


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
    assert verdict(claim(above=0), interval(low, high), exact, LEAST) == word


def test_no_interval_is_not_measured() -> None:
    assert verdict(claim(above=0), None, True, LEAST) == "not measured"


def test_a_good_point_alone_decides_nothing() -> None:
    measured = Interval(2.0, -3.0, 14.0, 96, "")
    assert verdict(claim("loss", 8.8, at_most=9), measured, False, LEAST) == "inconclusive"
    assert needed(claim("loss", 8.8, at_most=9), measured) == "about 290 questions would decide"  # 96 * (12 / 7)^2
    at_bound = Interval(9.0, -3.0, 14.0, 96, "")
    assert needed(claim("loss", 8.8, at_most=9), at_bound) == "no number of questions decides at this point"


@pytest.mark.parametrize(
    ("n", "units", "word", "said"),
    [
        (32, 32, "holds in miniature", ""),
        (31, 31, "inconclusive", "31 questions, a verdict needs 32"),
        (64, 4, "holds in miniature", ""),
        (64, 3, "inconclusive", "3 heads, a verdict needs 4"),
        (30, 1, "inconclusive", "30 questions, a verdict needs 32; 1 heads, a verdict needs 4"),
    ],
)
def test_a_verdict_needs_questions_and_heads(n: int, units: int, word: str, said: str) -> None:
    measured = Interval(1.5, 1.2, 1.9, n, "", units)
    assert verdict(claim("ratio", 1.2, above=1), measured, False, LEAST) == word
    assert lacking(claim("ratio", 1.2, above=1), measured, LEAST) == said


def test_a_slope_needs_sizes_and_repeated_timings() -> None:
    linear = claim("slope", 1, at_most=1.05)
    assert verdict(linear, Interval(1.0, 0.97, 1.03, 12, "", 4), False, LEAST) == "holds in miniature"
    assert lacking(linear, Interval(1.0, 0.97, 1.03, 4, "", 4), LEAST) == "1 timings a size, a verdict needs 3"
    assert lacking(linear, Interval(1.0, 0.97, 1.03, 9, "", 3), LEAST) == "3 sizes, a verdict needs 4"
    assert needed(linear, Interval(1.0, 0.9, 1.1, 12, "", 4)) == "an interval 2.0 times narrower would decide"


def test_questions_of_few_heads_say_what_would_decide() -> None:
    measured = Interval(1.0, -8.0, 12.0, 512, "", 8)
    assert needed(claim("loss", 8.8, at_most=9), measured) == "about 970 questions in 16 heads would decide"


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


def test_exact_claims_are_measured_on_the_papers_own_tasks(new_tree: Callable, toy_ledger: Path) -> None:
    tree = new_tree()
    for context in ("16K", "32K", "64K", "1M"):
        tree.cell("msa", "scaling_facts", context, 0.9)
    path = tree.root.parent / "ledger.yaml"
    path.write_text(toy_ledger.read_text().replace("[toy, tiny", "[tiny").replace("[paper]", "[toy]"))
    found = {finding.name: finding for finding in find(tree.evidence(), read_reference(path))}
    assert found["scaling_loss_to_1M"].verdict == "not measured"  # an accuracy never speaks for the judge's score


def test_a_claim_of_other_profiles_says_so(new_tree: Callable, toy_ledger: Path) -> None:
    tree = new_tree()
    for context in ("16K", "1M"):
        tree.cell("msa", "scaling_facts", context, 0.9)
    path = tree.root.parent / "ledger.yaml"
    path.write_text(toy_ledger.read_text().replace("[toy, tiny", "[tiny"))
    for finding in find(tree.evidence(), read_reference(path)):
        named = ("for the profiles ", ", ".join([*finding.claim.exact.profiles, *finding.claim.miniature.profiles]))
        assert finding.elsewhere and finding.verdict == "not measured" and finding.remark == "".join(named)


def test_a_task_of_any_module_speaks_for_its_role(new_tree: Callable) -> None:
    tree = new_tree(tasks={"msmarco_scaling": 64}, latency={"task": "msmarco_scaling", "questions": 4})
    for context in ("16K", "1M"):
        tree.cell("msa", "msmarco_scaling", context, 0.9)
    found = {finding.name: finding for finding in find(tree.evidence(), read_reference())}
    assert found["scaling_loss_to_1M"].measured is not None


def test_every_shipped_task_states_a_role_that_the_report_knows() -> None:
    tasks = load("tiny").tasks
    assert [name for name in tasks if tasks[name].role == "needles" and name.startswith("niah_prose_mk")]
    assert tasks["msmarco_scaling"].role == tasks["trec_dl_scaling"].role == "scaling"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at_most": 9, "above": 1}, "one of the keys"),
        ({"statistic": "median"}, "'statistic' must be .*, found 'median'"),
        ({"publishd": 1}, "did you mean 'published'"),
    ],
)
def test_a_broken_claim_is_named(tmp_path: Path, change: dict, message: str) -> None:
    content = yaml.safe_load(LEDGER.read_text())
    content["claims"] = {"broken": {**content["claims"]["scaling_loss_to_1M"], **change}}
    path = tmp_path / "ledger.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as raised:
        read_reference(path)
    assert "claims: broken" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": 32}, "did you mean 'questions'"),
        ({"questions": 0}, "least: key 'questions'"),
        ({"sizes": 2}, "least: key 'sizes'"),
    ],
)
def test_a_broken_least_is_named(tmp_path: Path, change: dict, message: str) -> None:
    content = yaml.safe_load(LEDGER.read_text())
    content["least"] = {**content["least"], **change}
    path = tmp_path / "ledger.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        read_reference(path)


def test_the_published_numbers_agree_with_one_another() -> None:
    reference = read_reference()
    curve = dict(zip(reference.scaling.contexts, reference.scaling.series["MSA-4B"], strict=True))
    claims = reference.claims
    assert claims["scaling_loss_to_100M"].published == pytest.approx(100 * (1 - curve["100M"] / curve["16K"]), abs=0.05)
    assert claims["scaling_loss_to_1M"].published == pytest.approx(100 * (1 - curve["1M"] / curve["16K"]), abs=0.05)
    quality = reference.quality.rows
    best = max(quality["RAG, Qwen3-4B"])
    assert claims["gain_over_rag_dense"].published == pytest.approx(100 * (quality["MSA"][0] / best - 1), abs=0.05)
    rows = reference.ablation.rows
    published = rows["MSA, after SFT stage 1"][1] / rows["without Memory Interleave"][1]
    assert claims["interleave_largest"].published == pytest.approx(published, abs=0.005)


def test_intervals_as_text() -> None:
    assert show(Interval(2.04, 1.0, 3.06, 10, ""), " %") == "2.0 % [1.0, 3.1]"
    assert show(Interval(float("inf"), 10.5, float("inf"), 10, ""), " x") == "no bound [10.50, no bound]"
    assert show(Interval(float("nan"), -float("inf"), 100, 10, ""), " %") == "no ratio: both sides are 0"


def test_a_model_that_knows_nothing_gets_no_verdict(new_tree: Callable) -> None:
    tree = new_tree()
    for context in ("16K", "1M"):
        tree.cell("msa", "scaling_facts", context, 0.0)
    found = {finding.name: finding for finding in find(tree.evidence(), read_reference())}
    assert found["scaling_loss_to_1M"].verdict == "inconclusive"


def test_a_verdict_stands_on_the_level_of_its_family(evidence) -> None:
    reference = read_reference()
    for family in reference.ledger.families:
        found = [it for it in find(evidence, reference) if it.claim.family == family and it.measured]
        decided = sum(it.verdict != "inconclusive" for it in found)
        for it in found:
            assert it.level == pytest.approx(1 - 0.05 * max(decided, 1) / len(found))


def test_the_ledger_has_every_claim_and_no_verdict_without_an_interval(evidence) -> None:
    reference = read_reference()
    table = ledger(find(evidence, reference), reference.ledger).frame
    assert len(table) == len(reference.claims) + len(reference.ledger.statements) >= 35
    assert table["claim"].is_unique and set(table["family"]) == set(reference.ledger.families)
    decided = table[table["verdict"] != "not measured"]
    assert len(decided) >= 8 and decided[["measured", "measured_low", "measured_high"]].notna().all(axis=None)
    assert (decided["n"] > 0).all() and decided["level"].str.endswith("%").all()
    assert (decided.loc[decided["verdict"] == "inconclusive", "needed"] != "").all()
    assert not table[table["verdict"] == "not measured"]["where"].eq("").any()


def test_no_verdict_stands_on_less_than_it_needs(evidence) -> None:
    reference = read_reference()
    decided = [it for it in find(evidence, reference) if it.verdict not in ("inconclusive", "not measured")]
    assert decided and not [it.name for it in decided if lacking(it.claim, it.measured, reference.least)]


def test_a_rehearsal_gets_no_verdict(new_tree: Callable) -> None:
    tree = new_tree(rehearsal=True, contexts=["16K"], tasks={"scaling_facts": 64}, systems=["rag_bm25", "msa"])
    tree.prepare("scaling_facts")
    for system, chance in (("rag_bm25", 0.1), ("msa", 0.9)):
        tree.cell(system, "scaling_facts", "16K", chance)
    evidence = tree.evidence()
    reference = read_reference(systems=evidence.systems)
    assert {it.verdict for it in find(evidence, reference)} == {"not measured"}
    found = paper_cells.cells(read_tables()["figure-1"], evidence, reference)
    assert {paper_cells.verdict(it, reference) for it in found if it.measured} == {"rehearsal"}


def test_gains_of_the_ledger_are_those_of_its_sources() -> None:
    """Figures that the sources spell out as "a against b" make the published gain, loss or difference."""
    checked = 0
    for claim in read_reference().claims.values():
        if spelt := re.search(r"(\d\.\d+) (against|to) (\d\.\d+)", claim.source):
            first, second = float(spelt[1]), float(spelt[3])
            made = {
                "gain": 100 * (first / second - 1),
                "ratio": first / second,
                "difference": 100 * (first - second),
                "loss": 100 * (1 - second / first),
            }[claim.statistic]
            assert claim.published == pytest.approx(made, abs=0.06), claim.title
            checked += 1
    assert checked > 25


def test_a_test_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "ledger.yaml"
    path.write_text(LEDGER.read_text().replace("::test_any_number_of", "::test_any_numbr_of"))
    monkeypatch.setattr(published, "LEDGER", path)
    with pytest.raises(UserError, match=r"two_gpus: tests: .*_any_numbr_.* did you mean 'msa/memory/test_sharded"):
        reports.check.check(DIRECTORY)
    monkeypatch.setattr(reports.check, "TESTS", tmp_path / "none")  # installed without the repository
    reports.check.check(DIRECTORY)


def test_a_role_is_played_by_the_first_of_its_systems_that_the_profile_has() -> None:
    for systems, ours in (((), "msa"), (("msa_stored",), "msa_stored"), (("msa_stored", "msa"), "msa")):
        reference = read_reference(systems=systems)
        claim = reference.claims["scaling_loss_to_100M"]
        assert reference.played_by["ours"] == claim.first.system == claim.second.system == ours
    assert read_reference().claims["interleave_smallest"].second.system == "msa_no_interleave"
