"""Processes that work as one: started by torchrun or from here, joined by torch.distributed (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import UserError

TIMEOUT = timedelta(minutes=10)


@contextmanager
def joined(processes: int = 1, command: list[str] | None = None) -> Iterator[tuple[int, int]]:
    """Join the processes of this command and give (rank, ranks); alone, (0, 1).

    Under torchrun its processes are joined. Otherwise ``processes - 1`` others are started.

    Args:
        command: Python's arguments for the others; by default they are copies of the running command, which come to
            this same line.

    Raises:
        UserError: a process ended before the others; the message names the rank.
    """
    if "RANK" not in os.environ and processes <= 1:
        yield 0, 1
        return
    children, here = [], {}
    if "RANK" not in os.environ:
        here = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "RANK": "0"}
        for number in range(1, processes):
            children.append(subprocess.Popen([sys.executable, *(command or _command())], env={**os.environ, **here, "RANK": str(number)}))
        os.environ.update(here)  # what torchrun would have set
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    ranks = dist.get_world_size()
    try:
        yield dist.get_rank(), ranks
        for number, child in enumerate(children, start=1):
            if child.wait() != 0:
                raise UserError(f"process {number} of {ranks} ended with exit status {child.returncode}; its own message stands above")
    except RuntimeError as error:  # gloo and NCCL have no narrower class in common
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "connection", "timed out")):
            raise
        time.sleep(1)  # a process that broke the connection may not have ended yet
        ended = [f"{number} (exit status {child.poll()})" for number, child in enumerate(children, start=1) if child.poll() is not None]
        raise UserError(
            f"process {', '.join(ended) or 'of another rank'} of {ranks} ended before the work was done"
            f" ({str(error).splitlines()[0]}); run the same command again"
        ) from None
    finally:
        for child in children:
            child.kill()
        dist.destroy_process_group()
        for name in here:
            del os.environ[name]


def device() -> torch.device:
    """Where this process computes: its own GPU where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0))) % torch.cuda.device_count())
    return torch.device("cpu")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command() -> list[str]:
    """Python's arguments of the running command."""
    spec = sys.modules["__main__"].__spec__
    return [*(["-m", spec.name] if spec else [sys.argv[0]]), *sys.argv[1:]]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add the gradients of all processes, in place; every process has gradients for the same parameters."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def sum_figures(figures: dict[str, float]) -> dict[str, float]:
    """Add the figures of all processes, which have the same keys."""
    values = torch.tensor([figures[key] for key in sorted(figures)], dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(sorted(figures), values.tolist(), strict=True))
