"""The record of a workflow's progress: its lines, what a kill leaves, memory, and a file that cannot be written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from msa_base import progress_log
from msa_base.progress import Progress
from msa_base.progress_log import ProgressLog


@pytest.fixture
def progress() -> Progress:
    """Two jobs, one at work."""
    found = Progress()
    found.take(LogEvent.RUN_INFO, [{"train": 1, "run": 1, "total": 2}])
    found.take(LogEvent.JOB_INFO, [1, "train", {"model": "msa"}, []])
    return found


def test_a_line_now_and_then_and_one_at_the_end(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"jobs": 9}\n{"jo')  # of a run that was killed
    log = ProgressLog(path, os.getpid())
    log.note(Progress())  # nothing is known yet
    log.note(progress)
    log.note(progress)  # too soon
    progress.take(LogEvent.JOB_FINISHED, [1])
    log.note(progress, is_last=True)
    before, half, first, last = path.read_text().splitlines()
    assert (before, half) == ('{"jobs": 9}', '{"jo')
    first, last = json.loads(first), json.loads(last)
    assert (first["stage"], first["running"], first["jobs_done"], first["jobs"]) == ("train", ["train msa"], 0, 2)
    assert (last["stage"], last["jobs_done"]) == ("", 1) and last["left_s"] < first["left_s"]
    assert first["host_used_bytes"] > 0 and first["jobs_bytes"] >= 0


@pytest.mark.parametrize(("said", "found"), [("100\n23\n", 123 * 2**20), ("[N/A]\n", None)])
def test_memory_of_devices(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch, said: str, found: int | None
) -> None:
    monkeypatch.setattr(progress_log, "DEVICES", ("printf", said))
    log = ProgressLog(tmp_path / "progress.jsonl", os.getpid())
    log.note(progress)
    assert json.loads(log.path.read_text())["device_used_bytes"] == found
    assert log.has_devices is (found is not None)


def test_what_cannot_be_written_stops_nothing(tmp_path: Path, progress: Progress) -> None:
    log = ProgressLog(tmp_path, os.getpid())  # a directory
    log.note(progress, is_last=True)
    assert list(tmp_path.iterdir()) == []
