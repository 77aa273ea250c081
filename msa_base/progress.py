"""Progress of a workflow: the events of Snakemake's logger plug-in, and the time that is left.

Snakemake's process registers this module as a logger plug-in, whose :class:`LogHandler` sends the events through a
pipe. The process at its other end adds them up in a :class:`Progress`.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from logging import LogRecord
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

# seconds a job of each rule takes on two cores: they weigh the rules against one another, the run itself sets the scale
EXPECTED_S = defaultdict(lambda: 2, prose=20, tokenizer=10, samples=20, train=200)
EXPECTED_S |= dict.fromkeys(("corpus", "prepare", "index", "run", "latency"), 8)
CERTAIN_S = 60  # how long the expectation above outweighs what the run shows
_FRACTION = re.compile(r"(\d+)%\|")
# the fields of an event that Progress reads
FIELDS = {
    LogEvent.RUN_INFO: ("stats",),
    LogEvent.JOB_INFO: ("jobid", "rule_name", "wildcards", "log"),
    LogEvent.JOB_FINISHED: ("job_id",),
    LogEvent.JOB_ERROR: ("log",),
    LogEvent.ERROR: ("msg",),
}


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Where the events go: the sending end of a pipe."""

    events: Connection | None = None


class LogHandler(LogHandlerBase):
    """Sends each event of :data:`FIELDS` as ``(event, values)``; nothing where nobody listens any more."""

    writes_to_stream = writes_to_file = needs_rulegraph = False
    has_filter = has_formatter = True  # no event is held back, and none becomes text

    def emit(self, record: LogRecord) -> None:
        event = getattr(record, "event", None)
        if event in FIELDS:
            with suppress(BrokenPipeError):
                self.settings.events.send((event, [getattr(record, name) for name in FIELDS[event]]))


@dataclass
class Job:
    """A started job: its rule, its rule and wildcard values as one label, its log."""

    rule: str
    label: str
    log: Path | None = None

    def fraction(self) -> float:
        """How much of the job is done, by the last progress bar in its log; 0 where there is none."""
        try:
            with open(self.log, "rb") as log:
                log.seek(max(0, os.path.getsize(self.log) - 4096))
                found = _FRACTION.findall(log.read().decode(errors="replace"))
        except (OSError, TypeError):
            return 0.0
        return int(found[-1]) / 100 if found else 0.0


@dataclass
class Progress:
    """What the events have said so far."""

    counts: dict[str, int] = field(default_factory=dict)  # jobs to run, by rule
    running: dict[int, Job] = field(default_factory=dict)  # by job id
    finished: Counter[str] = field(default_factory=Counter)  # jobs, by rule
    failed_logs: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # what Snakemake says of jobs and rules that failed

    def take(self, event: LogEvent, values: list[Any]) -> Job | None:
        """Take in one event; the job that it ends well, if any."""
        match event, *values:
            case LogEvent.RUN_INFO, stats:
                self.counts = {rule: count for rule, count in stats.items() if rule != "total"}
            case LogEvent.JOB_INFO, jobid, rule, wildcards, log:
                label = " ".join([rule, *wildcards.values()])
                self.running[jobid] = Job(rule, label, Path(log[0]) if log else None)
            case LogEvent.JOB_FINISHED, jobid:
                job = self.running.pop(jobid)
                self.finished[job.rule] += 1
                return job
            case LogEvent.JOB_ERROR, log:
                self.failed_logs += map(Path, log)
            case LogEvent.ERROR, message:
                self.errors.append(message)
        return None

    @property
    def steps(self) -> tuple[int, int]:
        """Finished jobs and all jobs."""
        return sum(self.finished.values()), sum(self.counts.values())

    def weights(self) -> tuple[float, float]:
        """Expected seconds of what is done, running jobs included, and of all jobs."""
        total = sum(count * EXPECTED_S[rule] for rule, count in self.counts.items())
        done = sum(count * EXPECTED_S[rule] for rule, count in self.finished.items())
        done += sum(job.fraction() * EXPECTED_S[job.rule] for job in self.running.values())
        return done, total

    def remaining_s(self, elapsed_s: float) -> float:
        """Seconds still to go: the expectation, scaled by how this run has met it so far."""
        done, total = self.weights()
        return (total - done) * (elapsed_s + CERTAIN_S) / (done + CERTAIN_S)


def show(events: Connection, progress: Progress, note: Callable[[], None] = lambda: None) -> None:
    """Keep one line of progress on a terminal, or else print a line a finished job, until the sender closes.

    ``note`` is called about once a second.
    """
    from tqdm import tqdm

    start_s = time.monotonic()
    shape = "{desc} |{bar:24}| {elapsed}{postfix}"
    off = not sys.stderr.isatty()
    with tqdm(total=1.0, bar_format=shape, dynamic_ncols=True, mininterval=0, miniters=0, disable=off) as bar:
        while True:
            ended = None
            try:
                if events.poll(1.0):
                    ended = progress.take(*events.recv())
            except EOFError:
                return
            note()
            if not progress.counts:
                continue
            done, total = progress.steps
            left = f"about {tqdm.format_interval(progress.remaining_s(time.monotonic() - start_s))} left"
            if off and ended:
                print(f"{done}/{total} {ended.label}; {left}", file=sys.stderr, flush=True)
            elif not off and not events.poll():  # not while more events wait
                weights = progress.weights()
                bar.n, bar.desc = min(1.0, weights[0] / max(1.0, weights[1])), f"{done}/{total}"
                running = ", ".join(f"{job.label} {job.fraction():.0%}" for job in progress.running.values())
                bar.set_postfix_str(f"{left}: {running}")
