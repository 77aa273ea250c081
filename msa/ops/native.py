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
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("routing.c")
FLAGS = ("-O3", "-shared", "-fPIC")
FEATURES = {"avx512_bf16": 1, "avx512_vnni": 2, "amx_bf16": 4, "amx_int8": 8}


class Routing(ctypes.Structure):
    """The argument of the scoring functions of routing.c, field by field."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("from_", ctypes.c_int64),
        ("packed", ctypes.c_void_p),
        ("questions", ctypes.c_int64),
        ("tile_at", ctypes.c_void_p),
        ("query_scales", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("key_scale_step", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
    )


class Settle(ctypes.Structure):
    """The argument of msa_settle in routing.c, field by field."""

    _fields_ = (
        ("scores", ctypes.c_void_p),
        ("chunks", ctypes.c_int64),
        ("error", ctypes.c_float),
        ("least", ctypes.c_float),
        ("offsets", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("documents", ctypes.c_int64),
        ("visible", ctypes.c_void_p),
        ("k", ctypes.c_int64),
        ("between", ctypes.c_void_p),
        ("routing", ctypes.POINTER(Routing)),
        ("between_error", ctypes.c_float),
        ("keys", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("from_", ctypes.c_int),
        ("key_scales", ctypes.c_void_p),
        ("key_scale_step", ctypes.c_int64),
        ("tokens", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("best", ctypes.c_void_p),
        ("best_ids", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Native:
    """The loaded library, or None and why; ``features``: names of FEATURES that this processor and kernel offer."""

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
    for name in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni"):
        function = getattr(library, f"msa_{name}")
        function.argtypes, function.restype = (ctypes.POINTER(Routing),), None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    top, pack = library.msa_top_documents, library.msa_pack
    top.argtypes = (pointer, count, pointer, pointer, count, pointer, count, count, count, pointer, pointer)
    pack.argtypes = (*(pointer,) * 3, count, count, ctypes.c_int, *(ctypes.c_float,) * 3, *(pointer,) * 3)
    top.restype, pack.restype = ctypes.c_int, None
    library.msa_settle.argtypes, library.msa_settle.restype = (ctypes.POINTER(Settle),), count
    have = library.msa_features()
    features = frozenset(name for name, bit in FEATURES.items() if have & bit)
    return Native(library, features, f"built by {compiler}")


def _compiled(compiler: str) -> Path:
    """The shared library of the present source, compiled unless it is there."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join((compiler, *FLAGS)).encode()).hexdigest()[:16]
    directory = SOURCE.parent / "__pycache__"
    try:
        directory.mkdir(exist_ok=True)
        writable = os.access(directory, os.W_OK)
    except OSError:
        writable = False
    target = directory / f"routing.{digest}.so"
    if target.exists():
        return target
    if not writable:
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
