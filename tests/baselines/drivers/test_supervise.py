"""Supervision: a child that is killed is out of memory where something shows it, and is to run again otherwise."""

from __future__ import annotations

import os
import signal
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from baselines.drivers import supervise
from msa_base.errors import UserError

GROUPS = {2: "0::/job\n", 1: "7:pids:/\n4:memory:/job\n0::/job\n"}  # /proc/self/cgroup under each version
COUNTERS = {2: "memory.events", 1: "memory/memory.oom_control"}


class FakeKernel:
    """Control groups under a directory, whose counter rises with each process that this kernel kills for memory."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, version: int = 2, group: str = "job") -> None:
        self.counter = root / "fs" / Path(COUNTERS[version]).parent / group / Path(COUNTERS[version]).name
        self.counter.parent.mkdir(parents=True)
        (root / "groups").write_text(GROUPS[version])
        monkeypatch.setattr(supervise, "CGROUPS", root / "fs")
        monkeypatch.setattr(supervise, "OWN_CGROUP", root / "groups")
        self.write(0)

    def write(self, kills: int) -> None:
        """Set the counter, whole at any moment."""
        new = self.counter.with_suffix(".new")
        new.write_text(f"oom {kills + 5}\noom_kill {kills}\n")
        new.replace(self.counter)

    def kill(self) -> None:
        """Kill the calling process as the kernel does when memory runs out."""
        self.write(supervise.oom_kills() + 1)
        os.kill(os.getpid(), signal.SIGKILL)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("group", ["job", ""])
def test_the_kernels_count_tells_a_kill_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, group: str
) -> None:
    """Also in a container, whose own group is the root of what it sees."""
    kernel = FakeKernel(tmp_path, monkeypatch, version, group)
    kernel.write(3)
    with pytest.raises(supervise.OutOfMemory, match="rose from 3 to 4"):
        supervise.in_child(kernel.kill)
    with pytest.raises(UserError, match="SIGKILL") as caught:
        supervise.in_child(killed)
    assert not isinstance(caught.value, supervise.OutOfMemory)


def test_a_count_that_rose_long_before_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel(tmp_path, monkeypatch)
    monkeypatch.setattr(supervise, "DYING_S", 0.5)

    def work() -> None:
        kernel.write(1)  # another process of the group
        time.sleep(1.5)
        killed()

    with pytest.raises(UserError, match="SIGKILL") as caught:
        supervise.in_child(work)
    assert not isinstance(caught.value, supervise.OutOfMemory)


@pytest.mark.parametrize(("total", "free", "is_memory"), [(1.5, 0.1, True), (1.5, 0.3, False), (3, 0.1, False)])
def test_without_a_count_memory_itself_is_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: float, free: float, is_memory: bool
) -> None:
    """Shares of what the child holds: it must hold most of the machine, and hardly any may be free."""
    monkeypatch.setattr(supervise, "CGROUPS", tmp_path)
    assert supervise.oom_kills() is None
    held = psutil.Process().memory_info().rss
    machine = namedtuple("machine", "available total")(free * held, total * held)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(psutil, "Process", lambda _: FakeProcess(held))

    def work() -> None:
        time.sleep(0.5)
        killed()

    with pytest.raises(UserError) as caught:
        supervise.in_child(work)
    assert isinstance(caught.value, supervise.OutOfMemory) == is_memory
    assert ("of the machine's" in str(caught.value)) == is_memory


class FakeProcess:
    """A process that holds so many bytes."""

    def __init__(self, held: int) -> None:
        self.held = held

    def memory_info(self) -> Any:
        """As psutil's."""
        return namedtuple("memory", "rss")(self.held)


def test_other_signals_are_named_and_what_a_child_returns_or_fails_with_comes_back() -> None:
    with pytest.raises(UserError, match="SIGSEGV"):
        supervise.in_child(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    with pytest.raises(SystemExit) as ended:
        supervise.in_child(lambda: os._exit(7))
    assert ended.value.code == 7
    assert supervise.in_child(lambda: None) is None
    assert supervise.in_child(lambda *given: [*given, os.getpid()], 3)[0] == 3
    assert len(supervise.in_child(lambda: b"x" * 1_000_000)) == 1_000_000  # more than a pipe holds


def test_items_that_memory_ran_out_on_are_recorded_each_and_the_rest_is_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel(tmp_path, monkeypatch)
    done = tmp_path / "done"
    done.mkdir()

    def work(current: Any) -> None:
        for item in range(5):
            current.value = item
            if not (done / str(item)).exists():
                if item in (1, 3):
                    kernel.kill()
                (done / str(item)).write_text("worked on")

    def record(item: int, reason: str) -> None:
        (done / str(item)).write_text(reason)

    supervise.supervise(work, record)
    found = [(done / str(item)).read_text() for item in range(5)]
    assert [text == "worked on" for text in found] == [True, False, True, False, True]
    assert "from 0 to 1" in found[1] and "from 1 to 2" in found[3]


def test_an_item_that_is_killed_after_it_was_recorded_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel(tmp_path, monkeypatch)

    def work(current: Any) -> None:
        current.value = 2
        kernel.kill()

    with pytest.raises(supervise.OutOfMemory):
        supervise.supervise(work, lambda item, reason: None)
