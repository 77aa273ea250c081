"""Servers that a run starts by itself: the commands that endpoints of models.yaml and judges.yaml name as ``serve``."""

from __future__ import annotations

import ctypes
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from msa_base.errors import UserError
from msa_base.load import Experiment

LONGEST_START_S = 1800.0  # of a server that loads a large model
PDEATHSIG = 1  # linux/prctl.h


def commands(experiment: Experiment) -> dict[str, str]:
    """The command of every base_url that a profile's models and judges are asked at, where an entry has one."""
    models = [experiment.models[name].params for name in experiment.profile.models]
    judges = [vars(judge) for judge in experiment.judges.values()]
    return {entry["base_url"]: entry["serve"] for entry in [*models, *judges] if entry.get("serve")}


@contextmanager
def serving(experiment: Experiment, logs: Path) -> Iterator[None]:
    """Run what a profile's endpoints need for the time of the block; one that answers already is left alone.

    Raises:
        UserError: a command that cannot be started, or ends before it listens; its words are in ``logs``.
    """
    with ExitStack() as running:
        for url, command in commands(experiment).items():
            if not listens(url):
                running.enter_context(_server(url, command, logs / f"serve.{urlsplit(url).port}.log"))
        yield


@contextmanager
def _server(url: str, command: str, log: Path) -> Iterator[None]:
    words = shlex.split(command)
    words[0] = sys.executable if words[0] == "python" else words[0]
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log, "w") as out:
            server = subprocess.Popen(words, stdout=out, stderr=out, preexec_fn=_end_with_parent)
    except OSError as error:
        raise UserError(f"serve: `{command}` cannot be started ({error}); mend the entry of {url}") from None
    try:
        deadline = time.monotonic() + LONGEST_START_S
        while not listens(url):
            if server.poll() is not None:
                raise UserError(f"serve: `{command}` ended before it answered at {url}; its words are in {log}")
            if time.monotonic() > deadline:
                raise UserError(f"serve: `{command}` does not listen at {url} within {LONGEST_START_S:g} s; see {log}")
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def _end_with_parent() -> None:
    """In the new process: be ended when the run is, however that ends (Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGTERM)


def listens(url: str) -> bool:
    """Whether something takes connections where an endpoint is asked."""
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname, place.port or 80), timeout=1).close()
    except OSError:
        return False
    return True
