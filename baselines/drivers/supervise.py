"""Work in a forked child, so that a system killed for memory costs its own cell and nothing else.

The parent forks before it opens any model, table or index, so that the child's peak memory is its own. A child that is
killed is out of memory only where something shows it: the kernel counts what it kills for memory, and the parent looks
at the memory while the child works. Any other kill says nothing about the system, so nothing is recorded of it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

from baselines.base import CellStatus, Refused
from msa_base.errors import ProcessLost, UserError, is_out_of_memory, run_command

CONTEXT = multiprocessing.get_context("fork")
SAMPLE_S = 0.2  # how often the parent looks at the memory
DYING_S = 30  # how long a process may take to end after the kernel has killed it
CGROUPS = Path("/sys/fs/cgroup")  # version 2 of control groups; version 1 keeps those of memory in a folder of it
OWN_CGROUP = Path("/proc/self/cgroup")
_PR_SET_PDEATHSIG = 1


class OutOfMemory(UserError):
    """A child was killed for memory; the message says what shows that."""


def expected_failure(error: Exception) -> CellStatus:
    """The status an error means; an error that is none is raised again."""
    if isinstance(error, CellStatus):
        return error
    if isinstance(error, ProcessLost):
        return Refused("interrupted", str(error))
    if is_out_of_memory(error):
        return CellStatus("out_of_memory", str(error).split("\n")[0] or "the process found no more memory")
    raise error


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work(*arguments)`` in a forked child; what it returned.

    Raises:
        SystemExit: the child ended with an error, which it has said; with the child's code.
        OutOfMemory: it was killed for memory.
        UserError: another signal ended it.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process, found = CONTEXT.Process(target=_child, args=(sender, work, *arguments)), None
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    memory = MemoryWatch()
    try:
        process.start()
        sender.close()
        while process.exitcode is None:
            memory.sample(process)
            if receiver.poll(SAMPLE_S):  # what the work returned, or nothing as the child ends
                with suppress(EOFError):
                    found = receiver.recv()
                process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
        signal.signal(signal.SIGTERM, before)
    if process.exitcode > 0:
        sys.exit(process.exitcode)
    if process.exitcode == 0:
        return found
    ended_by = signal.Signals(-process.exitcode)
    if ended_by == signal.SIGKILL and (evidence := memory.evidence()):
        raise OutOfMemory(f"the process was killed (signal 9): {evidence}")
    raise UserError(
        f"the process at work was ended by {ended_by.name} (signal {ended_by}), and nothing shows that memory ran out;"
        " nothing is recorded of what it was at: run the same command again, it goes on there"
    )


class MemoryWatch:
    """What shows, from outside, that a process was killed because memory ran out."""

    def __init__(self) -> None:
        self.kills = self.kills_before = oom_kills()
        self.risen_s = float("-inf")  # when the kernel was last seen to have killed
        self.held_bytes = self.free_bytes = self.total_bytes = 0

    def sample(self, process: BaseProcess) -> None:
        """Look at the kernel's count, and at the memory that the process holds and that the machine has left."""
        import psutil

        self._count()
        try:
            self.held_bytes = psutil.Process(process.pid).memory_info().rss or self.held_bytes
        except psutil.Error:
            return  # it has just ended
        machine = psutil.virtual_memory()
        self.free_bytes, self.total_bytes = machine.available, machine.total

    def _count(self) -> None:
        kills = oom_kills()
        if kills is not None and self.kills is not None and kills > self.kills:
            self.kills_before, self.kills, self.risen_s = self.kills, kills, monotonic()

    def evidence(self) -> str:
        """What shows that memory ran out, now that the process has ended; empty where nothing does."""
        self._count()
        if monotonic() - self.risen_s < DYING_S:
            return f"the kernel's count of processes killed for memory rose from {self.kills_before} to {self.kills}"
        if self.held_bytes > self.total_bytes / 2 and self.free_bytes < self.total_bytes / 10:
            held, free, total = (part / 2**30 for part in (self.held_bytes, self.free_bytes, self.total_bytes))
            return f"it held {held:.1f} GiB when {free:.1f} of the machine's {total:.1f} GiB were free"
        return ""


def oom_kills() -> int | None:
    """How many processes of this one's control group the kernel has killed for memory; None where it does not say."""
    lines = [line.split(":", 2) for line in OWN_CGROUP.read_text().splitlines()] if OWN_CGROUP.exists() else []
    groups = [group.lstrip("/") for _, controllers, group in lines if {"", "memory"} & set(controllers.split(","))]
    for group in [*groups, ""]:  # a container sees its own group as the root
        for path in (CGROUPS / "memory" / group / "memory.oom_control", CGROUPS / group / "memory.events"):
            with suppress(OSError, KeyError, ValueError):
                return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])
    return None


def _child(sender: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # a parent that is killed outright cannot stop its child; the kernel then does
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        run_command(lambda: sender.send(work(*arguments)))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def supervise(work: Callable[[Any], None], record_kill: Callable[[int, str], None]) -> None:
    """Run ``work(current)`` over numbered items until it ends by itself; an item that memory ran out on is recorded.

    Args:
        work: sets ``current.value`` to the number of the item it is at, and skips items that are done.
        record_kill: records, in a child of its own, that the item ran out of memory and what shows it; it is then done.

    Raises:
        OutOfMemory: memory ran out before the first item, or again on one that was recorded.
        UserError: another signal ended the child.
    """
    recorded = -1
    while True:
        current = CONTEXT.Value("i", -1, lock=False)
        try:
            in_child(work, current)
            return
        except OutOfMemory as failure:
            if current.value <= recorded:
                raise
            recorded = current.value
            in_child(record_kill, recorded, str(failure))
