"""One run at a time in a results directory, whether make or plain snakemake began it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from msa_base import lock
from msa_base.errors import UserError, run_command
from msa_base.load import load
from msa_base.paths import Paths
from tests.test_workflow import Checkout, stub_checkout


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Locks of this test's own, which end with it."""
    monkeypatch.setattr(lock, "_HELD", {})
    yield
    lock.drop()


def snakemake(checkout: Checkout, *arguments: str) -> subprocess.CompletedProcess:
    """Plain snakemake."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments, "--config", "profile=micro"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=checkout.root, env=environment, capture_output=True, text=True, timeout=240)


def test_no_second_run_begins_beside_a_first(tmp_path: Path, held: None) -> None:
    checkout = stub_checkout(tmp_path / "checkout")
    first = lock.hold(load("micro", checkout.root / "configs"), Paths.of("micro", checkout.root / "results"))
    assert first.closed is False
    done = snakemake(checkout, "prose")
    assert done.returncode != 0 and "another run is at work there; wait for it or stop it" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    code, output = checkout.run()
    assert code == 2 and output.splitlines()[-1].endswith("another run is at work there; wait for it or stop it")
    assert checkout.calls() == []


def test_a_process_holds_a_lock_once_and_its_children_count_it_as_held(tmp_path: Path, held: None) -> None:
    experiment, paths = load("smoke"), Paths.of("smoke", tmp_path)
    assert lock.hold(experiment, paths) is lock.hold(experiment, paths)
    again = [sys.executable, "-c", "import sys; from tests.test_lock import other; other(sys.argv[1])", str(tmp_path)]
    done = subprocess.run(again, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert "another run is at work there" in done.stdout


def other(results: str) -> None:
    """What another process is told."""
    try:
        lock.hold(load("smoke"), Paths.of("smoke", results))
    except UserError as error:
        print(error)


def test_a_path_with_a_brace_is_refused_and_any_other_may_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a path with a brace"):
        Paths.of("tiny", tmp_path / "{x}")
    with pytest.raises(UserError, match="no UTF-8"):
        Paths.of("tiny", os.fsdecode(b"/tmp/a\xffb"))
    for name in ("with space", "it's", '"quoted"', "$HOME", "é*;&|", "-dash", "#"):
        assert Paths.of("tiny", tmp_path / name).root == tmp_path / name / "tiny"


@pytest.mark.parametrize("place", ["file/x", "taken"])
def test_results_that_cannot_be_written_are_one_line(tmp_path: Path, place: str, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "smoke").write_text("")
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: lock.hold(load("smoke"), Paths.of("smoke", tmp_path / place)) and None)
    said = capfd.readouterr().err
    assert ended.value.code == 2 and str(tmp_path / place) in said and said.count("\n") == 1 and "name another" in said


@pytest.mark.parametrize("target", ["prose", pytest.param("all", marks=pytest.mark.soak)])
def test_a_checkout_and_results_under_an_odd_name_work(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stray file appears, and no home is needed."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, "/dev/null")
    odd = tmp_path / """sp ace 'q" $HOME é;*"""
    odd.mkdir()
    checkout = stub_checkout(odd / "check out")
    code, output = checkout.run("micro", target, "--results", str(odd / "re sults"))
    assert code == 0, output
    made = {"prose": "_data/prose/seal.json", "all": "report/seal.json"}
    assert (odd / "re sults" / "micro" / made[target]).exists()
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]
    assert {path.name for path in odd.iterdir()} == {"check out", "re sults"}


def test_make_passes_any_name_as_one_word() -> None:
    odd = """a b'c"d$HOME `e`;f"""
    command = ["make", "-n", "plan", "READY=", "BIN=echo", f"DATA={odd}", f"PROFILE={odd}"]
    root = Path(__file__).parent.parent
    recipe = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout.splitlines()[-1]
    assert shlex.split(recipe)[-4:] == ["--profile", odd, "--data", odd]


def test_every_job_quotes_what_people_named() -> None:
    text = (Path(__file__).parent.parent / "Snakefile").read_text()
    commands = [rule for rule in re.split(r"^rule ", text, flags=re.MULTILINE)[1:] if "shell:" in rule]
    assert len(commands) == text.count("shell:") > 10
    known = {"PYTHON", "CHOSEN", "wildcards", "params", "threads", "log"}  # names of entries hold no space (Name)
    for rule in commands:
        assert "{PYTHON} " in rule and " {CHOSEN}" in rule and rule.count("{log:q}") == rule.count("{log") == 1, rule
        assert set(re.findall(r"{(\w+)", rule.split("shell:")[1])) <= known, rule


def test_what_a_killed_run_left_is_ended_and_another_run_of_its_group_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-c", "import time; time.sleep(60)", "--profile", "micro"]
    left = subprocess.Popen(command, cwd=tmp_path, process_group=0)
    others = [
        subprocess.Popen(command, cwd=tmp_path / "other", process_group=left.pid),
        subprocess.Popen([*command[:-1], "tiny"], cwd=tmp_path, process_group=left.pid),
    ]
    monkeypatch.chdir(tmp_path)
    try:
        lock.end_left(left.pid, "micro")
        assert left.wait(timeout=30) == -9 and [other.poll() for other in others] == [None, None]
    finally:
        for process in (left, *others):
            process.kill()
            process.wait()
