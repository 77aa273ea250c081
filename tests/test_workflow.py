"""The workflow end to end: what runs, what does not run again, what an interruption and a bad input leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.workflow import Progress

ROOT = Path(__file__).parent.parent
PACKAGES = ("configs", "msa", "tasks", "baselines", "reports")

# Stands in for every command: writes what the Snakefile expects of it, and notes that it was called.
STUB = """
import sys, time
from pathlib import Path
from configs.load import load
from configs.paths import Paths

def main(module):
    words = sys.argv[1:]
    options = {key[2:]: value for key, value in zip(words, words[1:]) if key.startswith("--")}
    experiment, paths = load(options["profile"], options["configs"]), Paths.of(options["profile"], options["results"])
    name = module.partition(".")[2]
    label = " ".join([module, *(options[key] for key in ("corpus", "task", "samples", "model", "index", "system") if key in options)])
    if label in Path("bad").read_text():
        print("reading\\nerror: some.parquet: not a readable Parquet file; delete it")
        sys.exit(2)
    if label in Path("slow").read_text():
        print(" 40%|####      | 4/10", flush=True)
        time.sleep(60)
    contexts = experiment.profile.contexts
    files = {
        "sources": lambda: [paths.prose / f"{split}" for split in ("train.parquet", "evaluation.parquet", "sources.json")],
        "vocabulary": lambda: [paths.tokenizer],
        "prepare": lambda: [paths.corpus(options["corpus"])] if words[0] == "corpus" else [
            paths.prepared(options["task"], context) / f"{table}" for context in contexts
            for table in ("questions.parquet", "overlays.parquet", "gold.parquet", "view.json")
        ],
        "samples": lambda: [paths.samples(options["samples"]) / f"{table}.parquet" for table in ("banks", "samples")],
        "pretrained": lambda: [paths.model(options["model"]) / file for file in ("config.json", "tokenizer.json")],
        "train": lambda: [
            paths.model(options["model"]) / file for file in ("model.safetensors", "config.json", "tokenizer.json", "train.jsonl")
        ],
        "models": lambda: [paths.model(options["model"]) / "reference.json"],
        "index": lambda: [paths.index(options["index"], options["corpus"]) / "index.json"],
        "run": lambda: [paths.cell(options["system"], options["task"], context, 0) / "run.json" for context in contexts],
        "measure": lambda: [paths.latency(options["system"])],
        "summarise": lambda: [paths.summary],
        "build": lambda: [paths.report / "index.html", paths.report / "summary.txt"],
    }
    for path in files.get(name, list)():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(label)
    if name != "check":
        with open("calls", "a") as calls:
            print(label, file=calls)
"""
COMMANDS = (
    "tasks.sources", "tasks.vocabulary", "tasks.prepare", "tasks.samples", "tasks.score", "msa.train", "msa.pretrained",
    "baselines.check", "baselines.models", "baselines.index", "baselines.run", "baselines.measure", "reports.summarise",
    "reports.build", "reports.track",
)  # fmt: skip
PROFILE = {
    "title": "micro",
    "tokenizer": {"kind": "words", "words": 1500},
    "contexts": ["16K", "32K"],
    "tasks": {"niah_prose_s2": 4, "scaling_facts": 16},
    "systems": ["rag_bm25", "msa"],
    "seeds": [0],
    "models": ["backbone", "reader", "msa"],
    "samples": {
        "bare": {"bank_tokens": 3072, "banks": 2, "questions": 16, "bare_share": 1.0},
        "short": {"bank_tokens": 3072, "banks": 2, "questions": 16, "tasks_per_bank": 1},
        "mixed": {"bank_tokens": 3072, "banks": 2, "questions": 16},
        "long": {"bank_tokens": 4096, "banks": 2, "questions": 16},
    },
    "latency": {"task": "scaling_facts", "questions": 1},
}


class Checkout:
    """A copy of the repository to run and to edit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results = root / "results" / "micro"
        root.mkdir()
        shutil.copy(ROOT / "Snakefile", root)
        ignored = shutil.ignore_patterns("__pycache__", "*.tmp")
        shutil.copytree(ROOT / "configs", root / "configs", ignore=ignored)
        self.write("configs/profiles/micro.yaml", PROFILE)

    def write(self, path: str, content: Any) -> None:
        """Write a YAML file."""
        (self.root / path).write_text(yaml.safe_dump(content, sort_keys=False))

    def edit(self, path: str, change: Callable[[Any], None]) -> None:
        """Change a YAML file through a function on its content."""
        content = yaml.safe_load((self.root / path).read_text())
        change(content)
        self.write(path, content)

    def start(self, profile: str = "micro", *arguments: str) -> subprocess.Popen:
        """Start the workflow."""
        command = [sys.executable, "-m", "configs.workflow", "--profile", profile, *arguments]
        environment = {**os.environ, "WANDB_MODE": "offline"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # a job in a shell's background hands on that interrupts are ignored
        heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        return subprocess.Popen(command, cwd=self.root, env=environment, preexec_fn=heed, **pipes)

    def run(self, profile: str = "micro", *arguments: str) -> tuple[int, str]:
        """Run the workflow to its end; exit code and output."""
        process = self.start(profile, *arguments)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    def calls(self) -> list[str]:
        """Stubs called since last asked."""
        path = self.root / "calls"
        found = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return sorted(found)


@pytest.fixture
def whole(tmp_path: Path) -> Checkout:
    """A checkout with everything in it, and models that train for a few steps."""
    checkout = Checkout(tmp_path / "checkout")
    for package in PACKAGES[1:]:
        shutil.copytree(ROOT / package, checkout.root / package, ignore=shutil.ignore_patterns("__pycache__"))

    def shorten(models: Any) -> None:
        for model in models.values():
            for phase in model["params"].get("phases", []):
                phase.update(steps=2, rows=8)

    checkout.edit("configs/models.yaml", shorten)
    return checkout


@pytest.fixture
def stubbed(tmp_path: Path) -> Checkout:
    """A checkout whose commands are stubs: the Snakefile and its runner by themselves."""
    checkout = Checkout(tmp_path / "checkout")
    for name in ("bad", "slow"):
        (checkout.root / name).write_text("")
    (checkout.root / "stub.py").write_text(STUB)
    for command in COMMANDS:
        package, module = command.split(".")
        (checkout.root / package).mkdir(exist_ok=True)
        (checkout.root / package / "__init__.py").touch()
        (checkout.root / package / f"{module}.py").write_text(f"from stub import main\nmain({command!r})\n")
    for figures in ("reference.yaml", "expected.yaml"):
        shutil.copy(ROOT / "reports" / figures, checkout.root / "reports")
    return checkout


def cells(*systems: str) -> list[str]:
    """The calls that belong to systems' entries, and what always follows them."""
    calls = [f"baselines.measure {system}" for system in systems]
    for task in PROFILE["tasks"]:
        calls += [f"{command} {task} {system}" for command in ("baselines.run", "tasks.score") for system in systems]
    return sorted([*calls, "reports.summarise", "reports.build", "reports.track"])


def test_everything_runs_once_and_the_same_command_again_has_nothing_to_do(stubbed: Checkout) -> None:
    code, output = stubbed.run()
    assert code == 0, output
    calls = stubbed.calls()
    assert len(calls) == len(set(calls))
    assert set(cells("rag_bm25", "msa")) < set(calls)
    assert {"msa.train backbone", "baselines.index facts bank", "tasks.prepare prose", "tasks.samples long"} < set(
        calls
    )
    started = time.monotonic()
    code, output = stubbed.run()
    assert code == 0 and "nothing to do" in output
    assert stubbed.calls() == []
    assert time.monotonic() - started < 30


def test_a_changed_entry_reruns_its_own_cells(stubbed: Checkout) -> None:
    assert stubbed.run()[0] == 0
    stubbed.calls()
    stubbed.edit("configs/systems.yaml", lambda content: content["systems"]["rag_bm25"]["params"].update(read_k=3))
    assert stubbed.run()[0] == 0
    assert stubbed.calls() == cells("rag_bm25")
    stubbed.edit("configs/systems.yaml", lambda content: content["systems"]["rag_bm25"].update(title="New name"))
    assert stubbed.run()[0] == 0
    assert stubbed.calls() == ["reports.build"]
    stubbed.edit("configs/tasks.yaml", lambda content: content["tasks"]["niah_prose_s2"].update(metric="contains"))
    assert stubbed.run()[0] == 0
    scores = [f"tasks.score niah_prose_s2 {system}" for system in PROFILE["systems"]]
    assert stubbed.calls() == sorted([*scores, "reports.summarise", "reports.build", "reports.track"])


def test_a_new_system_runs_alone(stubbed: Checkout) -> None:
    assert stubbed.run()[0] == 0
    stubbed.calls()
    stubbed.edit("configs/profiles/micro.yaml", lambda content: content["systems"].append("closed_book"))
    assert stubbed.run()[0] == 0
    assert stubbed.calls() == cells("closed_book")


def test_a_pretrained_model_is_taken_and_not_trained(stubbed: Checkout) -> None:
    stubbed.edit("configs/profiles/micro.yaml", lambda content: content.update(models=["msa", "backbone", {"reader": "smollm2_135m"}]))
    code, output = stubbed.run()
    assert code == 0, output
    calls = stubbed.calls()
    assert [call for call in calls if call.startswith(("msa.train", "msa.pretrained"))] == [
        "msa.pretrained reader", "msa.train backbone", "msa.train msa",
    ]  # fmt: skip
    assert set(cells("rag_bm25", "msa")) < set(calls)
    assert stubbed.run()[0] == 0 and stubbed.calls() == []


def test_chosen_systems_run_alone_with_what_they_need(stubbed: Checkout) -> None:
    code, output = stubbed.run("micro", "--systems", "rag_bm25")
    assert code == 0, output
    calls = stubbed.calls()
    assert [call for call in calls if call.startswith("msa.train")] == ["msa.train backbone", "msa.train reader"]
    assert [call for call in calls if call.startswith("baselines.index")] == []
    assert set(cells("rag_bm25")) <= set(calls) and not any("msa" in call.split()[1:] for call in calls)
    assert stubbed.run("micro", "--systems", "all")[0] == 0
    again = stubbed.calls()
    assert {call for call in cells("msa") if not call.startswith("reports")} <= set(again)
    assert not {call for call in cells("rag_bm25") if not call.startswith("reports")} & set(again)
    code, output = stubbed.run("micro", "--systems", "rag_bm25,mas")
    assert code == 2 and "--systems: unknown name 'mas'; did you mean 'msa'?" in output


def test_a_reference_to_a_model_is_written_and_not_trained(stubbed: Checkout) -> None:
    served = {"kind": "endpoint", "params": {"base_url": "http://localhost:8000/v1", "model": "served"}}
    stubbed.edit("configs/models.yaml", lambda content: content.update(served=served))
    stubbed.edit("configs/profiles/micro.yaml", lambda content: content["models"].append("served"))
    stubbed.edit("configs/systems.yaml", lambda content: content["systems"]["rag_bm25"].update(model="served"))
    code, output = stubbed.run("micro", "--systems", "rag_bm25")
    assert code == 0, output
    calls = stubbed.calls()
    assert "baselines.models served" in calls and not any(call.startswith("msa.train") for call in calls)


def test_bad_input_is_said_in_one_line_and_nothing_is_lost(stubbed: Checkout) -> None:
    (stubbed.root / "bad").write_text("baselines.run scaling_facts rag_bm25")
    code, output = stubbed.run()
    assert code == 2
    assert [line for line in output.splitlines() if "error" in line.lower()] == [
        "error: some.parquet: not a readable Parquet file; delete it"
    ]
    (stubbed.root / "bad").write_text("")
    before = set(stubbed.calls())
    assert stubbed.run()[0] == 0
    again = set(stubbed.calls())
    assert not before & again and "baselines.run scaling_facts rag_bm25" in again


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("configs/profiles/micro.yaml", lambda c: c["systems"].append("rag_bm52"), "did you mean 'rag_bm25'?"),
        ("configs/systems.yaml", lambda c: c["systems"]["msa"].update(modell="msa"), "unknown key 'modell'"),
        ("configs/models.yaml", lambda c: c["msa"].update(sampels=[]), "unknown key 'sampels'"),
    ],
)
def test_a_mistake_in_the_configuration_stops_before_anything_runs(
    stubbed: Checkout, path: str, change: Callable[[Any], None], message: str
) -> None:
    stubbed.edit(path, change)
    code, output = stubbed.run()
    assert code == 2
    assert output.count("\n") == 1 and message in output
    assert stubbed.calls() == [] and not stubbed.results.exists()


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_after_an_interruption_the_same_command_goes_on(stubbed: Checkout, way: signal.Signals) -> None:
    (stubbed.root / "slow").write_text("msa.train msa")
    process = stubbed.start()
    deadline = time.monotonic() + 180
    log = stubbed.results / "_logs" / "train.msa.log"
    while not (log.exists() and "40%" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    assert stubbed.run()[0] == 2  # a second run beside it is refused
    process.send_signal(way)
    process.wait(timeout=120)
    (stubbed.root / "slow").write_text("")
    before = set(stubbed.calls())
    code, output = stubbed.run()
    assert code == 0, output
    again = set(stubbed.calls())
    assert "msa.train msa" in again and not before & again


def jobs(checkout: Checkout) -> set[str]:
    """What the last run of the workflow ran, as rule and wildcards."""
    progress = Progress()
    for line in (checkout.results / "_logs" / "snakemake.log").read_text().splitlines():
        progress.read(line)
    return {job.label for job in progress.started if job.rule != "all"}


def test_a_tiny_experiment_trains_races_and_reports(whole: Checkout) -> None:
    """The real commands from prose to report; answers are worth nothing after so few steps, files are all there."""
    code, output = whole.run()
    assert code == 0, output
    page = (whole.results / "report" / "index.html").read_text()
    assert "rag_bm25" in page or "RAG, BM25" in page
    assert "index.html" in (whole.results / "report" / "summary.txt").read_text()
    for system, task in product(PROFILE["systems"], PROFILE["tasks"]):
        for context in PROFILE["contexts"]:
            cell = whole.results / system / task / context / "seed0"
            assert json.loads((cell / "run.json").read_text())["status"] == "ok"
            assert len((cell / "predictions.jsonl").read_text().splitlines()) == PROFILE["tasks"][task]
    code, output = whole.run()
    assert code == 0 and "nothing to do" in output
    whole.edit("configs/systems.yaml", lambda content: content["systems"]["rag_bm25"]["params"].update(read_k=3))
    before = (whole.results / "msa" / "scaling_facts" / "16K" / "seed0" / "run.json").stat().st_mtime_ns
    code, output = whole.run()
    assert code == 0, output
    assert (whole.results / "msa" / "scaling_facts" / "16K" / "seed0" / "run.json").stat().st_mtime_ns == before
    ran = {label for label in jobs(whole) if label.split()[0] in ("run", "latency", "score")}
    tasks = PROFILE["tasks"]
    assert ran == {"latency rag_bm25", *(f"{rule} rag_bm25 {task}" for rule in ("run", "score") for task in tasks)}
    assert {label.split()[0] for label in jobs(whole)} == {"run", "latency", "score", "summarise", "report", "track"}
    assert not list(whole.results.rglob("*.tmp"))
