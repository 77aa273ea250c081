"""One trial of a Weights & Biases sweep: a profile run whole, with some keys of configs/ set anew.

`wandb agent` starts it with the trial's parameters (configs/sweeps); by hand it is a run with changed keys::

    WANDB_MODE=offline python -m reports.sweep --profile smoke --models.msa_smoke.params.router.aux_temperature=0.1

Configuration and results of a trial stand in results/_sweeps/{digest of the keys}; the same keys again go on there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from msa_base.command import experiment_parser
from msa_base.errors import UserError, run_command
from msa_base.load import load
from msa_base.seal import DIGITS, value_digest
from msa_base.validate import check_known, read_yaml
from reports.evidence import Evidence
from reports.mirror.writer import PROJECT


def parse(words: list[str]) -> dict[str, Any]:
    """Settings by key, of words like `--models.msa.params.seed=1`; values are YAML."""
    found = {}
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not equals or "." not in key:
            raise UserError(f"{word}: not a setting; write --FILE.KEY...=VALUE, as in --models.msa.params.seed=1")
        found[key] = yaml.safe_load(value)
    return found


def plant(configs: Path, target: Path, settings: dict[str, Any]) -> None:
    """Copy the configuration to ``target`` with some keys set anew. Raises UserError: a key is not there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(configs, target, ignore=shutil.ignore_patterns("__pycache__", "sweeps"))
    for name, value in settings.items():
        file, *keys, last = name.split(".")
        check_known([file], sorted(path.stem for path in target.glob("*.yaml")), f"setting '{name}'", configs)
        path = target / f"{file}.yaml"
        content = place = read_yaml(path)
        for key in [*keys, last]:
            known = sorted(place) if isinstance(place, dict) else []
            check_known([key], known, f"setting '{name}'", configs / path.name)
            place, held = place[key], place
        held[last] = value
        path.write_text(yaml.safe_dump(content, sort_keys=False))


def reproduce(profile: str, results: Path, configs: Path) -> None:
    """Run the workflow to its end, without a mirror of its own. Raises UserError where it fails; it has said why."""
    places = ["--profile", profile, "--results", str(results), "--configs", str(configs)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, "-m", "msa_base.workflow", *places]
    if code := subprocess.run(command, env={**own, "WANDB_MODE": "disabled"}).returncode:
        raise UserError(f"{results}: the trial ended with {code}; its words are above")


def main() -> None:
    arguments, words = experiment_parser(__doc__).parse_known_args()
    settings = parse(words)
    trial = arguments.results / "_sweeps" / value_digest(settings)[:DIGITS]
    configs = trial / "configs"
    plant(arguments.configs, configs, settings)
    load(arguments.profile, configs)
    import wandb

    quiet = wandb.Settings(console="off", disable_git=True, save_code=False)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    mode = os.environ.get("WANDB_MODE") or ("online" if "WANDB_SWEEP_ID" in os.environ else "offline")
    given = {"job_type": "sweep", "dir": str(trial), "config": settings, "mode": mode}
    with wandb.init(project=project, settings=quiet, **given) as run:
        reproduce(arguments.profile, trial, configs)
        values = {
            "/".join((row.system, row.task, row.context, row.metric)): row.value
            for row in Evidence.read(arguments.profile, trial, configs).summary.values()
        }
        run.log({name: value for name, value in values.items() if value is not None})


if __name__ == "__main__":
    run_command(main)
