"""A fresh process for every cell, so that its memory, caches and compiled code are its own."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from msa.bench.cells import Cell


def in_process(cell: Cell, done: set[tuple[str, str]], options: dict[str, Any]) -> list[dict[str, Any]] | int:
    """What :func:`msa.bench.measure.measure` gives in a process of its own; the exit code where it died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(cell, done, options, sender))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = None
    child.join()
    return child.exitcode if found is None else found


def _child(cell: Cell, done: set[tuple[str, str]], options: dict[str, Any], sender: Connection) -> None:
    Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    from msa.bench.measure import measure  # torch belongs to the child

    sender.send(measure(cell, done, options))


def _leave_with(parent: Any) -> None:
    """A cell that nobody waits for would slow down what is measured next."""
    parent.join()
    os._exit(1)
