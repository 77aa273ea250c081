"""Run the workflow: one run at a time, with progress, an ETA, and one clear line where it fails.

    python -m msa_base.workflow --profile tiny

The Snakefile is the workflow and Snakemake runs it; its own words go to results/{profile}/_logs/snakemake.log, each
job's to a log beside it. Stopped at any point, the same command goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import sys
from argparse import Namespace
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

from msa_base import lock, progress
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import AGAIN, NO_SPACE, UserError, refusal, run_command
from msa_base.load import describe, load
from msa_base.mirroring import Follower, mode
from msa_base.options import add_number
from msa_base.progress_log import ProgressLog
from msa_base.serving import serving
from msa_base.validate import check_known

LEAST_FREE_BYTES = 2**16
FORK = multiprocessing.get_context("fork")


def main() -> int:
    parser = experiment_parser(__doc__)
    parser.add_argument(
        "targets", nargs="*", default=["all"], help="rules of the Snakefile without wildcards, or files"
    )
    named = "systems of the profile, comma-separated; all; or main, those of the profile's `main` (default)"
    parser.add_argument("--systems", default="main", help=named)
    add_number(parser, "--cores", None, "CPU cores (default: all)")
    chosen = parser.parse_args()
    experiment, paths = open_experiment(chosen)
    selected = experiment.profile.selected_systems(chosen.systems)
    check_known(selected, experiment.profile.systems, "--systems", experiment.file)
    mode()  # an unknown WANDB_MODE is said before anything runs
    print(describe(experiment), file=sys.stderr)
    return follow(chosen, paths.root / "_logs" / "snakemake.log", lock.hold(experiment, paths))


def follow(chosen: Namespace, log: Path, held: IO[str]) -> int:
    """Run Snakemake in a session of its own, show its progress, and end it and its jobs with this process.

    Returns:
        0, the code of bad input (2) where a job or Snakemake met it, or 1; 130 after an interrupt.
    """
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=run_snakemake, args=(chosen, log, sender, receiver))
    seen, follower = progress.Progress(), None
    for way in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(way, signal.default_int_handler)
    try:
        process.start()
        sender.close()
        lock.write_group(held, process.pid)
        follower = Follower(chosen, log.with_name("track.log"))
        noted = ProgressLog(log.with_name("progress.jsonl"), process.pid)
        progress.show(receiver, seen, lambda: noted.note(seen))
        noted.note(seen, is_last=True)
        process.join()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        end(process)
        if follower and (words := follower.end()):
            print(words, file=sys.stderr)
    held.truncate(0)  # nothing is left that the next run would have to end
    if process.exitcode:
        return report_failure(seen, log, process.exitcode)
    done, _ = seen.steps
    print(f"{done} jobs done" if done else "nothing to do: every result is up to date", file=sys.stderr)
    return 0


def end(process: BaseProcess) -> None:
    """Interrupt a session's processes, then kill what has not ended within seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for way in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, way)
        process.join(timeout=5)


def run_snakemake(chosen: Namespace, log: Path, events: Connection, others_end: Connection) -> None:
    """Run the Snakefile in this process, in a session of its own; it exits with 1 where the run fails."""
    os.setsid()
    others_end.close()
    lock.drop()  # it is the parent's alone, and frees with it
    for way in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(way, signal.SIG_DFL)
    with open(log, "w") as words:
        os.dup2(words.fileno(), sys.stdout.fileno())
        os.dup2(words.fileno(), sys.stderr.fileno())

    from snakemake.api import SnakemakeApi
    from snakemake.settings import types
    from snakemake.settings.enums import RerunTrigger
    from snakemake.utils import available_cpu_count
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_progress", progress)
    handlers = {"progress": progress.LogHandlerSettings(events)}
    triggers = {RerunTrigger.MTIME, RerunTrigger.PARAMS, RerunTrigger.INPUT}
    config = {name: str(value) for name, value in vars(chosen).items() if value and name not in ("targets", "cores")}
    output = types.OutputSettings(nocolor=True, enable_file_logging=False, log_handler_settings=handlers)
    # its cache of fetched sources, of which there are none, would stand in the user's home
    no_home = types.StorageSettings(shared_fs_usage=types.SharedFSUsage.all() - {types.SharedFSUsage.SOURCE_CACHE})
    cores = types.ResourceSettings(cores=chosen.cores or available_cpu_count())
    targets = set(chosen.targets)
    jobs = types.DAGSettings(targets=targets, force_incomplete=True, rerun_triggers=triggers)
    execution = types.ExecutionSettings(lock=False, standalone=True, latency_wait=5)
    with SnakemakeApi(output) as api:
        try:
            workflow = api.workflow(cores, types.ConfigSettings(config=config), no_home)
            with serving(load(chosen.profile, chosen.configs, chosen.data), log.parent):
                workflow.dag(jobs).execute_workflow(execution_settings=execution)
        except Exception as error:
            api.print_exception(error)
            cause: BaseException | None = error
            while cause:
                if said := str(cause) if isinstance(cause, UserError) else refusal(cause):
                    print(f"error: {said}", file=sys.stderr)
                    break
                cause = cause.__cause__ or cause.__context__
            sys.exit(1)


def is_full(place: Path) -> bool:
    """Whether the disk that holds a file has no room even for a line in a log."""
    return shutil.disk_usage(place).free < LEAST_FREE_BYTES


def report_failure(seen: progress.Progress, log: Path, code: int) -> int:
    """Say in as few words as possible what failed; the exit code.

    Args:
        code: the exit code of Snakemake's process, negative for the signal that ended it.
    """
    if is_full(log.parent):
        print(f"error: {log.parent.parent}: {NO_SPACE}; free some, then {AGAIN}", file=sys.stderr)
        return 2
    for path in [path for path in seen.failed_logs if path.exists() and path.stat().st_size] or [log]:
        lines = path.read_text(errors="replace").splitlines()
        if errors := [line for line in lines if line.startswith("error: ")]:
            print(errors[-1], file=sys.stderr)
            return 2
        killed = ended_by(seen.errors, code)
        if killed in ("SIGINT", "SIGTERM"):  # somebody asked for it: where it stood does not matter
            print(f"error: a job was ended by {killed}, {AGAIN}; its words are in {path}", file=sys.stderr)
            return 1
        print("\n".join(lines[-25:]), file=sys.stderr)
        how = f"was ended by {killed}, {AGAIN}" if killed else "failed"
        print(f"error: a job {how}; its words above are from {path}", file=sys.stderr)
    return 1


def ended_by(errors: list[str], code: int) -> str | None:
    """The signal that ended Snakemake or one of its jobs, whose shells hand it on as 128 and its number, or None."""
    found = re.search(r"died with <Signals\.\w+: (\d+)>|non-zero exit status (\d+)", "\n".join(errors))
    number = -code if code < 0 else int(found[1] or int(found[2]) - 128) if found else 0
    return signal.Signals(number).name if number in set(signal.Signals) else None


if __name__ == "__main__":
    run_command(main)
