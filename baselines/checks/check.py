"""Check every entry of models.yaml and systems.yaml before anything runs: modules, hooks, parameters; weights too.

    python -m baselines.checks.check --profile tiny

A system module keeps its parameters in a dataclass called ``Params``, an index in ``IndexParams``, a retriever that is
a stage of another in ``RetrieverParams``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from baselines.base import Plugin, load_plugin
from baselines.parts.models import check_here, check_reference
from baselines.planning.hardware import read_hardware
from msa.checkpoints import pretrained
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.kinds import PRETRAINED, import_kind, trains
from msa_base.load import Experiment, load
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.validate import build, check_known


def main() -> None:
    check(open_experiment(experiment_parser(__doc__).parse_args())[0])


def check(experiment: Experiment) -> None:
    """Raise a UserError that names file, entry and key for the first bad entry."""
    configs, path = experiment.configs, experiment.configs / "systems.yaml"
    if (configs / "hardware.yaml").exists():
        read_hardware(configs)
    profiles = [load(file.stem, configs).profile for file in experiment.file.parent.glob("*.yaml")]
    samples = sorted({name for profile in profiles for name in profile.samples})
    for name in dict.fromkeys([*experiment.profile.models, *experiment.models]):
        where = f"{configs / 'models.yaml'}: {name}: samples"
        check_known(experiment.models[name].samples, samples, where, "the profiles")
        _check_model(experiment, name)
    for name, spec in experiment.systems.items():
        where = f"{path}: systems: {name}"
        plugin = load_plugin(spec.kind, where)
        _check_params(plugin.Params, spec.params, f"{where}: params", spec)
        gold = "gold" in inspect.signature(plugin.need("make", where)).parameters
        if gold != spec.reads_gold:
            must = "true: its module takes gold" if gold else "false: its module takes no gold"
            raise UserError(f"{where}: key 'reads_gold' must be {must}")
        _check_needs(spec, plugin.NEEDS, where)
        for key, values in spec.search.items():
            for value in values:
                _check_params(plugin.Params, {**spec.params, key: value}, f"{where}: search: {key}")
    for name, index in experiment.indexes.items():
        where = f"{path}: indexes: {name}"
        plugin = load_plugin(index.kind, where)
        plugin.need("build_index", where)
        _check_params(plugin.IndexParams, index.params, f"{where}: params")
        _check_needs(index, plugin.INDEX_NEEDS, where)


def _check_needs(spec: SystemSpec | IndexSpec, keys: Iterable[str], where: str) -> None:
    if missing := [key for key in keys if getattr(spec, key) is None]:
        raise UserError(f"{where}: kind '{spec.kind}' needs the key '{missing[0]}'; add it")


def _check_model(experiment: Experiment, name: str) -> None:
    spec, where = experiment.models[name], f"{experiment.configs / 'models.yaml'}: {name}"
    used = name in experiment.profile.models  # what the machine lacks matters for these alone
    if spec.kind == PRETRAINED:
        pretrained.read_entry(name, spec)
        if used and (reason := pretrained.missing(name, spec)):
            raise UserError(f"{experiment.file}: {reason}")
    elif trains(spec.kind):
        checker = getattr(importlib.import_module(spec.kind), "check_model", None)
        if checker is not None:
            checker(name, experiment.models if used else {name: spec}, f"{where}: params")
    else:
        import_kind(spec.kind, "baselines.parts", where)
        params = check_reference(spec, where)
        if used:
            check_here(params, where)


def _check_params(cls: type | None, params: dict[str, Any], where: str, spec: SystemSpec | None = None) -> None:
    """Check parameters, and those of the retrievers that they name by their kind (baselines.parts.retrieval), which
    need what the system's entry (``spec``) names.
    """
    found = None if cls is None else build(cls, params, where)
    for kind, own in getattr(found, "stage_params", {}).items():
        plugin: Plugin = load_plugin(kind, where)
        plugin.need("open_retriever", where)
        _check_params(plugin.RetrieverParams, own, f"{where}: {kind}", spec)
        if spec is not None:
            _check_needs(spec, plugin.NEEDS, where.removesuffix(": params"))


if __name__ == "__main__":
    run_command(main)
