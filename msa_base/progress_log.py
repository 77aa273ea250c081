"""The record of a workflow's progress, `_logs/progress.jsonl`: what is at work, the time that is left, memory in use.

A line every few seconds and one at the end, appended by each run. Nothing reads it to decide anything: who follows a
run does (reports.track), and a line that cannot be written stops nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from msa_base.progress import Progress

EVERY_S = 10.0
DEVICES = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")  # MiB, a line a GPU
DEVICES_S = 5.0  # how long they may take to answer


class ProgressLog:
    """Appends to ``path`` what a :class:`Progress` says, and the memory of the processes below ``pid``."""

    def __init__(self, path: Path, pid: int) -> None:
        self.path, self.pid, self.start_s, self.last_s = path, pid, time.monotonic(), 0.0
        self.has_devices = shutil.which(DEVICES[0]) is not None
        with suppress(OSError):
            if not path.read_bytes().endswith(b"\n"):  # a run that was killed left half a line
                self._append("\n")

    def note(self, progress: Progress, is_last: bool = False) -> None:
        """Append a line, if the last one is old enough or this is the last."""
        now_s = time.monotonic()
        if not progress.counts or (now_s - self.last_s < EVERY_S and not is_last):
            return
        self.last_s = now_s
        elapsed_s = now_s - self.start_s
        done, jobs = progress.steps
        line = {
            "time": round(time.time(), 3),
            "elapsed_s": round(elapsed_s, 1),
            "left_s": round(progress.remaining_s(elapsed_s), 1),
            "jobs_done": done,
            "jobs": jobs,
            "stage": ", ".join(sorted({job.rule for job in progress.running.values()})),
            "running": [job.label for job in progress.running.values()],
            **self._memory(),
        }
        self._append(json.dumps(line) + "\n")

    def _append(self, text: str) -> None:
        with suppress(OSError), open(self.path, "a") as log:
            log.write(text)

    def _memory(self) -> dict[str, Any]:
        """Bytes in use: of the machine, of the jobs (resident), of all GPUs; null where it is not known."""
        jobs_bytes = 0
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                with suppress(psutil.Error):
                    jobs_bytes += process.memory_info().rss
        machine = psutil.virtual_memory()
        return {
            "host_used_bytes": machine.total - machine.available,
            "jobs_bytes": jobs_bytes,
            "device_used_bytes": self._device_bytes() if self.has_devices else None,
        }

    def _device_bytes(self) -> int | None:
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            said = subprocess.run(DEVICES, capture_output=True, text=True, timeout=DEVICES_S, check=True).stdout
            return sum(int(line) for line in said.splitlines()) * 2**20
        self.has_devices = False  # it is not asked again
        return None
