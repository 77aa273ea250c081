"""The real commands on a micro profile, killed and starved at random: continued, they end as if undisturbed.

Minutes each: `make soak` runs them. ``KILLS`` in the environment says at how many random moments (40 by default).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from msa_base.stage_records import records
from tests.test_workflow import SHORT, Checkout

pytestmark = pytest.mark.soak
SEALS = ("seal.json", "cells.json", "scores.json", "judgments.json", "view.json")  # digests of those below, too
TIMED = ("latency.json", "bank.json", "run.json", "index.json", "train.jsonl", "tracked.json")  # seconds stand in them
SEED, PATIENCE_S = 7, 3600  # a machine may be busy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, dict[str, Any], float]:
    """A finished checkout, what its results hold, and the seconds that it took."""
    checkout = Checkout.of_repository(tmp_path_factory.mktemp("undisturbed") / "checkout")

    def shorten(models: Any) -> None:
        for model in models.values():
            model["params"].update({"save_every": 1} if "phases" in model["params"] else {})
            for phase in model["params"].get("phases", []):
                phase.update(steps=3, rows=8)

    checkout.edit("configs/models.yaml", shorten)
    checkout.edit("configs/profiles/micro.yaml", lambda content: content.update(SHORT))
    start_s = time.monotonic()
    code, output = checkout.run()
    assert code == 0, output
    return checkout, content_of(checkout.results), time.monotonic() - start_s


def content_of(results: Path) -> dict[str, Any]:
    """What the results hold, by file; of answers and the summary all but the seconds."""
    found: dict[str, Any] = {}
    for path in sorted(results.rglob("*")):
        name = str(path.relative_to(results))
        hidden = any(part.startswith(".") or part in ("_logs", "wandb", "report") for part in Path(name).parts)
        if hidden or not path.is_file() or path.name in (*TIMED, *SEALS):
            continue
        if path.name == "predictions.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: row[key] for key in row if not key.endswith("_s")} for row in rows]
        elif not path.name.startswith("summary."):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def fresh(undisturbed: tuple, tmp_path: Path) -> Checkout:
    """The same checkout without results."""
    shutil.copytree(undisturbed[0].root, tmp_path / "checkout", symlinks=True, ignore=shutil.ignore_patterns("results"))
    return Checkout(tmp_path / "checkout")


def is_finished(checkout: Checkout) -> bool:
    """Whether nothing is left to do."""
    code, output = checkout.run()
    return code == 0 and "nothing to do" in output


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The files that only one of two results has, or that differ."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def victims(process: subprocess.Popen) -> list[psutil.Process]:
    """The workflow's process and all that it started."""
    try:
        return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def test_kills_at_random_moments(fresh: Checkout, undisturbed: tuple) -> None:
    """Any of the processes, by any of the signals, at any moment of a run or of a run that goes on."""
    _, wanted, seconds = undisturbed
    draw, wrong, kills, wholes = random.Random(SEED), [], 0, 0
    total = int(os.environ.get("KILLS", "40"))
    while kills < total:
        process = fresh.start()
        moment = draw.uniform(0, seconds / 2)
        deadline, name = time.monotonic() + moment, "no signal"
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None and (found := victims(process)):
            way = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            try:
                victim = draw.choice([found[0], *found])
                name = f"{way.name} at {moment:.1f} s to {' '.join(victim.cmdline())[:200]}"
                victim.send_signal(way)
                kills += 1
            except psutil.NoSuchProcess:
                pass
        output, _ = process.communicate(timeout=PATIENCE_S)
        print(f"{kills}: {name}: {process.returncode}", flush=True)
        if "Traceback" in output:
            wrong.append(f"{name}: {output}")
        if process.returncode == 0:
            wrong += [f"{name}: {one}" for one in differences(content_of(fresh.results), wanted)]
            wholes += 1
            shutil.rmtree(fresh.results)
    assert fresh.run()[0] == 0 and is_finished(fresh)
    assert wrong + differences(content_of(fresh.results), wanted) == [], f"{kills} kills, {wholes} whole runs"
    assert not list(fresh.results.rglob("*.tmp"))


def test_a_kill_at_every_boundary_of_stages(fresh: Checkout, undisturbed: tuple) -> None:
    """The whole run is killed as soon as a job has ended, until there is none left."""
    boundaries = 0
    while True:
        process = fresh.start()
        for line in process.stdout:
            if "; about " in line:
                process.kill()
                boundaries += 1
                print(f"{boundaries}: {line}", end="", flush=True)
                break
        process.communicate(timeout=PATIENCE_S)
        if process.returncode == 0:
            break
    assert boundaries > 15 and is_finished(fresh)
    assert differences(content_of(fresh.results), undisturbed[1]) == []


def limited(checkout: Checkout, limits: dict[int, int]) -> tuple[int, str]:
    """Run the workflow under limits of the system; exit code and output."""
    command = [sys.executable, "-m", "msa_base.workflow", "--profile", "micro"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def limit() -> None:
        for kind, size in limits.items():
            resource.setrlimit(kind, (size, size))

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(
        command, cwd=checkout.root, env=environment, preexec_fn=limit, timeout=PATIENCE_S, check=False, **pipes
    )
    return done.returncode, done.stdout


def test_disks_that_are_full_in_every_stage(fresh: Checkout, undisturbed: tuple) -> None:
    """No file may grow beyond a limit, which is raised bit by bit: each time another stage has no room."""
    failed = set()
    for power in range(12, 26):
        code, output = limited(fresh, {resource.RLIMIT_FSIZE: 2**power})
        print(f"{2**power / 2**20:.2f} MiB a file: {code}: {output.splitlines()[-1]}", flush=True)
        if code == 0:
            break
        assert code == 2 and output.splitlines()[-1].startswith("error: "), output
        assert "Traceback" not in output, output
        failed.add(output.splitlines()[-1])
    assert failed and fresh.run()[0] == 0 and is_finished(fresh)
    assert differences(content_of(fresh.results), undisturbed[1]) == []


def test_a_small_disk_that_grows(fresh: Checkout, undisturbed: tuple) -> None:
    """Results on a disk of their own, as large as is needed in the end; and the same disk when it is read-only."""

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(fresh.root / "results")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    (fresh.root / "results").mkdir()
    if not mount("size=64k"):
        pytest.skip("mounting a tmpfs needs root")
    try:
        failed = []
        for power in range(32, 62):  # 64 KiB to 1.4 GiB
            assert mount(f"remount,size={int(2 ** (power / 2))}")
            code, output = fresh.run()
            print(f"{2 ** (power / 2) / 2**20:.2f} MiB: {code}: {output.splitlines()[-1]}", flush=True)
            if code == 0:
                break
            assert code == 2 and output.splitlines()[-1].startswith("error: "), output
            assert "Traceback" not in output, output
            failed.append(output.splitlines()[-1])
        assert len(failed) > 3 and is_finished(fresh)
        assert differences(content_of(fresh.results), undisturbed[1]) == []
        assert mount("remount,ro")
        code, output = fresh.run()
        assert code == 2 and "read-only" in output and "Traceback" not in output, output
    finally:
        subprocess.run(["umount", str(fresh.root / "results")], check=True)


def test_memory_that_runs_out_in_any_stage(fresh: Checkout) -> None:
    """An address space that is raised bit by bit: each run ends with a word or a status, the last one well."""
    for size in range(1, 9):
        code, output = limited(fresh, {resource.RLIMIT_AS: size * 2**30 // 2})
        print(f"{size / 2} GiB: {code}: {output.splitlines()[-1]}", flush=True)
        assert "Traceback" not in output, output
        assert code in (0, 1, 2) and (code == 0 or output.splitlines()[-1].startswith("error: ")), output
    assert fresh.run()[0] == 0 and is_finished(fresh)
    records = [json.loads(path.read_text()) for path in fresh.results.glob("[!_]*/*/*/seed0/run.json")]
    assert {record["status"] for record in records} <= {"ok", "out_of_memory"}


def test_every_file_of_the_results_is_sealed(undisturbed: tuple) -> None:
    """So that whatever is cut, emptied or flipped among them is found by the next run."""
    checkout, _, _ = undisturbed
    sealed = set()
    for path, kind in records(checkout.results).items():
        sealed |= {path, *(path.parent / name for name in kind.open(path).files)}
    loose = [path for path in checkout.results.rglob("*") if path.is_file() and path not in sealed]
    names = [str(path.relative_to(checkout.results)) for path in loose]
    free = r"_logs/.*|(.*/)?\.[^/]+\.json|wandb/(\..*|.*/logs/.*|.*/tmp/.*|.*\.log)"  # logs, copies of seals, W&B's own
    assert [name for name in names if not re.fullmatch(free, name)] == []


@pytest.mark.parametrize("seed", range(3))
def test_files_that_are_damaged_are_made_anew(fresh: Checkout, undisturbed: tuple, seed: int) -> None:
    """Any of all files, cut, emptied, removed or with a bit flipped."""
    shutil.copytree(undisturbed[0].results, fresh.results, symlinks=True)
    draw = random.Random(seed)
    paths = sorted(path for path in fresh.results.rglob("*") if path.is_file() and "_logs" not in path.parts)
    for path in draw.sample(paths, 8):
        content = bytearray(path.read_bytes())
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        way = draw.choice(["flipped", "cut", "emptied", "removed"])
        kept = {"flipped": content, "cut": content[: len(content) // 2], "emptied": b"", "removed": b""}[way]
        path.unlink()
        if way != "removed":
            path.write_bytes(kept)
    code, output = fresh.run()
    assert code == 0 and is_finished(fresh), output
    assert differences(content_of(fresh.results), undisturbed[1]) == []
