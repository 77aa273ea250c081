"""What every test needs in the environment, set before torch or triton can be imported."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # on every machine alike
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core a worker
