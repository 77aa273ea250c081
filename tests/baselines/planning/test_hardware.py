"""Machines of hardware.yaml: what is wrong names file, machine and key; the roofline takes the slowest of its three."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from baselines.planning.hardware import Hardware, free_disk_bytes, host_bytes, read_hardware
from msa_base.errors import UserError

MACHINE = {
    "title": "two of them",
    "source": "a data sheet",
    "devices": 2,
    "device_gb": 80,
    "host_gb": 512,
    "disk_gb": 1000,
    "dtype": "bfloat16",
    "matmul_tflops": 300,
    "memory_gb_per_s": 2000,
    "link_gb_per_s": 32,
    "matmul_share": 0.5,
    "memory_share": 0.8,
}


def test_the_shipped_machines_load() -> None:
    machines = read_hardware()
    assert machines["A800-80GB-x2"].devices == 2 and machines["H200"].device_gb == 141
    assert all(machine.source for machine in machines.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(device_gbs=80), "unknown key 'device_gbs'; did you mean 'device_gb'?"),
        (lambda m: m.pop("host_gb"), "key 'host_gb' is missing"),
        (lambda m: m.update(matmul_tflops="fast"), "key 'matmul_tflops' must be a valid number, found 'fast'"),
        (lambda m: m.update(dtype="fp8"), "key 'dtype' must be 'float32' or 'bfloat16', found 'fp8'"),
        (lambda m: m.update(devices=0), "key 'devices' must be greater than 0, found 0"),
        (lambda m: m.update(memory_gb_per_s=0), "key 'memory_gb_per_s' must be greater than 0, found 0"),
    ],
)
def test_a_mistake_names_machine_and_key(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    machine = dict(MACHINE)
    change(machine)
    (tmp_path / "hardware.yaml").write_text(yaml.safe_dump({"box": machine}))
    with pytest.raises(UserError) as raised:
        read_hardware(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'hardware.yaml'}: box: ") and message in str(raised.value)


def test_the_planning_machines_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "hardware.yaml").write_text(yaml.safe_dump({"here": MACHINE}))
    with pytest.raises(UserError, match="choose another"):
        read_hardware(tmp_path)


def test_a_stage_takes_as_long_as_its_slowest_part() -> None:
    machine = Hardware(**MACHINE)
    assert machine.roofline_s(150e12, 1e9, 0) == pytest.approx(1.0)
    assert machine.roofline_s(1e12, 3200e9, 0) == pytest.approx(2.0)
    assert machine.roofline_s(0, 0, 76.8e9) == pytest.approx(3.0)


def test_this_machine_has_memory_and_disk_even_where_nothing_stands_yet(tmp_path: Path) -> None:
    assert host_bytes() > 1e8
    assert free_disk_bytes(tmp_path / "not" / "there") == pytest.approx(free_disk_bytes(tmp_path), rel=0.1)
