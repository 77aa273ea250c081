"""Run the workflow: checked first, one run at a time, with progress, an ETA, and one clear line where it fails.

    python -m configs.workflow --profile tiny

The Snakefile is the workflow and Snakemake runs it; its own words go to results/{profile}/_logs/snakemake.log, each
job's to a log beside it. Stopped at any point, the same command goes on.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

from configs.errors import UserError, run_command
from configs.load import check_known, describe, load
from configs.paths import Paths

CHECKS = ("baselines.check",)  # commands that check what configs.load cannot know
# seconds a job of each rule takes on two cores: they weigh the rules against one another, the run itself sets the scale
EXPECTED_S = {
    "prose": 20,
    "tokenizer": 10,
    "corpus": 8,
    "prepare": 8,
    "samples": 20,
    "train": 200,
    "index": 8,
    "run": 8,
    "latency": 8,
}
OTHERS_S = 2
CERTAIN_S = 60  # how long the expectation above outweighs what the run shows
_COUNT = re.compile(r"^(\w+) +(\d+)$")  # a row of the table of jobs
_FINISHED = re.compile(r"^Finished jobid: (\d+) ")
_FRACTION = re.compile(r"(\d+)%\|")


@dataclass
class Job:
    """A started job, as Snakemake announces it."""

    rule: str
    log: Path | None = None
    wildcards: str = ""

    @property
    def label(self) -> str:
        """Rule and wildcard values."""
        return " ".join([self.rule, *(part.partition("=")[2] for part in self.wildcards.split(", ") if part)])

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
    """What Snakemake's output has said so far."""

    counts: dict[str, int] = field(default_factory=dict)  # jobs to run, by rule
    running: dict[str, Job] = field(default_factory=dict)  # by job id
    started: list[Job] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)
    failed_logs: list[Path] = field(default_factory=list)
    _announced: Job | None = None
    _in_failure: bool = False

    def read(self, line: str) -> None:
        """Take in one line."""
        if match := re.match(r"^(?:local)?rule (\w+):$", line):
            self._announced, self._in_failure = Job(match[1]), False
        elif line.startswith("Error in rule "):
            self._announced, self._in_failure = None, True
        elif match := _COUNT.match(line):
            self.counts.setdefault(match[1], int(match[2]))
        elif line.startswith("    log: "):
            path = Path(line.removeprefix("    log: ").removesuffix(" (check log file(s) for error details)"))
            if self._in_failure:
                self.failed_logs.append(path)
            elif self._announced:
                self._announced.log = path
        elif line.startswith("    jobid: ") and self._announced:
            self.running[line.split()[1]] = self._announced
            self.started.append(self._announced)
        elif line.startswith("    wildcards: ") and self._announced:
            self._announced.wildcards = line.removeprefix("    wildcards: ")
        elif match := _FINISHED.match(line):
            rule = self.running.pop(match[1], Job("?")).rule
            self.finished[rule] = self.finished.get(rule, 0) + 1

    @property
    def steps(self) -> tuple[int, int]:
        """Finished jobs and all jobs."""
        return sum(self.finished.values()), self.counts.get("total", 0)

    def weights(self) -> tuple[float, float]:
        """Expected seconds of what is done, running jobs included, and of all jobs."""
        total = sum(count * EXPECTED_S.get(rule, OTHERS_S) for rule, count in self.counts.items() if rule != "total")
        done = sum(count * EXPECTED_S.get(rule, OTHERS_S) for rule, count in self.finished.items())
        done += sum(job.fraction() * EXPECTED_S.get(job.rule, OTHERS_S) for job in self.running.values())
        return done, total

    def remaining_s(self, elapsed_s: float) -> float:
        """Seconds still to go: the expectation, scaled by how this run has met it so far."""
        done, total = self.weights()
        return (total - done) * (elapsed_s + CERTAIN_S) / (done + CERTAIN_S)


def main() -> int:
    """Check, lock, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--results", default="results", help="where results stand (default: results)")
    parser.add_argument("--configs", default="configs", help="the configuration directory (default: configs)")
    parser.add_argument("--systems", default="main", help="systems of the profile, comma-separated; all; or main, those of the profile's `main` (default)")
    parser.add_argument("--cores", default="all", help="CPU cores (default: all)")
    chosen = parser.parse_args()
    experiment = load(chosen.profile, chosen.configs)
    profile = Path(chosen.configs) / "profiles" / f"{chosen.profile}.yaml"
    check_known(experiment.profile.raced(chosen.systems), experiment.profile.systems, "--systems", profile)
    places = ["--profile", chosen.profile, "--results", chosen.results, "--configs", chosen.configs]
    for module in CHECKS:
        if code := subprocess.run([sys.executable, "-m", module, *places]).returncode:
            return code
    print(describe(experiment), file=sys.stderr)
    command = [sys.executable, "-m", "snakemake", "--cores", chosen.cores, "--nolock", "--rerun-incomplete"]
    command += ["--rerun-triggers", "mtime", "params", "input", "--nocolor", "--config"]
    command += [f"profile={chosen.profile}", f"results={chosen.results}", f"configs={chosen.configs}", f"systems={chosen.systems}"]
    root = Paths.of(chosen.profile, chosen.results).root
    with only_run(root) as lock:
        return follow(command, root / "_logs" / "snakemake.log", lock)


@contextmanager
def only_run(root: Path) -> Iterator[IO[str]]:
    """Hold the lock of a results directory, which the kernel frees with this process, however that ends.

    Jobs that an earlier run left behind when it was killed outright are ended first.

    Raises:
        UserError: another run holds the lock.
    """
    (root / "_logs").mkdir(parents=True, exist_ok=True)
    with open(root / "_logs" / "lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another run is at work there; wait for it or stop it") from None
        lock.seek(0)
        if session := lock.read().strip():
            end_session(int(session))
        yield lock
        lock.truncate(0)


def end_session(session: int) -> None:
    """Kill what is left of a run's session; other processes that happen to have its number are not ours to kill."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        try:
            is_left = os.getsid(process.pid) == session
        except (ProcessLookupError, PermissionError):
            continue
        if is_left and re.search("snakemake|--profile", " ".join(process.info["cmdline"] or [])):
            process.kill()


def follow(command: list[str], log: Path, lock: IO[str]) -> int:
    """Run Snakemake in a session of its own, show its progress, and end it and its jobs with this process.

    Returns:
        0, the code of bad input (2) where a job or Snakemake met it, or 1; 130 after an interrupt.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    progress = Progress()
    with open(log, "w") as words:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        lock.truncate(0)
        print(process.pid, file=lock, flush=True)
        try:
            show(process, progress, words)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from here", file=sys.stderr)
            return 128 + signal.SIGINT
        finally:
            end(process)
    return report_failure(progress, log) if process.returncode else 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def end(process: subprocess.Popen) -> None:
    """Interrupt a session's processes, then kill what has not ended within seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def show(process: subprocess.Popen, progress: Progress, words: IO[str]) -> None:
    """Copy Snakemake's output into its log and keep one line of progress on the screen until it ends."""
    from tqdm import tqdm

    lines: Queue[str | None] = Queue()
    Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    start_s = time.monotonic()
    shape = "{desc} |{bar:24}| {elapsed}{postfix}"
    with tqdm(
        total=1.0, bar_format=shape, dynamic_ncols=True, mininterval=0, miniters=0, disable=not sys.stderr.isatty()
    ) as bar:
        while True:
            try:
                line = lines.get(timeout=1.0)
            except Empty:
                line = ""
            if line is None:
                break
            words.write(line)
            words.flush()
            before = dict(progress.running)
            progress.read(line.rstrip("\n"))
            if not progress.steps[1]:
                continue
            done, total = progress.steps
            left = f"about {tqdm.format_interval(progress.remaining_s(time.monotonic() - start_s))} left"
            if bar.disable:
                for ended in before.keys() - progress.running.keys():
                    print(f"{done}/{total} {before[ended].label}; {left}", file=sys.stderr, flush=True)
            elif not line or not lines.qsize():  # not while more lines wait to be read
                weights = progress.weights()
                bar.n, bar.desc = min(1.0, weights[0] / max(1.0, weights[1])), f"{done}/{total}"
                running = ", ".join(f"{job.label} {job.fraction():.0%}" for job in progress.running.values())
                bar.set_postfix_str(f"{left}: {running}")
    process.wait()
    if process.returncode == 0:
        done, _ = progress.steps
        print(f"{done} jobs done" if done else "nothing to do: every result is up to date", file=sys.stderr)


def _pump(stream: IO[str], lines: Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def report_failure(progress: Progress, log: Path) -> int:
    """Say in as few words as possible what failed; the exit code."""
    for path in progress.failed_logs or [log]:
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        if errors := [line for line in lines if line.startswith("error: ")]:
            print(errors[-1], file=sys.stderr)
            return 2
        print("\n".join(lines[-25:]), file=sys.stderr)
        killed = re.search(r"died with <Signals\.(\w+)", log.read_text(errors="replace"))
        how = f"was ended by {killed[1]}, run the same command again" if killed else "failed"
        print(f"error: a job {how}; its words above are from {path}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run_command(main)
