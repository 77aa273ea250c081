"""Work in a forked child, so that a system killed for memory costs its own cell and nothing else.

The parent forks before it opens any model, table or index, so that the child's peak memory is its own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable
from typing import Any

from configs.errors import run_command

CONTEXT = multiprocessing.get_context("fork")
KILLED = -signal.SIGKILL
_PR_SET_PDEATHSIG = 1


def in_child(work: Callable[..., None], *arguments: Any) -> int:
    """Run ``work(*arguments)`` in a forked child; its exit code, negative for the signal that killed it."""
    process = CONTEXT.Process(target=_child, args=(work, *arguments))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        process.start()
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
        signal.signal(signal.SIGTERM, before)
    return process.exitcode


def _child(work: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # a parent that is killed outright cannot stop its child; the kernel then does
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        run_command(lambda: work(*arguments))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def supervise(work: Callable[[Any], None], record_kill: Callable[[int], None], num_items: int) -> int:
    """Run ``work(current)`` over numbered items until it ends by itself; an item that it is killed on is recorded.

    Args:
        work: sets ``current.value`` to the number of the item it is at, and skips items that are done.
        record_kill: records, in a child of its own, that the numbered item was killed, which makes it done.
        num_items: bounds the number of kills.

    Returns:
        The exit code of the command.
    """
    for _ in range(num_items + 1):
        current = CONTEXT.Value("i", -1, lock=False)
        code = in_child(work, current)
        if code != KILLED or current.value < 0:
            break
        code = in_child(record_kill, current.value)
        if code != 0:
            break
    return code if code >= 0 else 128 - code
