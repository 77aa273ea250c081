"""Probing a judge against a server on loopback that errs at known rates."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

from msa_base.endpoint import Endpoint
from msa_base.records import Question
from msa_base.specs import JudgeSpec
from tasks.stages import probe
from tests.canned import canned

GOLD = [{"question_id": f"q{n}", "answers": [f"answer {n}"], "rejected": []} for n in range(100, 164)]
QUESTIONS = [Question(row["question_id"], f"What is {row['question_id']}?", "", 8) for row in GOLD]


def errs(prompt: str, share: float) -> bool:
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) / 2**32 < share


def grade(prompt: str) -> bool:
    """Whether an answer passes: right ones always do, wrong ones in a quarter of all cases, empty ones never."""
    wanted, said = (re.search(f"<{mark}>\n(.*?)\n</{mark}>", prompt, re.DOTALL)[1] for mark in ("reference", "answer"))
    return said == wanted or (said != "(no answer)" and errs(prompt, 0.25))


def test_a_probe_recovers_the_rates_at_which_a_judge_errs(tmp_path: Path) -> None:
    def reply(body: dict) -> tuple[int, dict]:
        prompt = body["messages"][0]["content"]
        said = ("yes" if grade(prompt) else "no") if "yes or no" in prompt else "5" if grade(prompt) else "1"
        return 200, {
            "choices": [{"message": {"content": said}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        }

    with canned(reply) as served:
        specs = {"digits": JudgeSpec(served.url, "m"), "words": JudgeSpec(served.url, "m", rubric="yes_no")}
        endpoints = {name: Endpoint(spec, tmp_path / name) for name, spec in specs.items()}
        rows = probe.probe_task(QUESTIONS, GOLD, "contains", endpoints)
        planted = Counter(grade(prompt) for prompt in served.prompts if "yes or no" in prompt)
    assert Counter((row["judge"], row["probe"]) for row in rows) == {
        (judge, sort): probe.PROBED for judge in specs for sort in (probe.RIGHT, probe.WRONG, probe.EMPTY)
    }
    passed = Counter((row["judge"], row["probe"]) for row in rows if row["value"] >= 4)
    assert passed["words", probe.RIGHT] == passed["digits", probe.RIGHT] == probe.PROBED
    assert passed["words", probe.EMPTY] == passed["digits", probe.EMPTY] == 0
    assert 0 < passed["words", probe.WRONG] == planted[True] - probe.PROBED < probe.PROBED / 2
    assert {row["status"] for row in rows} == {"ok"} and {row["value"] for row in rows} == {0, 1, 5}


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
