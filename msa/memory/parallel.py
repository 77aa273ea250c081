"""Processes that work as one: started by torchrun or from here, joined by torch.distributed (gloo on CPUs, NCCL on
GPUs).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from msa_base.errors import ProcessLost, is_out_of_memory

TIMEOUT = timedelta(minutes=10)
POLL_S = 0.2  # between looks at the processes that have not joined
AT_ONCE = 2**26  # values of gradients that travel between processes together


@contextmanager
def joined(processes: int = 1, command: list[str] | None = None) -> Iterator[tuple[int, int]]:
    """Join the processes of this command and give (rank, ranks); alone, (0, 1).

    Under torchrun its processes are joined. Otherwise ``processes - 1`` others are started.

    Args:
        command: Python's arguments for the others; by default they are copies of the running command, which come to
            this same line.

    Raises:
        ProcessLost: a process ended before the others; the message names the rank.
    """
    if "RANK" not in os.environ and processes <= 1:
        yield 0, 1
        return
    children, here, ranks = [], {}, os.environ.get("WORLD_SIZE", processes)
    if "RANK" not in os.environ:
        here = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "RANK": "0"}
        arguments = [sys.executable, *(command or _command())]
        for number in range(1, processes):
            children.append(subprocess.Popen(arguments, env={**os.environ, **here, "RANK": str(number)}))
        os.environ.update(here)  # what torchrun would have set
    try:
        _join(children)
        ranks = dist.get_world_size()
        yield dist.get_rank(), ranks
        for number, child in enumerate(children, start=1):
            if status := child.wait():
                raise ProcessLost(f"process {number} of {ranks} ended with exit status {status}; see its message above")
    except RuntimeError as error:  # gloo and NCCL have no narrower class in common
        known = any(word in str(error).lower() for word in ("gloo", "nccl", "connection", "timed out"))
        if not known or is_out_of_memory(error):
            raise
        time.sleep(1)  # a process that broke the connection may not have ended yet
        statuses = {number: child.poll() for number, child in enumerate(children, start=1)}
        ended = ", ".join(f"{n} (exit status {status})" for n, status in statuses.items() if status is not None)
        raise ProcessLost(
            f"process {ended or 'of another rank'} of {ranks} ended before the work was done"
            f" ({str(error).splitlines()[0]}); run the same command again"
        ) from None
    finally:
        for child in children:
            child.kill()
        if dist.is_initialized():
            dist.destroy_process_group()
        for name in here:
            del os.environ[name]


def _join(children: list[subprocess.Popen]) -> None:
    """Wait until all processes have come, in a thread: a child that ends before it has come is noticed at once.

    Raises:
        ProcessLost: one has; the message names its rank.
    """
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        except BaseException as error:
            failed.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(POLL_S)
        for number, child in enumerate(children, start=1):
            if child.poll() is None:
                continue
            waiting.join(1)  # one that joined and is done already lets this end
            if waiting.is_alive():
                what = f"process {number} of {len(children) + 1} ended with exit status {child.returncode}"
                raise ProcessLost(f"{what} before it had joined the others; see its message above")
    if failed:
        raise failed[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command() -> list[str]:
    """Python's arguments of the running command."""
    spec = sys.modules["__main__"].__spec__
    return [*(["-m", spec.name] if spec else [sys.argv[0]]), *sys.argv[1:]]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add the gradients of all processes, in place; every process has gradients for the same parameters.

    They travel some at a time, so that little is held twice.
    """
    together: list[Tensor] = []
    for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
        if together and sum(item.numel() for item in [*together, gradient]) > AT_ONCE:
            _sum_together(together)
            together = []
        together.append(gradient)
    if together:
        _sum_together(together)


def _sum_together(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def sum_figures(figures: dict[str, float]) -> dict[str, float]:
    """Add the figures of all processes, which have the same keys."""
    values = torch.tensor([figures[key] for key in sorted(figures)], dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(sorted(figures), values.tolist(), strict=True))
