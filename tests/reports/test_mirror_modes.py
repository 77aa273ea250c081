"""A run that is mirrored offline, not at all, or to a server that hangs: the same results, and what the mirror costs.

Minutes each; `make soak` runs them. ``MIRROR_ROUNDS=2 python -m pytest -s -m soak tests/reports/test_mirror_modes.py``
takes the modes in turns, and prints a line a run and the medians.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reports.wandb_server import serving
from tests.test_kills import content_of
from tests.test_workflow import Checkout

pytestmark = pytest.mark.soak
MODES = ("offline", "hanging", "disabled")
CHILDREN_ARE_MINE = 36  # Linux's PR_SET_CHILD_SUBREAPER: processes whose parent ended become this one's children


PROFILE = {
    "title": "one model, one system",
    "tokenizer": {"kind": "words", "words": 1500},
    "contexts": ["16K"],
    "tasks": {"scaling_facts": 4},
    "systems": ["closed_book"],
    "seeds": [0],
    "models": [{"reader": "backbone_smoke"}],
    "samples": {"smoke": {"bank_tokens": 3072, "banks": 2, "questions": 16, "tasks_per_bank": 1}},
    "latency": {"task": "scaling_facts", "questions": 1},
}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout whose profile trains one model for a few steps and asks it."""
    made = Checkout.of_repository(tmp_path / "checkout")
    made.write("configs/profiles/micro.yaml", PROFILE)
    return made


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that takes connections and never answers, as Weights & Biases' settings name it."""
    with serving("hangs") as server:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        yield server


def processor_s() -> float:
    """Processor seconds, user and system, of all processes that this one started and that have ended."""
    while True:  # those whose parent did not wait for them
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                break
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def forget(results: Path) -> None:
    """Remove all but the data, which no model made."""
    for path in results.glob("*"):
        if path.name != "_data":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_every_mode_gives_the_same_weights_and_predictions(checkout: Checkout, hanging: Any) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(CHILDREN_ARE_MINE, 1, 0, 0, 0)
    wanted: dict[str, Any] = {}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in MODES}
    for mode in MODES * int(os.environ.get("MIRROR_ROUNDS", "1")):
        forget(checkout.results)
        checkout.mirror, asked = {"hanging": "online"}.get(mode, mode), hanging.requests
        before_s, start_s = processor_s(), time.monotonic()
        process = checkout.start()
        output, code = process.communicate()[0], process.returncode
        spent[mode].append((processor_s() - before_s, time.monotonic() - start_s))
        print(f"{mode}: {spent[mode][-1][0]:.1f} processor s, {spent[mode][-1][1]:.1f} s", flush=True)
        assert code == 0, output
        found = content_of(checkout.results)
        wanted = wanted or found
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if found[name] != wanted[name]] == []
        log = checkout.results / "_logs" / "track.log"
        assert log.exists() is (mode != "disabled")
        assert (hanging.requests > asked) is (mode == "hanging")
        if mode == "hanging":
            said = log.read_text()
            assert said.count("\nwandb sync ") == 1, said
            assert "the server did not answer" in output
        if mode != "disabled":
            names = [path.name for path in (checkout.results / "wandb").glob("offline-run-*")]
            print(f"    {len(names)} runs mirrored", flush=True)
            assert names
    assert any(name.endswith("model.safetensors") for name in wanted)
    assert any(name.endswith("predictions.jsonl") for name in wanted)
    for mode, pairs in spent.items():
        processor, wall = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{mode}, median of {len(pairs)}: {processor:.1f} processor s, {wall:.1f} s")
