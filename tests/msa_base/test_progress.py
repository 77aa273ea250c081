"""Progress counts what Snakemake's logger says, weighs jobs, and reads a job's share from its log."""

from __future__ import annotations

from logging import LogRecord
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from msa_base.progress import CERTAIN_S, EXPECTED_S, LogHandler, LogHandlerSettings, Progress


def started(progress: Progress, jobid: int, rule: str, log: Path | None = None, **wildcards: str) -> None:
    progress.take(LogEvent.JOB_INFO, [jobid, rule, wildcards, [str(log)] if log else []])


def record(event: LogEvent | None, **fields: Any) -> LogRecord:
    found = LogRecord("snakemake", 20, "", 0, fields.pop("msg", ""), None, None)
    found.__dict__.update(fields, **({"event": event} if event else {}))
    return found


def test_the_handler_sends_what_progress_reads_and_nothing_else() -> None:
    receiver, sender = Pipe(duplex=False)
    handler = LogHandler(None, LogHandlerSettings(sender))
    progress = Progress()
    for one in (
        record(None, msg="Building DAG of jobs..."),
        record(LogEvent.RUN_INFO, stats={"run": 2, "all": 1, "total": 3}),
        record(LogEvent.SHELLCMD, shellcmd="true"),
        record(LogEvent.JOB_INFO, jobid=5, rule_name="run", wildcards={"system": "msa"}, log=["a.log"], reason="new"),
        record(LogEvent.JOB_INFO, jobid=6, rule_name="run", wildcards={"system": "full"}, log=["b.log"], reason="new"),
        record(LogEvent.JOB_FINISHED, job_id=6),
        record(LogEvent.ERROR, msg="died with <Signals.SIGKILL: 9>"),
        record(LogEvent.JOB_ERROR, jobid=5, log=["a.log"]),
    ):
        handler.emit(one)
    ended = []
    while receiver.poll():
        ended += [job.label] if (job := progress.take(*receiver.recv())) else []
    assert ended == ["run full"] and progress.steps == (1, 3)
    assert [job.label for job in progress.running.values()] == ["run msa"]
    assert progress.failed_logs == [Path("a.log")] and "SIGKILL" in progress.errors[0]
    receiver.close()
    handler.emit(record(LogEvent.JOB_FINISHED, job_id=5))  # nobody listens: the run goes on


def test_time_left_follows_the_weights_and_the_run(tmp_path: Path) -> None:
    progress = Progress()
    progress.take(LogEvent.RUN_INFO, [{"train": 1, "run": 5, "total": 6}])
    total = EXPECTED_S["train"] + 5 * EXPECTED_S["run"]
    assert progress.remaining_s(0.0) == total
    log = tmp_path / "train.log"
    started(progress, 1, "train", log, model="msa")
    assert progress.running[1].fraction() == 0.0  # no log yet
    log.write_text("started\\n 10%|#  | 1/10\\r 40%|####  | 4/10\\r")
    assert progress.weights() == (0.4 * EXPECTED_S["train"], total)
    progress.take(LogEvent.JOB_FINISHED, [1])
    assert progress.weights() == (EXPECTED_S["train"], total)
    slow = progress.remaining_s(10 * EXPECTED_S["train"])
    scale = (10 * EXPECTED_S["train"] + CERTAIN_S) / (EXPECTED_S["train"] + CERTAIN_S)
    assert slow == pytest.approx(5 * EXPECTED_S["run"] * scale)
    for jobid in range(2, 7):
        started(progress, jobid, "run", system=f"s{jobid}")
        progress.take(LogEvent.JOB_FINISHED, [jobid])
    assert progress.steps == (6, 6) and progress.remaining_s(100.0) == 0
