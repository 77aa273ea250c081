"""One run at a time in a results directory: the lock that the workflow's command and plain `snakemake` share."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import IO

from msa_base.errors import UserError
from msa_base.load import Experiment
from msa_base.paths import Paths

_HELD: dict[Path, IO[str]] = {}  # by this process, or by its parent when it forked


def hold(experiment: Experiment, paths: Paths) -> IO[str]:
    """Take the locks of a profile's results and of those that its jobs may write into; the first one's file.

    The kernel frees them with this process, however that ends. One that is held already stays as it is.

    Raises:
        UserError: another run holds one.
    """
    roots = [paths.root, *(paths.root.with_name(profile) for profile in sorted(set(experiment.shared.values())))]
    first, *_ = [_take(root.absolute()) for root in roots]
    return first


def _take(root: Path) -> IO[str]:
    if root in _HELD:
        return _HELD[root]
    (root / "_logs").mkdir(parents=True, exist_ok=True)
    lock = open(root / "_logs" / "lock", "a+")  # noqa: SIM115 (closed with the process)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{root}: another run is at work there; wait for it or stop it") from None
    lock.seek(0)
    if (group := lock.read().strip()).isdecimal():
        end_left(int(group), root.name)
    write_group(lock, os.getpgrp())
    _HELD[root] = lock
    return lock


def write_group(lock: IO[str], group: int) -> None:
    """Note whose jobs are to be ended by the next run, where this one is killed outright."""
    lock.truncate(0)
    print(group, file=lock, flush=True)


def drop() -> None:
    """In a forked child: close the locks' files, so that they are the parent's alone. They still count as held."""
    for held in _HELD.values():
        held.close()


def end_left(group: int, profile: str) -> None:
    """Kill what is left of a run's process group, by its command and work directory.

    A group may hold other runs too (two that one script started), and its number may have gone to other programs.
    """
    import psutil

    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter(["cmdline"]):
        try:
            is_left = process.pid not in own and os.getpgid(process.pid) == group and process.cwd() == os.getcwd()
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
        words = " ".join(process.info["cmdline"] or [])
        if is_left and re.search(rf"--profile {re.escape(profile)}\b|msa_base\.workflow(?!.*--profile)", words):
            process.kill()
