"""Low-rank adapters in training: what they leave, what they write, and that an interrupted one goes on."""

from __future__ import annotations

import json

import pytest
import torch

from msa.checkpoints import hub, read
from msa.training import adapters
from msa.training.train import Trainer
from msa_base.errors import UserError
from msa_base.paths import Paths
from msa_base.specs import ModelSpec
from tests.msa.training.test_train import MEMORY, backbone, msa, weights

ADAPTER = {"rank": 2, "alpha": 4, "routers": True}


@pytest.fixture
def parent(paths: Paths) -> Paths:
    Trainer("backbone", backbone(), paths).run()
    return paths


def test_only_what_has_adapters_and_the_routers_change(parent: Paths) -> None:
    Trainer("msa", msa(adapter={**ADAPTER, "modules": ["q_proj", "down_proj"]}), parent).run()
    before, after = weights(parent, "backbone"), weights(parent, "msa")
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "down_proj"}
    assert all(".router_" in name for name in after.keys() - before.keys() - {"temperature"})


def test_the_adapter_on_its_parent_is_the_checkpoint(parent: Paths) -> None:
    from peft import set_peft_model_state_dict

    Trainer("msa", msa(), parent).run()
    spec = ModelSpec(
        "msa.training.train", "msa", ["short"],
        {"adapter": ADAPTER, "phases": [MEMORY], "max_id": 1000, "precision": "float32", "save_every": 3},
    )  # fmt: skip
    Trainer("adapted", spec, parent).run()
    folder = parent.model("adapted") / adapters.FOLDER
    config = json.loads((folder / adapters.CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    stored = hub.read_tensors(folder / adapters.WEIGHTS)
    assert all(name.startswith(adapters.PREFIX) for name in stored)
    model = adapters.insert(read.load(parent.model("msa")), adapters.Adapter(2, 4.0))
    told = set_peft_model_state_dict(model, {name: stored[name] for name in stored if "lora_" in name})
    assert not told.unexpected_keys
    merged, wanted = adapters.merge(model).state_dict(), weights(parent, "adapted")
    assert torch.equal(merged.pop("temperature"), wanted.pop("temperature"))
    routers = {name.removeprefix(adapters.PREFIX) for name in stored if "lora_" not in name}
    assert routers == {name for name in wanted if ".router_" in name}
    assert all(torch.allclose(merged[name], wanted[name], atol=1e-6) for name in wanted if name not in routers)
    assert all(torch.equal(stored[adapters.PREFIX + name], wanted[name]) for name in routers)


def test_a_killed_training_of_adapters_goes_on_to_the_same_weights(
    parent: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, step, ran = msa(adapter=ADAPTER, save_every=2), Trainer.step, []
    Trainer("whole", spec, parent).run()

    def killed(self: Trainer, number: int) -> dict:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        Trainer("msa", spec, parent).run()
    saved = hub.read_tensors(parent.model("msa").with_name(".msa.resume") / "state.safetensors")
    assert not any("embed_tokens" in name for name in saved)  # the parent's weights are not saved again
    monkeypatch.setattr(Trainer, "step", lambda self, number: ran.append(number) or step(self, number))
    Trainer("msa", spec, parent).run()
    assert ran == [2, 3]
    wanted = weights(parent, "whole")
    assert all(torch.equal(wanted[name], tensor) for name, tensor in weights(parent, "msa").items())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (backbone(adapter=ADAPTER), "key 'adapter' is for a model with `after`"),
        (msa(adapter={"rank": 2}), "new routers must learn: say `routers: true`"),
        (msa(adapter={"rank": 2, "modules": ["lm_head"], "routers": True}), "modules"),
    ],
)
def test_bad_adapters_are_named(parent: Paths, spec: ModelSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Trainer("msa", spec, parent)
