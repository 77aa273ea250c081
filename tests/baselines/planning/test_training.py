"""What the plan says of other people's checkpoints and the paper's trainings: parameters, tokens, bytes of devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from baselines.planning.cost import Planner
from baselines.planning.hardware import read_hardware
from msa.model.cost import parameters, phase_tokens_at_once, planned_config, tokens_twice
from msa_base.load import load
from msa_base.paths import DIRECTORY, Paths


@pytest.mark.parametrize(
    ("model", "stated", "gemma_norms"),  # stated by mteb of each checkpoint (embeddings-benchmark/mteb at a905523d)
    [
        ("qwen3_4b_embedding", 4_021_774_336, 0),
        ("qwen3_4b_rerank", 4_021_784_576, 0),
        ("qwen3_8b_rerank", 8_188_548_096, 0),
        ("kalm_gemma3_12b", 11_766_034_176, 48 * 2 * 3840),
    ],
)
def test_shapes_that_plans_count_with_have_the_parameters_that_are_published(model, stated, gemma_norms) -> None:
    config = planned_config(model, load("paper_best" if "8b" in model or "12b" in model else "paper_qa").models, 0)
    assert sum(parameters(config).values()) + gemma_norms == stated


def test_a_training_that_holds_few_tokens_at_once_encodes_its_bank_twice() -> None:
    samples = {"long": {"bank_tokens": 60000}}
    phase = {"objective": "memory", "samples": "long", "steps": 10, "rows": 200, "answer_share": 0.0}
    assert phase_tokens_at_once(phase, samples) == 60000 + 4096
    assert phase_tokens_at_once({**phase, "tokens_at_once": 1024}, samples) == 1024
    assert tokens_twice({"phases": [phase], "shards": 2}, samples) == 0
    assert tokens_twice({"phases": [{**phase, "tokens_at_once": 1024}], "shards": 2}, samples) == 2 * 10 * 60000


def test_two_devices_share_the_state_of_a_training_and_hold_64k_tokens() -> None:
    """The largest training of the paper's Table 4 fits two A800s with 80 GB, and no single one."""
    experiment, machines = load("paper_trained"), read_hardware(DIRECTORY)
    planner = Planner(experiment, Paths.of("paper_trained", Path("nowhere")))
    made, two = planner.training("msa_s2"), machines["A800-80GB-x2"]
    assert planner.judge(made, two).status == "ok"
    held = {part.name: part.bytes for part in made.parts}
    alone = planner.judge(made, replace(two, devices=1)).device_bytes
    assert alone - planner.judge(made, two).device_bytes == pytest.approx(held["optimiser state"] / 2)
    assert held["weights"] == held["gradients"] == 4 * sum(parameters(planner.config("msa_s2")).values())
