"""Check every entry of a profile before anything runs: modules exist, parameters are well-formed, weights are there.

    python -m baselines.check --profile tiny

A system module keeps its parameters in a dataclass called ``Params``, an index builder in ``IndexParams``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from baselines.base import load_module, read_params
from baselines.models import OWN_KINDS, check_reference
from configs.errors import UserError, run_command
from configs.load import DIRECTORY, Experiment, load
from msa import pretrained


def main() -> None:
    """Check one profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    parser.add_argument("--results", type=Path, help="accepted as every command does; nothing is read there")
    chosen = parser.parse_args()
    check(load(chosen.profile, chosen.configs), chosen.configs)


def check(experiment: Experiment, configs: Path) -> None:
    """Raise a UserError that names file, entry and key for the first bad entry."""
    path = configs / "systems.yaml"
    systems = {name: experiment.systems[name] for name in experiment.profile.systems}
    indexes = {spec.index: experiment.indexes[spec.index] for spec in systems.values() if spec.index}
    for name in experiment.profile.models:
        spec = experiment.models[name]
        if spec.kind == pretrained.KIND and (reason := pretrained.missing(name, spec)):
            raise UserError(f"{configs / 'profiles' / experiment.name}.yaml: {reason}")
        if spec.kind not in OWN_KINDS:
            params = check_reference(spec, f"{configs / 'models.yaml'}: {name}")
            getattr(params, "api_key", None)  # a missing key is said now
    for section, entries, holder in (("systems", systems, "Params"), ("indexes", indexes, "IndexParams")):
        for name, spec in entries.items():
            _check_entry(spec.kind, spec.params, holder, f"{path}: {section}: {name}")


def _check_entry(kind: str, params: dict[str, Any], holder: str, where: str) -> None:
    cls = getattr(load_module(kind, where), holder, None)
    if cls is not None:
        read_params(cls, params, f"{where}: params")


if __name__ == "__main__":
    run_command(main)
