"""Machines that a plan is made for, from configs/hardware.yaml: what they hold and how fast they compute.

Seconds of a stage are a roofline: of FLOPs, of bytes read from memory and of bytes that cross from host to device,
whichever takes longest.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.load import DIRECTORY, build, read_yaml

GB = 1e9
HERE = "here"  # the name of this machine among the others
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Hardware:
    """One machine; rates and ``device_gb`` are of each device, shares say how much of a rate the plan counts on.

    ``devices: 0`` (this machine alone): its processor computes, with the host's memory as the device's.
    """

    title: str
    source: str
    devices: int
    device_gb: float
    host_gb: float
    disk_gb: float
    dtype: str
    matmul_tflops: float  # of ``dtype``
    memory_gb_per_s: float
    link_gb_per_s: float
    matmul_share: float
    memory_share: float

    def roofline_s(self, flops: float, read_bytes: float = 0.0, link_bytes: float = 0.0) -> float:
        """Seconds on one device."""
        seconds = [flops / (self.matmul_tflops * self.matmul_share * 1e12)]
        if self.devices:
            seconds.append(read_bytes / (self.memory_gb_per_s * self.memory_share * GB))
            seconds.append(link_bytes / (self.link_gb_per_s * self.memory_share * GB))
        return max(seconds)


def read_hardware(directory: Path | str = DIRECTORY) -> dict[str, Hardware]:
    """The machines of hardware.yaml by name.

    Raises:
        UserError: an unknown, missing or ill-typed key, or a machine that could not compute.
    """
    path = Path(directory) / "hardware.yaml"
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of machines, found {type(content).__name__}")
    machines = {str(name): build(Hardware, entry, f"{path}: {name}") for name, entry in content.items()}
    for name, machine in machines.items():
        if name == HERE:
            raise UserError(f"{path}: {name}: this name is that of the machine that plans; choose another")
        if machine.dtype not in ("float32", "bfloat16"):
            raise UserError(f"{path}: {name}: key 'dtype' must be float32 or bfloat16, found {machine.dtype!r}")
        for key, value in vars(machine).items():
            if isinstance(value, (int, float)) and not value > 0:
                raise UserError(f"{path}: {name}: key '{key}' must be above 0, found {value}")
    return machines


def host_bytes() -> int:
    """Memory of this machine, or of the control group that limits it."""
    import psutil

    sizes = [psutil.virtual_memory().total]
    for path in _LIMITS:
        try:
            sizes.append(int(path.read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(sizes)


def free_disk_bytes(place: Path | str) -> int:
    """Free bytes of the disk that holds ``place``, or its nearest parent that exists."""
    place = Path(place).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
