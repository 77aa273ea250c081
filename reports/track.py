"""Mirror a results directory to Weights & Biases, offline unless WANDB_MODE says otherwise.

Everything that is shown is read from the files in results/{profile}: the runs of an old directory are the same as those
that were followed live. The workflow starts this beside itself with --follow. A run whose data did not change since the
last call is not written again. Example::

    python -m reports.track --profile tiny             (then what is printed, or: make wandb-sync PROFILE=tiny)
    python -m reports.track --profile tiny --sync
"""

from __future__ import annotations

import os
import select
import signal
import sys
from argparse import Namespace
from typing import Any

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.load import Experiment
from msa_base.mirroring import DISABLED, mode
from msa_base.options import add_number
from msa_base.paths import Paths
from reports.mirror.runs import sources
from reports.mirror.writer import Mirror, NotMirrored, log_table, send_with

EVERY_S = 60  # between two looks at the files, while a workflow is followed
HANG_S = 110  # after how long without an end to what it does a library hangs


class Tracker:
    """Brings the mirror of one profile up to date, again and again."""

    def __init__(self, arguments: Namespace, experiment: Experiment, paths: Paths, is_online: bool) -> None:
        self.arguments, self.experiment, self.paths, self.is_online = arguments, experiment, paths, is_online
        self.mirror = Mirror(paths.root, experiment.name, arguments.upload_bytes)
        self.failure = ""  # why Weights & Biases is left alone from here on

    def update(self, is_last: bool) -> list[str]:
        """Write what is new, and send it where this is asked for; the names of what was written.

        Before the last time, what a stage is just replacing is left for later, and offline what still grows, since
        nobody can see it before it is sent.
        """
        written = []
        try:
            for source in sources(self.experiment, self.paths):
                if not (is_last or self.is_online or source.is_complete):
                    continue
                signal.alarm(HANG_S)  # which ends this process, wherever it hangs
                try:
                    if self.mirror.write(source, self._report if source.kind == "report" else None):
                        written.append(source.name)
                        print(source.name, flush=True)
                except (UserError, FileNotFoundError):
                    if is_last and not self.arguments.follow:
                        raise
        except NotMirrored as failure:
            self.failure = str(failure)
        finally:
            signal.alarm(HANG_S)
            self.mirror.save()
            signal.alarm(0)
        self.send()
        return written

    def send(self) -> None:
        """Send what was not sent, unless that failed before."""
        if self.is_online and not self.failure and (unsent := self.mirror.unsent):
            print(send_with(unsent), flush=True)
            try:
                self.mirror.send(sys.stdout)
            except NotMirrored as failure:
                self.failure = str(failure)

    def _report(self, run: Any) -> None:
        """The summary and the claims as tables, each figure as an image, and every value as a number of the run."""
        import matplotlib.pyplot  # noqa: F401 (wandb.Image looks for it)
        import wandb

        from reports.build import FIGURES, Report
        from reports.evidence import Evidence

        evidence = Evidence.read(self.arguments.profile, self.arguments.results, self.arguments.configs)
        report = Report(evidence)
        rows = [vars(row) for row in evidence.summary.values()]
        claims = report.tables["claims"].frame
        log_table(run, "claims", list(map(str, claims.columns)), claims.astype(object).values.tolist())
        if rows:
            log_table(run, "summary", list(rows[0]), [list(row.values()) for row in rows])
        drawn = {name: draw(evidence, report.reference) for name, draw in FIGURES.items()}
        run.log({f"figures/{name}": wandb.Image(figure) for name, figure in drawn.items() if figure is not None})
        for row in rows:
            if row["value"] is not None:
                run.summary["/".join((row["system"], row["task"], row["context"], row["metric"]))] = row["value"]


def follow(tracker: Tracker) -> None:
    """Update now and then until standard input ends, which it does with the process that started this one."""
    os.nice(5)
    while not tracker.failure and not select.select([sys.stdin], [], [], EVERY_S)[0]:
        tracker.update(is_last=False)
    sys.stdin.read()
    if not tracker.failure:
        tracker.update(is_last=True)


def main() -> int:
    parser = experiment_parser(__doc__)
    parser.add_argument("--follow", action="store_true", help="go on until standard input ends")
    parser.add_argument("--sync", action="store_true", help="send what was not sent, whatever WANDB_MODE says")
    told = "files of checkpoints and indexes up to this size are uploaded, of larger ones the digest (default: 0)"
    add_number(parser, "--upload-bytes", 0, told, least=0)
    arguments = parser.parse_args()
    experiment, paths = open_experiment(arguments)
    if (asked := mode()) == DISABLED and not arguments.sync:
        print("Weights & Biases is disabled (WANDB_MODE)")
        return 0
    tracker = Tracker(arguments, experiment, paths, asked == "online" or arguments.sync)
    if arguments.follow:
        follow(tracker)
    else:
        tracker.update(is_last=True)
    if left := tracker.mirror.unsent:
        print(f"send with: {send_with(left)}")
        print(f"Weights & Biases: {len(left)} to send: make wandb-sync PROFILE={experiment.name}")
    elif not tracker.failure:
        print("Weights & Biases: up to date")
    if tracker.failure:
        print(f"Weights & Biases: not everything was mirrored, the next run tries again: {tracker.failure}")
    return 0 if not tracker.failure else 1


if __name__ == "__main__":
    run_command(main)
