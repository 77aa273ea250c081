"""The process that mirrors a workflow to Weights & Biases while it runs: started beside it, and never in its way.

It reads files and writes its own (reports.track). Its standard input ends with the process that started it, however
that ends, and it then ends too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from msa_base.validate import check_known

DISABLED = "disabled"
MODES = {"offline": "offline", "dryrun": "offline", "online": "online", "run": "online", DISABLED: DISABLED}
QUIET_S = 120.0  # how long it may say nothing at the end before it is ended; a server that hangs is left alone before


def mode() -> str:
    """What WANDB_MODE asks for: ``offline`` (the default), ``online`` or ``disabled``.

    Raises:
        UserError: it asks for something else.
    """
    found = os.environ.get("WANDB_MODE") or "offline"
    check_known([found], MODES, "the environment variable WANDB_MODE", Path("docs/TEAMS.md"))
    return MODES[found]


class Follower:
    """Runs `reports.track --follow` beside a workflow, whose options ``chosen`` are; its words go to ``log``.

    Nothing is started where WANDB_MODE is ``disabled`` or the library is not installed.
    """

    def __init__(self, chosen: Namespace, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        if mode() == DISABLED or find_spec("wandb") is None:
            return
        given = {name: value for name in ("profile", "results", "configs", "data") if (value := getattr(chosen, name))}
        command = [sys.executable, "-m", "reports.track", "--follow"]
        command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
        with suppress(OSError), open(log, "w") as words:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=words, stderr=words, start_new_session=True
            )

    def end(self) -> str:
        """Let it finish what is new, as long as it is heard of, and end it; its last words.

        An interrupt ends it at once.
        """
        if self.process is None:
            return ""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process.stdin.close()
            size, heard_s = -1, time.monotonic()
            while self.process.poll() is None and time.monotonic() - heard_s < QUIET_S:
                if (now := self.log.stat().st_size) != size:
                    size, heard_s = now, time.monotonic()
                time.sleep(0.05)
        except (KeyboardInterrupt, OSError):
            pass
        finally:
            signal.signal(signal.SIGINT, before)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        with suppress(OSError):
            said = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            ours = [line for line in said if line.startswith("Weights & Biases: ")]
            return ours[-1] if ours else f"Weights & Biases: nothing was mirrored, see {self.log}"
        return ""
