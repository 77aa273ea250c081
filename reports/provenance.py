"""Where the numbers come from: versions, hardware, seeds and input digests, gathered from the run.json of every cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from reports.evidence import Evidence
from reports.tables import Field, Table, bytes_text

DIGEST_DIGITS = 12


def machine(evidence: Evidence) -> list[tuple[str, str]]:
    """What holds for the whole run; where cells differ, every value with the number of its cells."""
    profile = evidence.experiment.profile
    runs = [run for runs in evidence.runs.values() for run in runs]
    rows = [
        ("Profile", f"{evidence.experiment.name} ({profile.title})"),
        ("Tokenizer", ", ".join(f"{key} {value}" for key, value in profile.tokenizer.items())),
        ("Seeds", ", ".join(map(str, profile.seeds))),
    ]
    if not runs:
        return rows
    ended = sorted(run["ended"] for run in runs if run.get("ended"))
    if ended:
        rows.append(("Cells ended", f"{ended[0]} to {ended[-1]}"))
    rows.append(("Threads", _values(run.get("threads") for run in runs)))
    for label, key in (
        ("Processor", "cpu"),
        ("Cores", "cores"),
        ("Memory", "memory_bytes"),
        ("Accelerators", "gpus"),
        ("Platform", "platform"),
    ):
        values = (run.get("hardware", {}).get(key) for run in runs)
        rows.append(
            (label, _values(bytes_text(value) if key == "memory_bytes" and value else value for value in values))
        )
    rows.append(("Code", _values(_short(run.get("inputs", {}).get("code")) for run in runs)))
    packages = sorted({name for run in runs for name in run.get("versions", {})})
    versions = [f"{name} {_values(run.get('versions', {}).get(name) for run in runs)}" for name in packages]
    rows.append(("Versions", ", ".join(versions)))
    return rows


def _values(values: Iterable[Any]) -> str:
    counts = Counter(
        "none" if value in (None, []) else ", ".join(value) if isinstance(value, list) else str(value)
        for value in values
    )
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({count} cells)" for value, count in counts.most_common())


def _short(digest: Any) -> str:
    return digest[:DIGEST_DIGITS] if isinstance(digest, str) else "–"


def inputs(evidence: Evidence) -> Table:
    """Digests of each system's inputs; the CSV has those of every cell."""
    raw = []
    for (system, task, context), runs in evidence.runs.items():
        for run in runs:
            digests = {key: value for key, value in run.get("inputs", {}).items() if key != "seed"}
            raw.append({"system": system, "task": task, "context": context, "seed": run.get("seed"), **digests})
    frame = pd.DataFrame(raw)
    columns = [name for name in ("config", "weights", "index", "index_weights") if name in frame]
    rows = []
    for system in evidence.experiment.profile.systems:
        cells = [entry for entry in raw if entry["system"] == system]
        if cells:
            fields = [sorted({_short(entry.get(name)) for entry in cells}) for name in columns]
            rows.append(
                [
                    Field(evidence.title(system)),
                    *(Field(values[0], f"and {len(values) - 1} more" if len(values) > 1 else "") for values in fields),
                ]
            )
    header = ["System", *(name.replace("_", " ") for name in columns)]
    return Table("provenance", "Digests of each system's inputs (sha256, shortened)", header, rows, frame)
