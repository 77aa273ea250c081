"""A stage that fails or is killed at any of its writes: the same command goes on, and ends as if undisturbed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest

import baselines.dense
from msa_base.errors import run_command
from msa_base.stage_records import IndexRecord, RunRecord, sweep
from tests.baselines.conftest import CONTEXTS, Workplace
from tests.baselines.drivers.test_repair import drop_broken, made, pipeline, results, stages  # noqa: F401 (pipeline is a fixture)

FORK = multiprocessing.get_context("fork")


def full() -> None:
    """As a disk without room."""
    raise OSError(errno.ENOSPC, "No space left on device")


def signalled(way: signal.Signals) -> Callable[[], None]:
    """As a process that somebody ends."""
    return lambda: os.kill(os.getpid(), way)


# what happens, the exit codes of a command in a process of its own (run and measure have another below), and its words
FAULTS = {
    "disk full": (full, {2}, "no space left on the disk; free some"),
    "SIGKILL": (signalled(signal.SIGKILL), {2, -9}, "ended by SIGKILL"),
    "SIGTERM": (signalled(signal.SIGTERM), {2, -15}, "ended by SIGTERM"),
    "SIGINT": (signalled(signal.SIGINT), {130, 1}, "interrupted"),
}


def attempt(work: Callable[[], Any], fault: Callable[[], None], at: int) -> tuple[int, bool]:
    """Run a command in a process of its own, with a fault at one of its writes; its exit code, and whether it came."""
    writes, replace = FORK.Value("i", 0), os.replace

    def faulty(source: Any, target: Any) -> None:
        with writes.get_lock():
            writes.value += 1
        if writes.value == at:
            fault()
        replace(source, target)

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.replace = faulty
        run_command(work)

    process = FORK.Process(target=run)
    process.start()
    process.join()
    return process.exitcode, writes.value >= at


@pytest.mark.parametrize(
    "names", [list(FAULTS), *(pytest.param([name] * 4, marks=pytest.mark.soak) for name in FAULTS)], ids=" ".join
)
def test_a_fault_at_any_write_costs_nothing_but_time(
    workplace: Workplace,
    pipeline: Callable,  # noqa: F811
    capfd: pytest.CaptureFixture,
    names: list[str],
) -> None:
    undisturbed, faults = results(workplace), 0
    for path in made(workplace):
        path.unlink()
    shutil.rmtree(workplace.paths.root / "_indexes")
    capfd.readouterr()
    for stage in stages(workplace):
        at = 1
        while True:
            fault, codes, words = FAULTS[names[faults % len(names)]]
            code, came = attempt(stage, fault, at)
            said = capfd.readouterr()
            if not came:
                assert code == 0, said.err
                break
            assert code in codes and "Traceback" not in said.err, said.err
            assert code < 0 or words in said.err
            sweep(workplace.paths.root)
            drop_broken(workplace.paths.root)
            faults, at = faults + 1, at + 1
    assert pipeline() == [] and results(workplace) == undisturbed
    assert faults > 8 and not list(workplace.paths.root.rglob("*.tmp"))


def test_memory_that_runs_out_while_an_index_is_built_is_its_status(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(spec: Any, resources: Any, directory: Any) -> None:
        (directory / "half").write_text("built")
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(baselines.dense, "build_index", build)
    assert workplace.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    directory = workplace.paths.index("dense_small", "prose")
    assert IndexRecord.open(directory / "index.json").status == "out_of_memory" and not (directory / "half").exists()
    assert workplace.run("rag_dense") == 0
    cells = [workplace.paths.cell("rag_dense", "needles", context, 0) / "run.json" for context in CONTEXTS]
    assert {RunRecord.open(cell).status for cell in cells} == {"out_of_memory"}
