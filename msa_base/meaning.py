"""What entries mean that a model is trained by: their values with the defaults of the records that check them.

An entry as it is written says nothing of a default, and a default may change. What is off (null, false, empty) is left
out, so that a new key that is off by default changes the meaning of no entry.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from msa_base import stages
from msa_base.kinds import PRETRAINED, import_kind
from msa_base.load import Experiment
from msa_base.validate import build


def tokenizer(experiment: Experiment) -> dict[str, Any]:
    """The profile's tokenizer."""
    check = import_module("tasks.stages.vocabulary").tokenizer_spec
    return stated(check(experiment.profile.tokenizer, f"{experiment.file}: tokenizer"))


def samples(experiment: Experiment, name: str) -> dict[str, Any]:
    """A training set of the profile, made by rule or from a real set."""
    entry = experiment.profile.samples[name]
    module, record = ("tasks.qa.samples", "RealSpec") if "set" in entry else ("tasks.stages.samples", "SampleSpec")
    checked = build(getattr(import_module(module), record), entry, f"{experiment.file}: samples: {name}")
    return stated(checked)


def model(experiment: Experiment, name: str) -> dict[str, Any]:
    """A model; of a kind whose module has no ``ModelParams`` as it is written, with a digest of its code."""
    spec, where = experiment.models[name], f"{experiment.configs / 'models.yaml'}: {name}"
    module = import_kind(spec.kind, "msa.checkpoints" if spec.kind == PRETRAINED else "baselines.parts", where)
    if not hasattr(module, "ModelParams"):
        return {**stated(spec), "code": stages.model(spec).code}
    params = build(module.ModelParams, spec.params, f"{where}: params")
    return {**stated(spec), "params": stated(params)}


def stated(value: Any) -> Any:
    """Configuration as a JSON value, without the keys that are off."""
    value = stages.plain(value)
    if isinstance(value, list):
        return [stated(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: stated(item) for key, item in value.items()}
    return {key: item for key, item in found.items() if not (item is None or item is False or item in ([], {}))}
