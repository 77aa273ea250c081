"""Machines that a plan is made for: what they hold, how fast they compute, and which tier each part of a cell takes.

The machines stand in configs/hardware.yaml; :func:`this_machine` is the one at hand. A stage takes the longest of three
times: that of its FLOPs, of the bytes that it reads from memory, and of the bytes that cross from host to
device (a roofline).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import process_time
from timeit import repeat
from typing import Literal

from baselines.base import MemoryPart
from msa_base.errors import UserError
from msa_base.paths import DIRECTORY
from msa_base.validate import Count, Name, Positive, PositiveShare, Text, read_checked

GB = 1e9
HERE = "here"  # the name of this machine among the others
AUTO_SHARE = 0.7  # of what is left of a tier, that a part without a tier may take (msa.memory.tiers)
MATMUL_SHARE = 0.25  # of this machine's matrix rate, for stages that nothing measured here; assumed
MATRIX, REPEATS = 1024, 5  # of the matrix rate's measurement
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Hardware:
    """One machine; rates and ``device_gb`` are of each device, shares say how much of a rate the plan counts on.

    ``devices: 0`` (this machine alone): its processor computes, with the host's memory as the device's.
    """

    title: Text
    source: Text
    devices: Count
    device_gb: Positive
    host_gb: Positive
    disk_gb: Positive
    dtype: Literal["float32", "bfloat16"]
    matmul_tflops: Positive  # of ``dtype``; 0 (this machine alone) has it measured when it is first needed
    memory_gb_per_s: Positive
    link_gb_per_s: Positive
    matmul_share: PositiveShare
    memory_share: PositiveShare

    def roofline_s(self, flops: float, read_bytes: float = 0.0, link_bytes: float = 0.0) -> float:
        """Seconds on one device."""
        seconds = [flops / ((self.matmul_tflops or matmul_tflops()) * self.matmul_share * 1e12)]
        if self.devices:
            seconds.append(read_bytes / (self.memory_gb_per_s * self.memory_share * GB))
            seconds.append(link_bytes / (self.link_gb_per_s * self.memory_share * GB))
        return max(seconds)


def read_hardware(directory: Path | str = DIRECTORY) -> dict[str, Hardware]:
    """The machines of hardware.yaml by name; a UserError for a bad key, or a machine that could not compute."""
    path = Path(directory) / "hardware.yaml"
    machines = read_checked(dict[Name, Hardware], path)
    if HERE in machines:
        raise UserError(f"{path}: {HERE}: this name is that of the machine that plans; choose another")
    return machines


def this_machine(results: Path) -> Hardware:
    """The machine at hand, with the disk that holds ``results``; its matrix rate is measured when it is needed."""
    return Hardware(
        "this machine", "one thread, matrix rate measured", devices=0, device_gb=0, host_gb=host_bytes() / GB,
        disk_gb=free_disk_bytes(results) / GB, dtype="float32", matmul_tflops=0,
        memory_gb_per_s=0, link_gb_per_s=0, matmul_share=MATMUL_SHARE, memory_share=0,
    )  # fmt: skip


@cache
def matmul_tflops() -> float:
    """TFLOP/s of float32 matrix products on one thread of this machine, by the thread's own clock."""
    import torch

    threads, matrix = torch.get_num_threads(), torch.ones(MATRIX, MATRIX)
    torch.set_num_threads(1)
    spent_s = repeat(lambda: torch.mm(matrix, matrix), timer=process_time, repeat=REPEATS, number=1)
    torch.set_num_threads(threads)
    return 2 * MATRIX**3 / min(spent_s) / 1e12


def host_bytes() -> int:
    """Memory of this machine, or of the control group that limits it."""
    import psutil

    sizes = [psutil.virtual_memory().total]
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # absent, or "max"
            sizes.append(int(path.read_text()))
    return min(sizes)


def free_disk_bytes(place: Path | str) -> int:
    """Free bytes of the disk that holds ``place``, or its nearest parent that exists."""
    place = Path(place).absolute()
    return shutil.disk_usage(next(part for part in (place, *place.parents) if part.exists())).free


def place(parts: Sequence[MemoryPart], machine: Hardware, room: dict[str, float]) -> dict[str, list[tuple[str, float]]]:
    """Names and bytes of parts by tier, those of a device for each device.

    A part that lies on disk already is ``stored`` where it is read from there. Where a processor computes, a copy of it
    in memory also leaves the pages that it was read from (``copied``).
    """
    placed: dict[str, list[tuple[str, float]]] = {name: [] for name in ("device", "host", "disk", "stored", "copied")}

    def size(part: MemoryPart, tier: str) -> float:
        return part.bytes / machine.devices if part.sharded and tier == "device" else part.bytes

    def fits(part: MemoryPart, tier: str) -> bool:
        return size(part, tier) <= AUTO_SHARE * (room[tier] - sum(held for _, held in placed[tier]))

    for part in sorted(parts, key=lambda part: part.tier == "auto"):
        tiers = ("device", "host", "disk") if part.tier == "auto" else (part.tier,)
        if not machine.devices:
            tiers = tuple(dict.fromkeys("host" if tier == "device" else tier for tier in tiers))
        tier = next((tier for tier in tiers[:-1] if fits(part, tier)), tiers[-1])
        placed["stored" if tier == "disk" and part.stored else tier].append((part.name, size(part, tier)))
        if part.stored and tier != "disk" and not machine.devices:
            placed["copied"].append((part.name, part.bytes))
    return placed


def shortage(tier: str, parts: list[tuple[str, float]], room: float) -> str:
    """What a tier lacks, with its three largest parts."""
    needed = sum(size for _, size in parts)
    largest = ", ".join(f"{name} {size / GB:,.1f}" for name, size in sorted(parts, key=lambda part: -part[1])[:3])
    return f"{tier} needs {needed / GB:,.1f} GB, has {room / GB:,.1f} GB to give ({largest})"
