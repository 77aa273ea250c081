"""What a model of the workflow is made from: its samples, its parent, the profile's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from msa.checkpoints import hub
from msa_base.paths import Paths
from msa_base.seal import MadeFrom
from msa_base.specs import ModelSpec
from msa_base.stages import model as model_code

TABLES = ("banks", "samples")  # of a training set


def made_from(spec: ModelSpec, paths: Paths) -> MadeFrom:
    """All that a model depends on; of its sample sets those that its phases name, if it has any."""
    samples = sorted({phase["samples"] for phase in spec.params.get("phases", ())}) or spec.samples
    files = [paths.tokenizer, *(paths.samples(name) / f"{table}.parquet" for name in samples for table in TABLES)]
    if spec.after:
        parent = paths.model(spec.after)
        named = [path for name in ("config.json", hub.GENERATION) if (path := parent / name).exists()]
        files += [*named, *sorted(parent.glob("*.safetensors"))]
    return model_code(spec).of(paths.root, *files)


def stated_layers(name: str | None, models: Mapping[str, ModelSpec]) -> int | None:
    """How many layers a model has, by the shape that it or an ancestor states."""
    while name in models:
        shape = models[name].params.get("shape")
        if isinstance(shape, dict) and isinstance(shape.get("layers"), int):
            return shape["layers"]
        name = models[name].after
    return None
