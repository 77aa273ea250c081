"""Where the numbers come from: versions, hardware, seeds and digests, gathered from the records of all cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pandas as pd

from msa_base.seal import value_digest
from msa_base.stage_records import RunRecord
from reports.evidence import CellKey, Evidence
from reports.tables.table import Table, bytes_text, cell_columns, plain

DIGITS = 12  # of a digest that is shown


def machine(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What holds for the whole run; where cells differ, every value with the number of its cells."""
    profile = evidence.experiment.profile
    yield "Profile", f"{evidence.experiment.name} ({profile.title})"
    yield "Tokenizer", ", ".join(f"{key} {value}" for key, value in profile.tokenizer.items())
    yield "Seeds", ", ".join(map(str, profile.seeds))
    runs = list(chain.from_iterable(evidence.runs.values()))
    if runs:
        ended = sorted(run.ended for run in runs)
        yield "Cells ended", f"{ended[0]} to {ended[-1]}"
        yield "Threads", _values(run.threads for run in runs)
        yield "Processor", _values(run.hardware.cpu for run in runs)
        yield "Cores", _values(run.hardware.cores for run in runs)
        yield "Memory", _values(bytes_text(run.hardware.memory_bytes) for run in runs)
        yield "Accelerators", _values(", ".join(run.hardware.gpus) for run in runs)
        yield "Platform", _values(run.hardware.platform for run in runs)
        packages = sorted({name for run in runs for name in run.versions})
        yield "Versions", ", ".join(f"{name} {_values(run.versions.get(name) for run in runs)}" for name in packages)


def _values(values: Iterable[Any]) -> str:
    counts = Counter("none" if value in (None, "") else str(value) for value in values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({count} cells)" for value, count in counts.most_common())


def made_from(evidence: Evidence) -> Table:
    """What each system's answers were made from, as short digests; the CSV has those of every cell."""
    cells = [
        (*cell, run.seed, _short(run.made_from.code), _short(run.made_from.config), _short(run.made_from.data))
        for cell, runs in evidence.runs.items()
        for run in runs
    ]
    rows = []
    for system, runs in evidence.runs_of_systems().items():
        code, config = (_values(_short(getattr(run.made_from, part)) for run in runs) for part in ("code", "config"))
        rows.append((system, len(runs), code, config, _values(map(_models, runs))))
    columns = cell_columns(evidence, "system")
    columns += plain(cells="Cells", code="Code", config="Configuration", models="Models and indexes")
    csv = pd.DataFrame(cells, columns=[*CellKey._fields, "seed", "code", "config", "data"])
    return Table("provenance", "What each system's answers were made from (digests)", columns, rows, csv)


def _short(digests: dict[str, str]) -> str:
    return value_digest(digests)[:DIGITS]


def _models(run: RunRecord) -> str:
    """The models and indexes that a cell read, with their digests."""
    known = {name: digest for name, digest in run.made_from.data.items() if name.startswith(("_models/", "_indexes/"))}
    return ", ".join(f"{name.partition('/')[2]} {digest[:DIGITS]}" for name, digest in known.items())
