"""Every operation equals its oracle in every implementation that a processor can run, kernels in triton's
interpreter.
"""

from __future__ import annotations

import sys

import pytest
import torch

from msa.ops import cases, check, dispatch
from msa.ops.native import native

CASES = cases.cases(torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_an_operation_equals_its_oracle(name):
    with cases.poisoned():
        CASES[name]()


def test_nothing_is_left_out():
    operations = {(name.split()[0], name.split()[1]) for name in CASES}
    expected = {
        (operation, name) for operation, names in dispatch.OPERATIONS.items() for name in names if name != "reference"
    }
    expected |= {("route", "cpu"), ("route", "triton")}
    if sys.platform != "linux":
        expected = {pair for pair in expected if pair[1] != "triton"}
    assert operations == expected
    ways = {name.split()[-1] for name in CASES if name.startswith("chunk_scores cpu")}
    assert ways == {"tiles", *native().features}


def test_poisoned_memory_shows():
    with cases.poisoned():
        assert torch.empty(1000).isnan().all() and (torch.empty(1000, dtype=torch.int32) == 2**31 - 1).all()


def test_check_says_what_failed(monkeypatch, capsys):
    def wrong():
        raise AssertionError("0 in place of 1")

    monkeypatch.setattr(cases, "cases", lambda device: {"good": lambda: None, "bad": wrong})
    assert check.main(["--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "FAILED bad: AssertionError: 0 in place of 1" in out and "1 of 2 cases hold" in out
    assert check.main(["--device", "cpu", "--only", "good"]) == 0
