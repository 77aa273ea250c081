"""run.json of a cell that no system ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msa_base.seal import MadeFrom, sealed
from msa_base.stage_records import HardwareRecord, RunRecord

MACHINE = HardwareRecord(platform="Linux", cpu="A processor", cores=2, memory_bytes=8_000_000_000, gpus=[])
FIELDS = {
    "made_from": MadeFrom(),
    "profile": "toy",
    "system": "rag_bm25",
    "task": "two_hop",
    "context": "16K",
    "context_tokens": 16384,
    "seed": 0,
    "threads": 2,
    "versions": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6"},
    "hardware": MACHINE,
    "ended": "2026-04-01T12:00:00+00:00",
}


def write_run(cell: Path, status: str = "ok", **fields: Any) -> None:
    """Write the record over the predictions that are there."""
    names = [name for name in ("predictions.jsonl",) if status == "ok" and (cell / name).exists()]
    RunRecord(**{**FIELDS, "status": status, "files": sealed(cell, names), **fields}).write(cell / "run.json")
