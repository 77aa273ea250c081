"""Where a number comes from: digests of inputs and code, versions, hardware, peak memory."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from configs.errors import UserError

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "scipy",
    "faiss-cpu",
    "rank-bm25",
    "bm25s",
    "openai",
    "transformers",
    "tokenizers",
    "safetensors",
    "pyarrow",
)
REFERENCE = "reference.json"  # baselines.models
CHECKPOINT_FILES = ("model.safetensors", "config.json", "tokenizer.json")
SOURCES = ("configs", "msa", "baselines")


@cache
def file_digest(path: Path) -> str:
    """sha256 of a file. Raises UserError where it is missing."""
    try:
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the workflow stage that makes it") from None


def value_digest(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def checkpoint_digest(directory: Path) -> str:
    """One digest of a model directory: weights, configuration and tokenizer, or the reference to a model elsewhere."""
    if (directory / REFERENCE).exists():
        return file_digest(directory / REFERENCE)
    shards = {path.name for path in directory.glob("*.safetensors")} or {CHECKPOINT_FILES[0]}
    present = shards | {name for name in CHECKPOINT_FILES[1:] if (directory / name).exists()}
    return value_digest({name: file_digest(directory / name) for name in present})


@cache
def code_digest(module_file: str | None = None) -> str:
    """One digest of the code that can change an answer: three packages of the checkout and a plugin's own file."""
    checkout = Path(__file__).parent.parent
    files = sorted(path for package in SOURCES for path in (checkout / package).rglob("*.[cp]*") if path.suffix in (".c", ".py"))
    digests = {str(path.relative_to(checkout)): file_digest(path) for path in files}
    if module_file is not None:
        digests["plugin"] = file_digest(Path(module_file))
    return value_digest(digests)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory, accelerators."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = _cuda()
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": usable,
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [cuda.get_device_name(index) for index in range(cuda.device_count())] if cuda else [],
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


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
