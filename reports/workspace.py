"""Save a workspace of Weights & Biases for a profile's runs (reports.track): a section for each kind of run.

Needs the package `wandb-workspaces` and a login. Example::

    pip install -c constraints.txt wandb-workspaces
    python -m reports.workspace --profile tiny --entity my-team
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.load import Experiment
from reports.evidence import ACCURACY
from reports.mirror.writer import PROJECT

# the metrics of each section's line plots, by what they are drawn over
LINES = {
    "Training": ("step", ["lm_loss", "aux_loss", "target_accuracy", "learning_rate", "tokens", "peak_host_bytes"]),
    "Workflow": ("elapsed_s", ["jobs_done", "left_s", "host_used_bytes", "jobs_bytes", "device_used_bytes"]),
}
BARS = {
    "Cells": [ACCURACY, "failures", "wall_s", "peak_host_bytes", "peak_device_bytes"],
    "Indexes": ["build_s", "index_bytes"],
}
RECALL = r"recall@.*"  # of the routers, one a layer


def workspace(experiment: Experiment, entity: str, project: str) -> Any:
    """The workspace, not saved yet: runs of the profile, grouped by kind, system, task and context."""
    from wandb_workspaces import expr, workspaces
    from wandb_workspaces.reports import v2 as panels

    sections = [
        workspaces.Section(
            name=title,
            is_open=True,
            panels=[
                *(panels.LinePlot(title=metric, x=x, y=[metric]) for metric in metrics),
                *([panels.LinePlot(title="recall", x=x, metric_regex=RECALL)] if title == "Training" else []),
            ],
        )
        for title, (x, metrics) in LINES.items()
    ]
    sections += [
        workspaces.Section(
            name=title, is_open=True, panels=[panels.BarPlot(title=name, metrics=[name]) for name in names]
        )
        for title, names in BARS.items()
    ]
    sections.append(
        workspaces.Section(
            name="Report",
            panels=[
                panels.MediaBrowser(media_keys=["figures/scaling"]),
                panels.WeavePanelSummaryTable(table_name="predictions"),
            ],
        )
    )
    grouped = [expr.Metric("JobType"), *(expr.Config(key) for key in ("system", "task", "context"))]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"MSA: {experiment.name}",
        sections=sections,
        runset_settings=workspaces.RunsetSettings(filters=[expr.Metric("Group") == experiment.name], groupby=grouped),
    )


def main() -> None:
    parser = experiment_parser(__doc__, entity="the team or user that the project belongs to")
    arguments = parser.parse_args()
    experiment, _ = open_experiment(arguments)
    if find_spec("wandb_workspaces") is None:
        raise UserError("wandb-workspaces is not installed; run: pip install -c constraints.txt wandb-workspaces")
    print(workspace(experiment, arguments.entity, os.environ.get("WANDB_PROJECT", PROJECT)).save().url)


if __name__ == "__main__":
    run_command(main)
