"""What is done to the results before Snakemake's first job, and left undone where it only looks.

Snakemake reads the Snakefile for every option that it has, and `-n`, `--summary`, `--dag`, `--list-rules` or `--lint`
are looks: they say what is broken and change nothing below the results.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from msa_base import lock, seal
from msa_base.errors import UserError
from msa_base.load import Experiment
from msa_base.paths import Paths
from msa_base.stage_records import broken, refused, sweep


def prepare_on_execution(workflow: Any, experiment: Experiment, paths: Paths, needed: Collection[Path]) -> None:
    """Say what a run would make anew, and have it done as soon as jobs are executed.

    Args:
        workflow: Snakemake's, while it reads the Snakefile: not yet told whether it is to execute anything.
        needed: all files that the systems which were chosen need.
    """
    seal.keep_no_digests()
    for why in broken(paths.root).values():
        print(f"a run makes anew, beside the jobs below: {why}", file=sys.stderr)
    for path in set(refused(paths.root)) & set(needed):
        print(f"a run tries again: {path}", file=sys.stderr)
    for folder in paths.not_shared(experiment.shared):
        print(f"a run takes from profile {experiment.shared[folder]}: {paths.root / folder}", file=sys.stderr)
    execute = workflow.execute

    def prepared(executor_plugin: Any, **settings: Any) -> None:
        if not executor_plugin.common_settings.dryrun_exec:
            try:
                prepare(experiment, paths, needed)
            except UserError as error:
                from snakemake.exceptions import WorkflowError

                raise WorkflowError(str(error)) from error
        execute(executor_plugin=executor_plugin, **settings)

    workflow.execute = prepared


def prepare(experiment: Experiment, paths: Paths, needed: Collection[Path]) -> None:
    """Take the results' locks, remove what killed processes left, and take away the seals that do not hold, and of
    those that are ``needed`` what is to be tried again. Copies stay, by which a stage knows what it left.

    Raises:
        UserError: another run is at work there.
    """
    lock.hold(experiment, paths)
    seal.keep_no_digests(False)
    sweep(paths.root)
    paths.share(experiment.shared)
    for path in {*broken(paths.root), *(set(refused(paths.root)) & set(needed))}:
        path.unlink()  # without it the stage runs again
