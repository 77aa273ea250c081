"""The process beside a workflow: how it is started, that it ends with the run however that ends, and its last words."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import psutil
import pytest

from msa_base import mirroring
from msa_base.mirroring import Follower

WORDS = """
import pathlib, sys
pathlib.Path("started").write_text(" ".join(sys.argv[1:]))
sys.stdin.read()
"""
ENDS = WORDS + 'print("Weights & Biases: up to date")'
HANGS = WORDS + "import time; time.sleep(3600)"
CHOSEN = Namespace(profile="tiny", results=Path("with a space"), configs=Path("configs"), data=None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose reports.track is a few lines."""
    (tmp_path / "reports").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path


def started(place: Path, words: str) -> Follower:
    """A follower at work that does what ``words`` say."""
    (place / "reports" / "track.py").write_text(words)
    follower = Follower(CHOSEN, place / "track.log")
    wait_for((place / "started").exists)
    return follower


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_ends_when_it_is_told_to(place: Path) -> None:
    follower = started(place, ENDS)
    assert (place / "started").read_text() == "--follow --profile tiny --results with a space --configs configs"
    assert follower.process.poll() is None
    assert follower.end() == "Weights & Biases: up to date"
    assert follower.process.returncode == 0


def test_one_that_hangs_or_was_killed_is_ended_and_stops_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "QUIET_S", 0.2)
    before = signal.getsignal(signal.SIGINT)
    follower = started(place, HANGS)
    assert "nothing was mirrored, see" in follower.end()
    assert follower.process.returncode == -signal.SIGKILL and signal.getsignal(signal.SIGINT) is before
    follower = started(place, ENDS)
    follower.process.kill()
    assert "nothing was mirrored" in follower.end()


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_started_it(place: Path, way: signal.Signals) -> None:
    (place / "reports" / "track.py").write_text(ENDS)
    root = Path(mirroring.__file__).parent.parent
    code = f"""
import sys, time
from argparse import Namespace
from pathlib import Path
sys.path.append({str(root)!r})
from msa_base.mirroring import Follower
follower = Follower(Namespace(profile="tiny", results="r", configs="c", data=None), Path("track.log"))
print(follower.process.pid, flush=True)
time.sleep(3600)
"""
    runner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(runner.stdout.readline())
    wait_for((place / "started").exists)
    runner.send_signal(way)
    runner.wait()
    runner.stdout.close()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert "up to date" in (place / "track.log").read_text()


@pytest.mark.parametrize("mode", ["disabled", "no library"])
def test_nothing_is_started_without_need(place: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    if mode == "disabled":
        monkeypatch.setenv("WANDB_MODE", mode)
    else:
        monkeypatch.setattr(mirroring, "find_spec", lambda _: None)
    follower = Follower(CHOSEN, place / "track.log")
    assert follower.process is None and follower.end() == "" and not (place / "track.log").exists()
