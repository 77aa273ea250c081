"""Training time against context as it was measured here: medians, and exponents with intervals."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from msa_base.errors import UserError
from reports.statistics import Interval, slope_interval
from reports.tables.table import Column, IntervalColumn, Table, figure, plain

TITLES = {"msa": "MSA", "full_attention": "Full attention"}
EXPONENT = "exponent of the context"
NEEDED = ("system", "context_tokens", "processor_seconds", "processor", "threads", "parameters")


def read(path: Path) -> pd.DataFrame | None:
    """The timings, None where there are none; a UserError where a column is missing."""
    if not path.exists():
        return None
    frame = pd.read_csv(path)
    if lacking := [name for name in NEEDED if name not in frame.columns]:
        raise UserError(f"{path}: column {lacking[0]} is missing; delete the file and measure again")
    return frame


def table(frame: pd.DataFrame) -> Table:
    """A row a system and context, then the exponents: least squares of log processor seconds on log tokens."""
    columns = [
        *plain(title="System", place="Where"),
        IntervalColumn("measured", "Processor seconds of a step, or exponent", figure),
        Column("n", "n"),
    ]
    rows, slopes = [], []
    for system, own in frame.groupby("system", sort=False):
        title = TITLES.get(system, system)
        for context, some in own.groupby("context_tokens"):
            took = some["processor_seconds"]
            extremes = Interval(took.median(), took.min(), took.max(), len(took), "median and extremes")
            rows.append((title, f"{context:,} tokens (median, extremes)", extremes, len(took)))
        if own["context_tokens"].nunique() > 2:
            slope: Interval = slope_interval(own["context_tokens"].to_list(), own["processor_seconds"].to_list())
            slopes.append((title, EXPONENT, slope, slope.n))
    size, threads = frame["parameters"].max(), frame["threads"].max()
    where = ", ".join(sorted(set(frame["processor"])))
    title = f"Measured here: a model of {size / 1e6:.1f}M parameters, {threads} threads, {where}"
    return Table("training-time", title, columns, [*rows, *slopes], frame)
