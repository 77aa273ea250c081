"""Triton's kernels run in its interpreter: set before anything can import triton, on every machine alike."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
