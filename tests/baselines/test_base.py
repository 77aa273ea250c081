"""The protocol's own answers: what a system that overrides nothing records."""

from __future__ import annotations

import torch

from baselines.base import System
from msa.ops import precision


class Silent(System):
    def answer(self, questions, view):
        return []


def test_a_run_records_the_precision_of_what_it_multiplied() -> None:
    chosen = precision.choose("embedding", "auto", torch.device("cpu"))
    assert Silent().kernels()["embedding"] == chosen
    precision.choose("embedding", "bfloat16", torch.device("cpu"))
    assert Silent().kernels()["embedding"] == "bfloat16"
