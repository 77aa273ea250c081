"""Where a process computes and in which precision it multiplies: the one place that asks the hardware.

Training, its optimiser, encoding, embedding, reranking and routing all ask here. A precision that a configuration names
wins; ``auto`` is bfloat16 where the hardware multiplies it faster than float32, else float32.
"""

from __future__ import annotations

import os
from functools import cache

import torch

from msa_base.errors import UserError

PRODUCTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRECISIONS = ("auto", *PRODUCTS)
# instruction sets that ONEDNN_MAX_CPU_ISA can name, weakest first
LEVELS = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16",
    "AVX512_CORE_FP16", "AVX512_CORE_AMX",
)  # fmt: skip

_chosen: dict[str, str] = {}


def device() -> torch.device:
    """Where this process computes: its own GPU where there is one."""
    if torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0)))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def may_use(level: str) -> bool:
    """Whether this process may use the instructions of a level of LEVELS, if the processor has them.

    ``ONEDNN_MAX_CPU_ISA`` holds oneDNN to a level, and the code of this project with it; `make ISA=avx2` sets it, and
    what holds torch's own loops, MKL and FAISS.
    """
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return held not in LEVELS or LEVELS.index(held) >= LEVELS.index(level)


@cache
def fast_bfloat16(where: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32.

    A processor needs AMX or AVX512-BF16, and an oneDNN that :func:`may_use` them. Without them torch's bfloat16
    products are some fifty times slower than its float32 ones.
    """
    if where.type == "cuda":
        return torch.cuda.get_device_capability(where) >= (8, 0)
    if where.type != "cpu" or not may_use("AVX512_CORE_BF16"):
        return False
    has_units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return has_units and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose(purpose: str, configured: str, where: torch.device) -> str:
    """The precision of the products of a purpose on a device, ``float32`` or ``bfloat16``; it is kept for `chosen`.

    Args:
        purpose: such as ``encoding``.
        configured: one of ``PRECISIONS``.

    Raises:
        UserError: an unknown precision.
    """
    if configured not in PRECISIONS:
        raise UserError(f"{purpose}: precision {configured!r} is unknown (known: {', '.join(PRECISIONS)})")
    auto = "bfloat16" if fast_bfloat16(where) else "float32"
    _chosen[purpose] = auto if configured == "auto" else configured
    return _chosen[purpose]


def chosen() -> dict[str, str]:
    """The precision of every purpose chosen so far in this process, to be recorded with a run."""
    return dict(_chosen)


def autocast(precision: str, where: torch.device) -> torch.autocast:
    """A context whose products are taken in a precision that :func:`choose` gave."""
    return torch.autocast(where.type, torch.bfloat16, enabled=precision == "bfloat16")
