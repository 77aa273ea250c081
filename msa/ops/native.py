"""Compiles routing.c with the machine's C compiler, once, and says what it can do on this processor.

The library lies beside Python's own compiled files, named by a digest of its source, or in a temporary directory where
those cannot be written. Without a compiler, or on another processor than x86-64 under Linux, there is none, and routing
runs in torch.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from msa.ops.precision import may_use

SOURCE = Path(__file__).with_name("routing.c")
FLAGS = ("-O3", "-shared", "-fPIC")
# scoring functions: the bit of msa_features that each needs, and oneDNN's name for the instructions
FEATURES = {
    "avx512_bf16": (1, "AVX512_CORE_BF16"), "avx512_vnni": (2, "AVX512_CORE_VNNI"), "amx_bf16": (4, "AVX512_CORE_AMX"),
    "amx_int8": (8, "AVX512_CORE_AMX"), "avx2_float32": (16, "AVX2"), "avx2_int16": (16, "AVX2"),
}  # fmt: skip

POINTER, COUNT, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Routing(ctypes.Structure):
    """The argument of the scoring functions of routing.c, field by field."""

    _fields_ = (
        ("keys", POINTER), ("stride", COUNT), ("steps", COUNT), ("first", COUNT), ("last", COUNT), ("rows", POINTER),
        ("stored", COUNT), ("packed", POINTER), ("questions", COUNT), ("tile_at", POINTER), ("query_scales", POINTER),
        ("key_scales", POINTER), ("key_scale_step", COUNT), ("out", POINTER), ("out_stride", COUNT),
    )  # fmt: skip


class Settle(ctypes.Structure):
    """The argument of msa_settle in routing.c, field by field."""

    _fields_ = (
        ("scores", POINTER), ("chunks", COUNT), ("error", NUMBER), ("least", NUMBER), ("offsets", POINTER),
        ("ids", POINTER), ("documents", COUNT), ("visible", POINTER), ("k", COUNT), ("between", POINTER),
        ("routing", ctypes.POINTER(Routing)), ("between_error", NUMBER), ("keys", POINTER), ("stride", COUNT),
        ("width", COUNT), ("stored", ctypes.c_int), ("key_scales", POINTER), ("key_scale_step", COUNT),
        ("tokens", POINTER), ("index", POINTER), ("count", COUNT), ("best", POINTER), ("best_ids", POINTER),
        ("values", POINTER),
    )  # fmt: skip


@dataclass(frozen=True)
class Native:
    """The loaded library, or None and why; ``features``: names of FEATURES that may run here (:func:`may_use`)."""

    library: ctypes.CDLL | None
    features: frozenset[str]
    why: str


@cache
def native() -> Native:
    """Compile if need be, load and ask the processor."""
    nothing = frozenset()
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return Native(None, nothing, f"{sys.platform} on {platform.machine()}: only Linux on x86-64 has native routing")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return Native(None, nothing, "no C compiler (cc, gcc or clang) is on the path")
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return Native(None, nothing, f"{compiler} cannot build {SOURCE.name}: {said[0] if said else 'no message'}")
    for name in FEATURES:
        function = getattr(library, f"msa_{name}")
        function.argtypes, function.restype = (ctypes.POINTER(Routing),), None
    top, pack = library.msa_top_documents, library.msa_pack
    top.argtypes = (POINTER, COUNT, POINTER, POINTER, COUNT, POINTER, COUNT, COUNT, COUNT, POINTER, POINTER)
    pack.argtypes = (
        *(POINTER,) * 3, COUNT, COUNT, *(ctypes.c_int,) * 2, NUMBER, ctypes.c_int, *(NUMBER,) * 3, *(POINTER,) * 3,
    )  # fmt: skip
    top.restype, pack.restype = ctypes.c_int, None
    library.msa_settle.argtypes, library.msa_settle.restype = (ctypes.POINTER(Settle),), COUNT
    offered = library.msa_features()
    features = frozenset(name for name, (bit, level) in FEATURES.items() if offered & bit and may_use(level))
    return Native(library, features, f"built by {compiler}")


def _compiled(compiler: str) -> Path:
    """The shared library of the present source, compiled unless it is there."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join((compiler, *FLAGS)).encode()).hexdigest()[:16]
    directory = SOURCE.parent / "__pycache__"
    target = directory / f"routing.{digest}.so"
    if target.exists():
        return target
    with suppress(OSError):
        directory.mkdir(exist_ok=True)
    if not (directory.is_dir() and os.access(directory, os.W_OK)):
        directory = Path(tempfile.mkdtemp(prefix="msa-routing-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        target = directory / target.name
    # under a name of its own first: several processes may start at once
    made = directory / f".{target.name}.{os.getpid()}"
    try:
        subprocess.run([compiler, *FLAGS, "-o", str(made), str(SOURCE)], check=True, capture_output=True, text=True)
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)
    return target
