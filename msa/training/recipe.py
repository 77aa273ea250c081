"""What a models.yaml entry of kind msa.training.train says, checked before any job: shape, router, phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from msa.model.stated import Router, Shape
from msa.training.adapters import Adapter
from msa.training.objectives import OBJECTIVES
from msa.training.samples import Phase
from msa.training.sources import stated_layers
from msa_base.errors import UserError
from msa_base.specs import ModelSpec
from msa_base.validate import Count, Positive, Rate, Seed, Share, Threads, Weight, Whole, build, check_known


@dataclass(frozen=True)
class TrainedShape(Shape):
    """The shape of a model trained from scratch."""

    # initial gain of the final norm: with unit embeddings it keeps first logits small
    logit_gain: Annotated[float, Field(gt=0, le=1000)] = 0.15


@dataclass(frozen=True)
class Optimizer:
    """Muon on matrices, AdamW on embeddings and gains.

    One schedule over all phases: warm-up, constant, then over the last ``decay_share`` linear to ``final_share``.
    """

    matrix_learning_rate: Rate = 0.02
    vector_learning_rate: Rate = 0.005
    matrix_weight_decay: Weight = 0.0
    warmup_steps: Whole = 20
    decay_share: Share = 0.5
    final_share: Share = 0.02
    clip: Positive = 1.0


@dataclass(frozen=True)
class TrainParams:
    """The ``params`` of a models.yaml entry of this kind.

    A step is the mean over ``shards`` batches, each with a bank of its own, in any number of processes. With an
    ``adapter`` the parent's weights stay, and low-rank matrices beside them learn.
    """

    phases: Annotated[list[Phase], Field(min_length=1)]
    shape: TrainedShape | None = None
    router: Router | None = None
    adapter: Adapter | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    max_id: Annotated[int, Field(gt=0, le=2**31)] = 1_000_000
    seed: Seed = 0
    save_every: Count = 100
    shards: Threads = 1


def read_recipe(spec: ModelSpec, where: str) -> TrainParams:
    """The checked ``params`` of an entry; a UserError for a bad key or value, or samples that it does not list."""
    params: TrainParams = build(TrainParams, spec.params, where)
    if (params.shape is None) == (spec.after is None):
        raise UserError(f"{where}: key 'shape' is for a model without `after`, and needed there")
    if params.adapter and spec.after is None:
        raise UserError(f"{where}: key 'adapter' is for a model with `after`, whose weights stay; leave it out")
    if params.adapter and params.router and not params.adapter.routers:
        raise UserError(f"{where}: new routers must learn: say `routers: true` in key 'adapter'")
    names = [phase.name for phase in params.phases]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: phases: '{twice[0]}' is named twice; give each phase a name of its own")
    for number, phase in enumerate(params.phases):
        inside = f"{where}: phases[{number}]"
        check_known([phase.objective], OBJECTIVES, f"{inside}: objective", "msa/training/objectives.py")
        check_known([phase.samples], spec.samples, f"{inside}: samples", f"the entry's key 'samples' ({where})")
        if phase.documents[0] > phase.documents[1]:
            raise UserError(f"{inside}: key 'documents' must be fewest and most, found {phase.documents}")
        if not (phase.lm_weight or phase.aux_weight or phase.answer_weight):
            raise UserError(f"{inside}: the keys 'lm_weight', 'aux_weight' and 'answer_weight' must not all be 0")
    return params


def check_model(name: str, models: Mapping[str, ModelSpec], where: str) -> None:
    """Raise a UserError for an entry that could not be trained; ``models`` holds its ancestors where they are known."""
    params = read_recipe(models[name], where)
    layers = stated_layers(name, models)
    if params.router and layers:
        params.router.check_layers(layers, where)
