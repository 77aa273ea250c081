"""The paper's tables in their rehearsal, killed at random moments and gone on with: the same answers and judgments.

An hour and more: `make soak DATA=DIR` runs them, DIR being that of the sets (docs/DATA.md). What is prepared, trained
and encoded stays; every cell, judgment and score is made again under kills.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.test_kills import PATIENCE_S, content_of, differences, victims
from tests.test_workflow import Checkout

pytestmark = pytest.mark.soak
SEED, KILLS = 20261201, 5
KEPT = ("_data", "_models", "_indexes", "_logs")  # what no table is made of alone
TABLES = {"table-2": "paper_rehearsal_qa", "table-3": "paper_rehearsal_qa", "figure-4": "paper_rehearsal"}


def start(root: Path, table: str, data: str) -> subprocess.Popen:
    """The command behind `make TABLE PROFILE=paper_rehearsal DATA=DIR`."""
    command = [sys.executable, "-m", "reports.paper_tables", table, "--profile", "paper_rehearsal", "--data", data]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    environment.pop("PYTHONPATH", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=root, env=environment, **pipes)


def whole(root: Path, table: str, data: str) -> float:
    """Run a table to its end; its seconds."""
    begun, process = time.monotonic(), start(root, table, data)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return time.monotonic() - begun


def killed(root: Path, table: str, data: str, seconds: float, seed: int = SEED) -> list[str]:
    """Run a table under five SIGKILLs to any of its processes, then to its end; when and what was killed.

    ``seconds`` is what it would take by itself: each moment is drawn from its first third.
    """
    draw, told = random.Random(f"{seed}/{table}"), []
    while len(told) < KILLS:
        process, moment = start(root, table, data), draw.uniform(0, seconds / 3)
        deadline = time.monotonic() + moment
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None and (found := victims(process)):
            try:
                victim = draw.choice([found[0], *found])
                name = " ".join(victim.cmdline()[1:5])
                victim.send_signal(signal.SIGKILL)
                told.append(f"{moment:.1f} s: {name}")
            except psutil.NoSuchProcess:
                pass
        process.communicate(timeout=PATIENCE_S)
        if process.returncode == 0 and len(told) < KILLS:  # it ended by itself: begin anew
            forget(root / "results" / TABLES[table])
    whole(root, table, data)
    return told


def forget(results: Path) -> None:
    """Remove every cell, judgment and score, and what is made of them."""
    for path in results.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_killed_ends_in_the_same_numbers(table: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if not (data := os.environ.get("DATA")):
        pytest.skip("DATA names no directory of sets")
    checkout = Checkout.of_repository(tmp_path_factory.mktemp("table") / "checkout")
    whole(checkout.root, table, str(Path(data).absolute()))
    results = checkout.root / "results" / TABLES[table]
    wanted = content_of(results)
    forget(results)
    seconds = whole(checkout.root, table, data)
    forget(results)
    for told in killed(checkout.root, table, data, seconds):
        print(told, flush=True)
    assert differences(content_of(results), wanted) == []
