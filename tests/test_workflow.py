"""The workflow end to end: what runs, what does not run again, what an interruption and a bad input leave behind."""

from __future__ import annotations

import json
import os
import re
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

from msa_base.paths import SEAL
from msa_base.seal import MadeFrom, Seal
from msa_base.stage_records import HardwareRecord, IndexRecord, LatencyRecord, ViewRecord
from tests.reports.wandb_files import offline_runs

ROOT = Path(__file__).parent.parent
PACKAGES = ("msa_base", "msa", "tasks", "baselines", "reports")

# Stands in for every command: writes the seal that the Snakefile expects of it, and notes that it was called. It is
# plain, for it starts some thirty times in a run: seals are filled into what the checkout wrote beside it.
STUB = """
import hashlib, json, os, signal, sys, time
from pathlib import Path
from msa_base.paths import SEAL, Paths

def seal(path, label):
    made = path.with_name(f"{path.stem}.made")
    made.write_text(label)
    content = json.loads(Path("seals.json").read_text())
    content = content.get(path.name, content[SEAL])
    content["files"] = {made.name: {"sha256": hashlib.sha256(label.encode()).hexdigest(), "bytes": len(label)}}
    content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content))

def main(module):
    words = sys.argv[1:]
    given = {key[2:]: value for key, value in zip(words, words[1:]) if key.startswith("--")}
    options = {"results": "results", **given}
    paths, contexts = Paths.of(options["profile"], options["results"]), ["16K", "32K"]
    name = module.rpartition(".")[2]
    named = ("corpus", "task", "samples", "model", "index", "system")
    label = " ".join([module, *(options[key] for key in named if key in options)])
    if label in Path("bad").read_text():
        print("reading\\nerror: some.parquet: not a readable Parquet file; delete it")
        sys.exit(2)
    if label in Path("slow").read_text():
        print(" 40%|####      | 4/10", flush=True)
        time.sleep(60)
    if label in Path("dead").read_text():
        print("at work", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if label in Path("broken").read_text():
        raise RuntimeError("shape mismatch")
    evaluated = lambda name: [paths.task(options["system"], options["task"]) / name]
    seals = {
        "sources": lambda: [paths.prose / SEAL],
        "vocabulary": lambda: [paths.tokenizer.with_name(SEAL)],
        "prepare": lambda: [paths.corpus(options["corpus"]).with_name(SEAL)] if words[0] == "corpus" else [
            paths.prepared(options["task"], context) / "view.json" for context in contexts
        ],
        "samples": lambda: [paths.samples(options["samples"]) / SEAL],
        "pretrained": lambda: [paths.model(options["model"]) / SEAL],
        "train": lambda: [paths.model(options["model"]) / SEAL],
        "models": lambda: [paths.model(options["model"]) / SEAL],
        "index": lambda: [paths.index(options["index"], options["corpus"]) / "index.json"],
        "run": lambda: evaluated("cells.json"),
        "score": lambda: evaluated("scores.json"),
        "measure": lambda: [paths.latency(options["system"])],
        "summarise": lambda: [paths.summary.with_suffix(".json")],
        "build": lambda: [paths.report / SEAL],
    }
    for path in seals.get(name, list)():
        path.parent.mkdir(parents=True, exist_ok=True)
        seal(path, label)
    if name == "build":
        (paths.report / "summary.txt").write_text(label)
    with open("calls", "a") as calls:
        print(label, file=calls)
"""
MACHINE = HardwareRecord(platform="", cpu="", cores=1, memory_bytes=1, gpus=[])
MADE = {"made_from": MadeFrom(), "threads": 1, "versions": {}, "hardware": MACHINE}
SEALS: dict[str, Seal] = {
    SEAL: Seal(made_from=MadeFrom()),
    "view.json": ViewRecord(made_from=MadeFrom(), corpus="", base_documents=0, context_tokens=1),
    "index.json": IndexRecord(index="", corpus="", kind="", status="ok", **MADE),
    "latency.json": LatencyRecord(profile="", system="", task="", contexts={}, **MADE),
}
# the lines that take a command's place, so that its module can be read as it stands and be run as a stub
RUNS_STUB = """from __future__ import annotations

if __name__ == "__main__":
    from stub import main

    raise SystemExit(main({!r}))
"""
COMMANDS = (
    "tasks.stages.sources", "tasks.stages.vocabulary", "tasks.stages.prepare", "tasks.stages.samples",
    "tasks.stages.score", "msa.training.train",
    "msa.checkpoints.pretrained",
    "baselines.checks.check", "baselines.parts.models", "baselines.drivers.index", "baselines.drivers.run",
    "baselines.drivers.measure", "reports.summarise",
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
# what the real commands run of it
SHORT = {"contexts": ["16K"], "tasks": {"niah_prose_s2": 2, "scaling_facts": 4}}


class Checkout:
    """A copy of the repository to run and to edit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mirror = "disabled"  # WANDB_MODE
        self.results = root / "results" / "micro"

    @classmethod
    def of_repository(cls, root: Path) -> Checkout:
        """Copy the repository's code and configuration, and give it the micro profile."""
        checkout = cls(root)
        root.mkdir()
        shutil.copy(ROOT / "Snakefile", root)
        for folder in ("configs", *PACKAGES):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.tmp"))
        checkout.write("configs/profiles/micro.yaml", PROFILE)
        return checkout

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
        command = [sys.executable, "-m", "msa_base.workflow", "--profile", profile, *arguments]
        environment = {**os.environ, "WANDB_MODE": self.mirror}
        environment.pop("PYTHONPATH", None)  # this checkout's own modules run, the stubs among them
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # a job in a shell's background hands on that interrupts are ignored
        heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        return subprocess.Popen(command, cwd=self.root, env=environment, preexec_fn=heed, **pipes)

    def run(self, profile: str = "micro", *arguments: str) -> tuple[int, str]:
        """Run the workflow to its end; exit code and output."""
        process = self.start(profile, *arguments)
        output, _ = process.communicate(timeout=3600)  # of soaks on a busy machine
        return process.returncode, output

    def dry_run(self) -> str:
        """What Snakemake's dry run says."""
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--config", "profile=micro"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout
        return done.stdout + done.stderr

    def looks(self, *options: str, profile: str = "micro") -> dict[str, str]:
        """What plain Snakemake says under each option, all at the same time."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, "-m", "snakemake", "--config", f"profile={profile}"]
        begun = {
            option: subprocess.Popen([*command, option], cwd=self.root, env=environment, **pipes) for option in options
        }
        return {option: process.communicate(timeout=240)[0] for option, process in begun.items()}

    def everything(self) -> dict[str, Any]:
        """Every file, folder and link of all results, with its time and what it holds."""
        found = sorted((self.root / "results").rglob("*"))
        times = {path: path.lstat().st_mtime_ns for path in found}
        return {str(path): (times[path], path.read_bytes() if path.is_file() else None) for path in found}

    def files(self) -> dict[Path, int]:
        """The files among the results, logs aside, and when each was changed."""
        found = (path for path in self.results.rglob("*") if "_logs" not in path.parts)
        return {path: path.stat().st_mtime_ns for path in found if path.is_file()}

    def calls(self) -> list[str]:
        """Stubs called since last asked."""
        path = self.root / "calls"
        found = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return sorted(found)


@pytest.fixture
def whole(tmp_path: Path) -> Checkout:
    """A checkout with everything in it, and models that train for a few steps."""
    checkout = Checkout.of_repository(tmp_path / "checkout")

    def shorten(models: Any) -> None:
        for model in models.values():
            for phase in model["params"].get("phases", []):
                phase.update(steps=2, rows=8)

    checkout.edit("configs/models.yaml", shorten)
    checkout.edit("configs/profiles/micro.yaml", lambda content: content.update(SHORT))
    return checkout


def stub_checkout(root: Path) -> Checkout:
    """A checkout whose commands are stubs: the Snakefile and its runner by themselves."""
    checkout = Checkout.of_repository(root)
    for name in ("bad", "slow", "dead", "broken"):
        (checkout.root / name).write_text("")
    (checkout.root / "stub.py").write_text(STUB)
    seals = {name: {"format": seal.FORMAT, **seal.model_dump(mode="json")} for name, seal in SEALS.items()}
    (checkout.root / "seals.json").write_text(json.dumps(seals))
    for command in COMMANDS:
        path = checkout.root / f"{command.replace('.', '/')}.py"
        real = path.read_text()
        assert real.count("from __future__ import annotations\n") == 1
        path.write_text(real.replace("from __future__ import annotations\n", RUNS_STUB.format(command)))
    return checkout


@pytest.fixture
def stubbed(tmp_path: Path) -> Checkout:
    """A checkout of stubs in which nothing ran yet."""
    return stub_checkout(tmp_path / "checkout")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str]:
    """A checkout of stubs after its first run, and what that printed. Not to be changed: :func:`finished` copies it."""
    checkout = stub_checkout(tmp_path_factory.mktemp("finished") / "checkout")
    code, output = checkout.run()
    assert code == 0, output
    return checkout, output


@pytest.fixture
def finished(first_run: tuple[Checkout, str], tmp_path: Path) -> Checkout:
    """A checkout of stubs in which everything ran once; its calls were taken."""
    shutil.copytree(first_run[0].root, tmp_path / "checkout", symlinks=True)
    checkout = Checkout(tmp_path / "checkout")
    checkout.calls()
    return checkout


def cells(*systems: str) -> list[str]:
    """The calls that belong to systems' entries, and what always follows them."""
    calls = [f"baselines.drivers.measure {system}" for system in systems]
    for task in PROFILE["tasks"]:
        calls += [
            f"{command} {task} {system}"
            for command in ("baselines.drivers.run", "tasks.stages.score")
            for system in systems
        ]
    return sorted([*calls, "reports.summarise", "reports.build"])


def test_everything_runs_once_and_the_same_command_again_has_nothing_to_do(
    first_run: tuple[Checkout, str], finished: Checkout
) -> None:
    output = first_run[1]
    calls = (first_run[0].root / "calls").read_text().splitlines()
    assert len(calls) == len(set(calls)) == len(jobs(output))
    assert re.search(r"^(\d+)/\1 all; about 00:00 left\n\1 jobs done$", output, re.MULTILINE)
    assert set(cells("rag_bm25", "msa")) < set(calls)
    assert {
        "msa.training.train backbone",
        "baselines.drivers.index facts bank",
        "tasks.stages.prepare prose",
        "tasks.stages.samples long",
    } < set(calls)
    code, output = finished.run()
    assert code == 0 and "nothing to do" in output
    assert finished.calls() == []


def test_a_changed_entry_reruns_its_own_cells(finished: Checkout) -> None:
    finished.edit("configs/systems.yaml", lambda content: content["systems"]["rag_bm25"]["params"].update(read_k=3))
    assert finished.run()[0] == 0
    assert finished.calls() == cells("rag_bm25")
    finished.edit("configs/systems.yaml", lambda content: content["systems"]["rag_bm25"].update(title="New name"))
    assert finished.run()[0] == 0
    assert finished.calls() == ["reports.build"]
    finished.edit("configs/tasks.yaml", lambda content: content["tasks"]["niah_prose_s2"].update(metric="contains"))
    assert finished.run()[0] == 0
    scores = [f"tasks.stages.score niah_prose_s2 {system}" for system in PROFILE["systems"]]
    assert finished.calls() == sorted([*scores, "reports.summarise", "reports.build"])


def test_an_extending_profile_uses_the_trained_models_of_the_other(finished: Checkout) -> None:
    child = {"extends": "micro", "title": "child", "tasks": {"scaling_facts": 16}, "systems": ["msa"]}
    finished.write("configs/profiles/child.yaml", child)
    code, output = finished.run("child")
    assert code == 0, output
    made = ("msa.training.train", "tasks.stages.samples", "tasks.stages.vocabulary", "tasks.stages.sources")
    assert (calls := finished.calls()) and not [call for call in calls if call.startswith(made)]
    assert (finished.root / "results" / "child" / "_models" / "msa" / "seal.json").exists()
    changed = {**child, "samples": {"long": {"bank_tokens": 8192, "banks": 2, "questions": 16}}}
    finished.write("configs/profiles/child.yaml", changed)
    assert finished.run("child")[0] == 0
    calls = finished.calls()
    # the backbone is made of other samples, so it is still shared
    assert "tasks.stages.samples long" in calls and "msa.training.train msa" in calls
    assert "msa.training.train backbone" not in calls
    assert not (finished.results / "_models" / "msa").is_symlink()


def test_what_is_missing_or_damaged_is_made_anew_and_nothing_else(finished: Checkout) -> None:
    shutil.rmtree(finished.results / "rag_bm25")
    (finished.results / "msa" / "latency.made").write_text("edited")
    (finished.results / "_models" / "reader" / "seal.json").unlink()
    (finished.results / "_data" / "_corpora" / "facts" / "seal.made").unlink()
    before = finished.files()
    shown = finished.dry_run()
    assert finished.files() == before and finished.calls() == []
    broken = re.findall(r"^a run makes anew, .*: (\S+): ", shown, re.MULTILINE)
    assert {Path(path).name for path in broken} == {"latency.made", "seal.made"}
    assert {"train", "run"} <= set(re.findall(r"^rule (\w+):", shown, re.MULTILINE))
    code, output = finished.run()
    assert code == 0, output
    calls = finished.calls()
    assert set(cells("rag_bm25")) | {"baselines.drivers.measure msa", "msa.training.train reader"} <= set(calls)
    assert "tasks.stages.prepare facts" in calls and "msa.training.train msa" not in calls
    log = (finished.results / "_logs" / "snakemake.log").read_text()
    assert "latency.made: has 6 bytes, 29 were sealed" in log and "seal.made: is missing" in log
    assert finished.run()[0] == 0 and finished.calls() == []


def test_a_look_says_what_is_broken_and_changes_nothing_below_the_results(finished: Checkout) -> None:
    (finished.results / "msa" / "latency.made").write_text("edited")
    (finished.results / "_logs" / "digests.json").unlink()
    (finished.results / "_data" / ".half.99999999.tmp").write_text("")  # of a process that was killed
    child = {"extends": "micro", "title": "child", "tasks": {"scaling_facts": 16}, "systems": ["msa"]}
    finished.write("configs/profiles/child.yaml", child)
    before = finished.everything()
    said = finished.looks("--summary", "--lint")  # a dry run: the test above
    taken = finished.looks("--dry-run", profile="child")["--dry-run"]
    assert finished.everything() == before and finished.calls() == []
    for option, words in said.items():
        assert f"{Path('results') / 'micro' / 'msa' / 'latency.made'}: has 6 bytes" in words, option
    assert "a run takes from profile micro: results/child/_models/msa" in taken


def test_edited_code_runs_what_depends_on_it(finished: Checkout) -> None:
    def edit(path: str, old: str, new: str) -> list[str]:
        text = (finished.root / path).read_text()
        assert old in text
        (finished.root / path).write_text(text.replace(old, new, 1))
        assert finished.run()[0] == 0
        return finished.calls()

    assert edit("baselines/bm25.py", '"""', '"""Another word. ') == []
    assert edit("baselines/bm25.py", 'stage = "bm25"', 'stage = "bm26"') == cells("rag_bm25")
    assert edit("msa/generation/generate.py", "self.done = False", "self.done = 0") == cells("msa")
    assert edit("msa/generation/decode.py", "class Session:", "class Session:\n    x = 1\n") == cells("rag_bm25", "msa")


def test_a_new_system_runs_alone(finished: Checkout) -> None:
    finished.edit("configs/profiles/micro.yaml", lambda content: content["systems"].append("closed_book"))
    assert finished.run()[0] == 0
    assert finished.calls() == cells("closed_book")


def test_a_pretrained_model_is_taken_and_not_trained(stubbed: Checkout) -> None:
    stubbed.edit(
        "configs/profiles/micro.yaml",
        lambda content: content.update(models=["msa", "backbone", {"reader": "smollm2_135m"}]),
    )
    code, output = stubbed.run()
    assert code == 0, output
    calls = stubbed.calls()
    assert [call for call in calls if call.startswith(("msa.training.train", "msa.checkpoints.pretrained"))] == [
        "msa.checkpoints.pretrained reader", "msa.training.train backbone", "msa.training.train msa",
    ]  # fmt: skip
    assert set(cells("rag_bm25", "msa")) < set(calls)
    assert stubbed.run()[0] == 0 and stubbed.calls() == []


def test_chosen_systems_run_alone_with_what_they_need(stubbed: Checkout) -> None:
    code, output = stubbed.run("micro", "--systems", "rag_bm25")
    assert code == 0, output
    calls = stubbed.calls()
    assert [call for call in calls if call.startswith("msa.training.train")] == [
        "msa.training.train backbone",
        "msa.training.train reader",
    ]
    assert [call for call in calls if call.startswith("baselines.drivers.index")] == []
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
    assert "baselines.parts.models served" in calls and not any(call.startswith("msa.training.train") for call in calls)


def test_bad_input_is_said_in_one_line_and_nothing_is_lost(stubbed: Checkout) -> None:
    (stubbed.root / "bad").write_text("baselines.drivers.run scaling_facts rag_bm25")
    code, output = stubbed.run()
    assert code == 2
    assert [line for line in output.splitlines() if "error" in line.lower()] == [
        "error: some.parquet: not a readable Parquet file; delete it"
    ]
    (stubbed.root / "bad").write_text("")
    before = set(stubbed.calls())
    assert stubbed.run()[0] == 0
    again = set(stubbed.calls())
    assert not before & again and "baselines.drivers.run scaling_facts rag_bm25" in again


@pytest.mark.parametrize(
    ("way", "said"), [("dead", "SIGKILL, run the same command again"), ("broken", "RuntimeError: shape mismatch")]
)
def test_a_job_that_fails_without_a_message_is_shown_by_its_last_words(stubbed: Checkout, way: str, said: str) -> None:
    (stubbed.root / way).write_text("msa.training.train backbone")
    code, output = stubbed.run()
    assert code == 1 and said in output
    last = output.splitlines()[-1]
    assert last.startswith("error: ") and last.endswith("results/micro/_logs/train.backbone.log")


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


@pytest.mark.parametrize("where", ["raise wrong", "def broken(w):\n    raise wrong\n\nrule other:\n    input: broken"])
def test_bad_input_that_the_snakefile_meets_is_said_in_one_line(stubbed: Checkout, where: str) -> None:
    text = "\nfrom msa_base.errors import UserError\nwrong = UserError('a.yaml: key k: mend it')\n" + where + "\n"
    with open(stubbed.root / "Snakefile", "a") as snakefile:
        snakefile.write(text)
    code, output = stubbed.run("micro", "other" if "rule other" in where else "all")
    assert code == 2 and stubbed.calls() == []
    assert [line for line in output.splitlines() if "error" in line] == ["error: a.yaml: key k: mend it"]


def test_make_checks_first_and_ends_with_the_summary(stubbed: Checkout) -> None:
    """The checks of other layers are the Makefile's; what they refuse never starts the workflow."""
    shutil.copy(ROOT / "Makefile", stubbed.root)
    command = ["make", "reproduce", f"BIN={Path(sys.executable).parent}", "READY=", "PROFILE=micro"]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    environment.pop("PYTHONPATH", None)

    def make() -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=stubbed.root, env=environment, capture_output=True, text=True, timeout=240)

    (stubbed.root / "bad").write_text("baselines.checks.check")
    done = make()
    assert done.returncode == 2 and stubbed.calls() == [] and not stubbed.results.exists()
    assert "error: some.parquet" in done.stdout
    (stubbed.root / "bad").write_text("")
    done = make()
    assert done.returncode == 0, done.stderr
    calls = stubbed.calls()
    assert {"baselines.checks.check", "reports.track", *cells("rag_bm25", "msa")} < set(calls)
    assert done.stdout.endswith((stubbed.results / "report" / "summary.txt").read_text())


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_after_an_interruption_the_same_command_goes_on(stubbed: Checkout, way: signal.Signals) -> None:
    (stubbed.root / "slow").write_text("msa.training.train msa")
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
    assert "msa.training.train msa" in again and not before & again


def jobs(output: str) -> set[str]:
    """What a run of the workflow said that it ran, as rule and wildcards."""
    return set(re.findall(r"^\d+/\d+ (.+); about .* left$", output, re.MULTILINE)) - {"all"}


def test_a_tiny_experiment_trains_races_and_reports(whole: Checkout) -> None:
    """The real commands from prose to report; answers are worth nothing after so few steps, files are all there."""
    whole.mirror = "offline"
    code, output = whole.run()
    assert code == 0, output
    assert re.search(r"^Weights & Biases: \d+ to send: make wandb-sync PROFILE=micro$", output, re.MULTILINE)
    mirrored = offline_runs(whole.results / "wandb")
    kinds = {"workflow", "report", "train/msa", "msa/scaling_facts/16K/seed0", "rag_bm25/niah_prose_s2/16K/seed0"}
    assert kinds < mirrored.keys()
    assert len(mirrored["train/msa"].history) == len(
        (whole.results / "_models/msa/train.jsonl").read_text().splitlines()
    )
    assert mirrored["workflow"].history[-1]["jobs_done"] == mirrored["workflow"].history[-1]["jobs"]
    assert mirrored["msa/scaling_facts/16K/seed0"].used.keys() >= {"micro-msa", "micro-bank-facts"}
    page = (whole.results / "report" / "index.html").read_text()
    assert "rag_bm25" in page or "RAG, BM25" in page
    assert "index.html" in (whole.results / "report" / "summary.txt").read_text()
    for system, (task, questions) in product(PROFILE["systems"], SHORT["tasks"].items()):
        cell = whole.results / system / task / "16K" / "seed0"
        assert json.loads((cell / "run.json").read_text())["status"] == "ok"
        assert len((cell / "predictions.jsonl").read_text().splitlines()) == questions
    code, output = whole.run()
    assert code == 0 and "nothing to do" in output
    whole.edit("configs/systems.yaml", lambda content: content["systems"]["rag_bm25"]["params"].update(read_k=3))
    before = (whole.results / "msa" / "scaling_facts" / "16K" / "seed0" / "run.json").stat().st_mtime_ns
    code, output = whole.run()
    assert code == 0, output
    assert (whole.results / "msa" / "scaling_facts" / "16K" / "seed0" / "run.json").stat().st_mtime_ns == before
    ran = {label for label in jobs(output) if label.split()[0] in ("run", "latency", "score")}
    tasks = SHORT["tasks"]
    assert ran == {"latency rag_bm25", *(f"{rule} rag_bm25 {task}" for rule in ("run", "score") for task in tasks)}
    assert {label.split()[0] for label in jobs(output)} == {"run", "latency", "score", "summarise", "report"}
    assert not list(whole.results.rglob("*.tmp"))
