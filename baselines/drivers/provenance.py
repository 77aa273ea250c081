"""Where a number comes from: weights, versions, hardware, peak memory."""

from __future__ import annotations

import os
import platform
import resource
import sys
from contextlib import suppress
from importlib import metadata
from typing import Any

from baselines.base import Resources
from baselines.parts.models import model_digest
from msa_base.machine import processor
from msa_base.stage_records import HardwareRecord

PACKAGES = (
    "torch", "triton", "numpy", "scipy", "faiss-cpu", "rank-bm25", "bm25s", "openai", "transformers", "tokenizers",
    "safetensors", "pyarrow",
)  # fmt: skip


def model_digests(resources: Resources) -> dict[str, str]:
    """Digests of the models that a system opens, by their place."""
    paths = (resources.model, resources.index_model, resources.reranker)
    return {f"_models/{path.name}": model_digest(path) for path in paths if path is not None}


def computed_with() -> dict[str, Any]:
    """What every record says of packages and machine."""
    return {"versions": versions(), "hardware": hardware()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> HardwareRecord:
    """Processor, cores this process may use, memory, accelerators."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = _cuda()
    return HardwareRecord(
        platform=platform.platform(),
        cpu=processor(),
        cores=usable,
        memory_bytes=psutil.virtual_memory().total,
        gpus=[cuda.get_device_name(index) for index in range(cuda.device_count())] if cuda else [],
    )


def _cuda() -> Any:
    # a system that never imported torch used no GPU, and importing it here would count as the system's memory
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def peak_host_bytes() -> int:
    """Largest resident memory of this process since it started."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes() -> int | None:
    """Largest allocated GPU memory of this process, or None where no GPU was used."""
    cuda = _cuda()
    return cuda.max_memory_allocated() if cuda else None
