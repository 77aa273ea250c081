"""Probing a judge against a server on loopback that errs at known rates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from msa_base.endpoint import Endpoint
from msa_base.records import Question
from msa_base.specs import JudgeSpec
from msa_base.stand_in import StandIn
from reports.statistics import mean_interval
from tasks.stages import probe
from tests.canned import canned

GOLD = [{"question_id": f"q{n}", "answers": [f"answer {n}"], "rejected": []} for n in range(100, 164)]
QUESTIONS = [Question(row["question_id"], f"What is {row['question_id']}?", "", 8) for row in GOLD]


def test_a_probe_recovers_the_rates_at_which_a_judge_errs(tmp_path: Path) -> None:
    stand_in = StandIn(false_pass=0.25, false_fail=0.1)
    with canned(stand_in.reply) as served:
        specs = {"digits": JudgeSpec(served.url, "m"), "words": JudgeSpec(served.url, "m", rubric="yes_no")}
        endpoints = {name: Endpoint(spec, tmp_path / name) for name, spec in specs.items()}
        rows = probe.probe_task(QUESTIONS, GOLD, "contains", endpoints)
    assert Counter((row["judge"], row["probe"]) for row in rows) == {
        (judge, sort): probe.PROBED for judge in specs for sort in (probe.RIGHT, probe.WRONG, probe.EMPTY)
    }
    assert {row["status"] for row in rows} == {"ok"} and {row["value"] for row in rows} == {0, 5}
    planted = {probe.RIGHT: 0.9, probe.WRONG: 0.25, probe.EMPTY: 0.25}
    for sort, share in planted.items():
        passed = [row["value"] == 5 for row in rows if row["probe"] == sort]
        found = mean_interval(passed)
        assert found.low <= share <= found.high, sort


def test_what_is_wrong_is_never_a_reference() -> None:
    gold = [
        {"question_id": "a", "answers": ["Paris", "the city of Paris"]},
        {"question_id": "b", "answers": ["paris"]},  # right for the first as well
        {"question_id": "c", "answers": []},  # has no reference: nothing is known to be right
        {"question_id": "d", "answers": ["Rome"]},
    ]
    found = {(row["question_id"], sort): text for row, sort, text in probe.probes(gold, "contains")}
    assert found["a", "wrong"] == found["b", "wrong"] == "Rome" and found["d", "wrong"] == "Paris"
    assert found["a", "right"] == "Paris" and not any(name == "c" for name, _ in found)
    assert {text for (_, sort), text in found.items() if sort == "empty"} == {""}
    whole = [{"question_id": "a", "answers": ["x1", "x2"]}]  # every one is wanted, and there is no other question
    assert [(sort, text) for _, sort, text in probe.probes(whole, "coverage")] == [("right", "x1; x2"), ("empty", "")]
