"""Low-rank adapters (LoRA, arXiv 2106.09685): the weights of a parent stay, small matrices beside them learn.

peft puts them in and writes them (`adapter_model.safetensors`, `adapter_config.json`), so that its users can load them.
The checkpoint of a model trained so holds the sums, and is opened as any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from msa.model.decoder import MSAModel
from msa_base.tables import whole_file, write_json
from msa_base.validate import Count, Positive

Module = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODULES: list[Module] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FOLDER, WEIGHTS, CONFIG = "adapter", "adapter_model.safetensors", "adapter_config.json"  # beside a checkpoint
PREFIX = "base_model.model."  # of every name in peft's files


@dataclass(frozen=True)
class Adapter:
    """What learns where a recipe asks for adapters: products of two matrices [rank] beside each of ``modules``.

    What they add counts ``alpha`` / ``rank``. With ``routers`` the routers' own projections learn too, as a whole.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    modules: Annotated[list[Module], Field(min_length=1)] = field(default_factory=MODULES.copy)
    routers: bool = False

    def peft(self) -> object:
        """The same as peft's LoraConfig."""
        from peft import LoraConfig

        whole = ["router_q_proj", "router_k_proj"] if self.routers else None
        return LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=list(self.modules), modules_to_save=whole, bias="none"
        )


def insert(model: MSAModel, adapter: Adapter) -> MSAModel:
    """Put adapters into a model, in place; they alone (and routers, where asked for) require gradients."""
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    inject_adapter_in_model(Adapter(adapter.rank, adapter.alpha, adapter.modules).peft(), model)
    if adapter.routers:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or ".router_" in name)
    return model


def learned(model: MSAModel) -> dict[str, torch.Tensor]:
    """What training changes of an adapted model, by peft's names."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {PREFIX + name.replace(".default", ""): tensor for name, tensor in named.items()}


def write(model: MSAModel, adapter: Adapter, directory: Path) -> None:
    """Write the adapters and routers that learned, as peft does."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    with whole_file(directory / WEIGHTS) as temporary:
        save_file({name: tensor.contiguous().cpu() for name, tensor in learned(model).items()}, temporary)
    config = adapter.peft().to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json({**plain, "inference_mode": True}, directory / CONFIG)


def merge(model: MSAModel) -> MSAModel:
    """Add the adapters to the weights beside them, in place, and take them out."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    return model.requires_grad_(True)
