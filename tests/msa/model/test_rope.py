"""Frequencies of RoPE against those of transformers, at settings that no small model has."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from msa.model.rope import rotary_frequencies
from msa.model.rope_scaling import RopeScaling


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_at_the_ends_of_its_ramp(truncate: bool) -> None:
    """A small theta or a long first training puts the end of the ramp behind the last frequency, short ones its start
    before the first.
    """
    for theta, positions, fast in itertools.product((3.0, 500.0, 1e6), (4, 300, 10**6), (1.0, 32.0)):
        values = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": positions}
        values |= {"beta_fast": fast, "beta_slow": 1.0, "truncate": truncate}
        sizes = {"hidden_size": 128, "num_attention_heads": 4, "max_position_embeddings": 4 * positions}
        theirs = Qwen2Config(rope_parameters={**values, "rope_theta": theta}, **sizes)
        wanted, gain = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
        scaling = RopeScaling.from_hub({"rope_scaling": values, **sizes}, "config.json", 32)
        found = rotary_frequencies(32, theta, scaling, torch.device("cpu"))
        assert torch.equal(found, wanted) and scaling.attention_factor == pytest.approx(gain)
