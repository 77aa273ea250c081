"""Judging against a real server on loopback: points, failures apart, replies kept, and what reaches the scores."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from msa_base.endpoint import Endpoint
from msa_base.errors import UserError
from msa_base.load import load
from msa_base.paths import DIRECTORY, Paths
from msa_base.records import Answer, Question
from msa_base.seal import MadeFrom, sealed
from msa_base.specs import EndpointSpec
from msa_base.stage_records import ViewRecord
from msa_base.tables import read_table, write_predictions, write_table
from tasks.stages import judge, probe, score
from tests.canned import canned
from tests.evaluated import write_run


class Judge:
    """A server that replies to each prompt with ``decide(prompt)``: a text, or a status and a message."""

    def __init__(self) -> None:
        self.decide: Callable[[str], Any] = lambda prompt: "5"
        self.bodies: list[dict] = []
        self.url = ""

    def reply(self, body: dict) -> tuple[int, Any]:
        self.bodies.append(body)
        said = self.decide(body["messages"][0]["content"])
        if isinstance(said, tuple):
            return said[0], {"error": {"message": said[1]}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return 200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}], "usage": usage}


@pytest.fixture
def server() -> Iterator[Judge]:
    made = Judge()
    with canned(made.reply) as served:
        made.url = served.url
        yield made


SAID = {"q0": "12345", "q1": "54321", "q2": "", "q3": "the sky", "q4": "7"}


@pytest.fixture
def cell(tmp_path: Path) -> tuple[Path, Path]:
    """A cell with five answers, and its prepared task."""
    place, prepared = tmp_path / "cell", tmp_path / "prepared"
    questions = [Question(name, f"How high is {name}?", "The answer is", 8).__dict__ for name in SAID]
    gold = [
        {"question_id": name, "answers": ["12345"], "gold_doc_ids": [1], "rejected": ["54321"], "group": None}
        for name in SAID
    ]
    write_table("questions", questions, prepared / "questions.parquet")
    write_table("gold", gold, prepared / "gold.parquet")
    view = ViewRecord(
        made_from=MadeFrom(),
        files=sealed(prepared, ["questions.parquet", "gold.parquet"]),
        corpus="facts",
        base_documents=0,
        context_tokens=16384,
    )
    view.write(prepared / "view.json")
    write_predictions([Answer(name, text) for name, text in SAID.items()], place / "predictions.jsonl")
    write_run(place)
    return place, prepared


def endpoint(server: Judge, kept: Path, model: str = "m") -> Endpoint:
    return Endpoint(EndpointSpec(server.url, model, retries=0, parallel=2, timeout_s=5), kept)


def asked(prompt: str) -> str:
    return re.search(r"How high is (q\d)", prompt)[1]


def rows(place: Path) -> dict[tuple[str, str], dict]:
    return {(row["judge"], row["question_id"]): row for row in judge.read_judgments(place / "judgments.jsonl")}


def test_failed_judgments_are_null_and_counted_apart(server, cell, tmp_path) -> None:
    place, prepared = cell
    replies = {"q0": "5", "q1": "1", "q2": "0", "q3": "I would say four", "q4": (500, "broken")}
    server.decide = lambda prompt: replies[asked(prompt)]
    counts = judge.judge_cell(place, prepared, "contains", {"a": endpoint(server, tmp_path / "kept")})
    assert counts == {("a", "ok"): 3, ("a", "unreadable"): 1, ("a", "no_reply"): 1}
    found = rows(place)
    assert [found["a", name]["value"] for name in SAID] == [5, 1, 0, None, None]
    assert found["a", "q3"]["raw"] == "I would say four" and found["a", "q4"]["raw"] is None
    assert len({row["prompt_sha"] for row in found.values()}) == 5
    assert all(body["temperature"] == 0 for body in server.bodies)


def test_judging_again_asks_only_what_failed(server, cell, tmp_path) -> None:
    place, prepared = cell
    server.decide = lambda prompt: (500, "broken") if asked(prompt) == "q4" else "3"
    judges = {"a": endpoint(server, tmp_path / "kept")}
    judge.judge_cell(place, prepared, "contains", judges)
    server.bodies.clear()
    server.decide = lambda prompt: "2"
    judge.judge_cell(place, prepared, "contains", judges)
    assert [asked(body["messages"][0]["content"]) for body in server.bodies] == ["q4"]
    assert [rows(place)["a", name]["value"] for name in SAID] == [3, 3, 3, 3, 2]


def test_one_prompt_of_two_questions_is_paid_once(server, tmp_path) -> None:
    rows = judge.judge_answers(endpoint(server, tmp_path), "j", {"q1": "same text", "q2": "same text", "q3": "other"})
    assert [row["value"] for row in rows] == [5, 5, 5] and len(server.bodies) == 2
    assert rows[0]["prompt_sha"] == rows[1]["prompt_sha"] != rows[2]["prompt_sha"]


WORDS = "several plain words of an answer " * 400  # far more than the one token that the server says it read


@pytest.mark.parametrize(
    ("prompt", "reply", "status"),
    [("a", "<think>5", "ended_in_reasoning"), ("b", "", "empty_reply"), (WORDS, "5", "read_less")],
)
def test_a_judgment_without_a_whole_reply_is_null_and_counted(server, tmp_path, prompt, reply, status) -> None:
    server.decide = lambda asked: reply if asked == prompt else "<think>5? No.</think>\n2"
    rows = judge.judge_answers(endpoint(server, tmp_path), "j", {"q1": prompt, "q2": "other"})
    assert [(row["value"], row["status"]) for row in rows] == [(None, status), (2, "ok")]


def test_a_judge_that_hangs_ends_at_its_limit(server, tmp_path) -> None:
    server.decide = lambda asked: time.sleep(1)
    hasty = Endpoint(EndpointSpec(server.url, "m", retries=1, parallel=4, timeout_s=0.1), tmp_path)
    with pytest.raises(UserError, match=r"j: no reply to any of 20 questions; the first: .* within 0\.1 s"):
        judge.judge_answers(hasty, "j", {f"q{number}": f"text {number}" for number in range(20)})
    assert len(server.bodies) <= 2 * 8


def test_a_judge_that_replies_to_nothing_stops_with_its_reason(server, cell, tmp_path) -> None:
    place, prepared = cell
    server.decide = lambda prompt: (401, "who are you")
    with pytest.raises(UserError, match=r"judges.yaml: a: no reply to any of 5 questions.*who are you"):
        judge.judge_cell(place, prepared, "contains", {"a": endpoint(server, tmp_path / "kept")})
    assert not (place / "judgments.jsonl").exists()


def test_scores_hold_both_judges_and_f1(server, cell, tmp_path) -> None:
    place, prepared = cell
    server.decide = lambda prompt: "4" if asked(prompt) != "q3" else "?"
    judges = {name: endpoint(server, tmp_path / name, name) for name in ("a", "b")}
    judge.judge_cell(place, prepared, "contains", judges)
    identity = {"system": "s", "task": "t", "context": "16K", "seed": 0}
    score.score_cell(place, prepared, "contains", identity, judges=["a", "b"])
    values = {
        (row["metric"], row["question_id"]): row["value"] for row in read_table("scores", place / "scores.parquet")
    }
    assert [values["judge", name] for name in SAID] == [4, 4, 4, None, 4]
    assert [values["judge/b", name] for name in SAID] == [4, 4, 4, None, 4]
    assert values["f1", "q0"] == 1 and values["f1", "q3"] == 0 and values["accuracy", "q0"] == 1
    with pytest.raises(UserError, match="no judgment of 'c' on 'q0'"):
        score.score_cell(place, prepared, "contains", identity, judges=["c"])


def test_a_cell_that_failed_has_no_judgments(server, cell, tmp_path) -> None:
    place, prepared = cell
    write_run(place, "out_of_memory")
    assert not judge.judge_cell(place, prepared, "contains", {"a": endpoint(server, tmp_path / "kept")})
    assert rows(place) == {} and not server.bodies


@pytest.mark.parametrize(
    ("reply", "value"),
    [("5", 5), (" 0\n", 0), ("**4**", 4), ("3.", 3), ("<think>5? no</think>\n2", 2), ("6", None), ("", None),
    ("45", None),
     ("4/5", None), ("Score: 4", None), ("-1", None), ("4.5", None), ("<think>3", None)],
)  # fmt: skip
def test_one_digit_counts_and_nothing_else(reply, value) -> None:
    assert judge.points(reply) == value


def test_the_prompt_has_everything_that_a_judge_needs() -> None:
    question = Question("q", "How high?", "The answer is", 8)
    gold = {"answers": ["1", "2"], "rejected": ["3"]}
    text = judge.prompt(question, gold, Answer("q", " 1 and 2"), "coverage")
    assert "How high?" in text and "All of: 1; 2" in text and "Wrong: 3" in text and "The answer is  1 and 2" in text
    assert "Any one of: 1; 2" in judge.prompt(question, gold, Answer("q", "1"), "contains")
    assert "(no answer)" in judge.prompt(question, gold, Answer("q", " "), "contains")
    assert judge.NO_ANSWER in judge.prompt(question, {"answers": [], "rejected": []}, Answer("q", "1"), "contains")


@pytest.mark.parametrize(
    "content", ["{", '{"value": 9, "judge": "a", "question_id": "q"}', '{"value": 3}', "[1]", '{"judge": "a"}']
)
def test_a_broken_judgments_file_names_itself(tmp_path, content) -> None:
    (tmp_path / "judgments.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match=r"judgments\.jsonl: not a judgments file"):
        list(judge.read_judgments(tmp_path / "judgments.jsonl"))


@pytest.fixture
def commands(server, cell, tmp_path, monkeypatch):
    """Runs a command's main on a profile with one judge; the cell is its cell."""
    configs, results = tmp_path / "configs", tmp_path / "results"
    shutil.copytree(DIRECTORY, configs, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    entries = {"own": {"base_url": server.url, "model": "m", "retries": 0, "input_usd": 1.0}}
    (configs / "judges.yaml").write_text(yaml.safe_dump(entries))
    profile = yaml.safe_load((configs / "profiles" / "scenarios_judged.yaml").read_text())
    profile |= {
        "judges": ["own"],
        "tasks": {"edit_dated": 5},
        "systems": ["oracle"],
        "latency": {"task": "edit_dated", "questions": 1},
    }
    (configs / "profiles" / "judged.yaml").write_text(yaml.safe_dump(profile))
    paths = Paths.of("judged", results)
    shutil.copytree(cell[0], paths.cell("oracle", "edit_dated", "16K", 0))
    shutil.copytree(cell[1], paths.prepared("edit_dated", "16K"))

    def run(module, **changes: Any) -> Path:
        (configs / "profiles" / "judged.yaml").write_text(yaml.safe_dump(profile | changes))
        places = ["--profile", "judged", "--configs", str(configs), "--results", str(results)]
        system = [] if module is probe else ["--system", "oracle"]
        monkeypatch.setattr(sys, "argv", ["command", *places, *system, "--task", "edit_dated"])
        module.main()
        return paths.cell("oracle", "edit_dated", "16K", 0)

    return run


def test_the_commands_judge_and_score_a_profile(commands, server, capsys) -> None:
    server.decide = lambda prompt: "4"
    place = commands(judge)
    assert [row["value"] for row in rows(place).values()] == [4] * 5
    assert "own: 5 ok" in capsys.readouterr().out
    commands(score)
    found = [row for row in read_table("scores", place / "scores.parquet") if row["metric"] == "judge"]
    assert [row["value"] for row in found] == [4.0] * 5
    commands(judge)
    assert "stays" in capsys.readouterr().out
    for seal in place.parents[1].glob("*judgments.json"):  # the seal and its copy
        seal.unlink()
    commands(judge)
    assert "requests 0, kept 5" in capsys.readouterr().out and len(server.bodies) == 5


def test_the_command_probes_the_judges_once(commands, server, capsys) -> None:
    server.decide = lambda prompt: "0" if "(no answer)" in prompt else "5"
    place = commands(probe).parents[3] / "_judges" / "_probes" / "edit_dated" / "probes.jsonl"
    found = [(row["probe"], row["value"]) for row in judge.read_judgments(place)]
    assert sorted(found) == [("empty", 0)] * 5 + [("right", 5)] * 5  # one answer for all: none is another's
    assert "own: requests 10" in capsys.readouterr().out
    commands(probe)
    assert "stays" in capsys.readouterr().out and len(server.bodies) == 10
    with pytest.raises(UserError, match=r"judged\.yaml: key 'judges' is missing"):
        commands(probe, judges=[])


def test_judges_are_checked_with_the_profile(commands, tmp_path) -> None:
    with pytest.raises(UserError, match=r"judged\.yaml: key 'judges' is missing"):
        commands(judge, judges=[])
    for judges, message in ((["owm"], "unknown name 'owm'; did you mean 'own'"), (["own", "own"], "named twice")):
        with pytest.raises(UserError, match=message):
            commands(judge, judges=judges)
    entries = {"own": {"base_url": "nowhere", "model": "m"}}
    (tmp_path / "configs" / "judges.yaml").write_text(yaml.safe_dump(entries))
    with pytest.raises(UserError, match=r"judges\.yaml: own: key 'base_url' must match .*, found 'nowhere'"):
        commands(judge)


def test_the_shipped_judges_are_well_formed() -> None:
    assert list(load("scenarios_judged").judges) == ["gemini_flash", "qwen3_local", "qwen3_local_yes_no"]


def test_a_rubric_reads_its_own_words_alone() -> None:
    assert [judge.points(said, "yes_no") for said in ("yes", "No.", "**YES**", "5", "maybe")] == [5, 0, 5, None, None]
    assert judge.points("yes") is None and judge.points("4.") == 4
    asked = judge.prompt(Question("q", "How?", "", 4), {"answers": ["so"]}, Answer("q", "thus"), "contains", "yes_no")
    assert asked.endswith("Reply with yes or no and nothing else.")
