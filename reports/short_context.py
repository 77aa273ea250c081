"""What a model lost at short context by becoming another: paired differences with their intervals.

    python -m reports.short_context short_context.json

The file holds what ``python -m msa.bench.short_context`` prints. Differences are after - before: nats of a token over
passages (Student's t, since a loss has no upper end), and right answers over questions, in points.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from msa_base.errors import UserError, run_command
from msa_base.options import given_path
from msa_base.tables import read_json
from reports.statistics import Interval, difference, endless_difference, mcnemar
from reports.tables.table import Column, IntervalColumn, Table, plain

SIDES = ("after", "before")


def compare(found: Any) -> Table:
    """A row for the loss and one for the answers, where there are any; a UserError where values are missing."""
    rows: list[tuple[str, int, float, float, Interval, float | None]] = []
    try:
        nats = np.array([found["nats_per_token"][side] for side in SIDES], dtype=float).T
        lost = endless_difference(nats)
        rows.append(("nats per token", len(nats), *nats.mean(axis=0)[::-1], lost, None))
        if "right" in found:
            right = np.array([found["right"][side] for side in SIDES], dtype=float).T
            if not np.isin(right, (0, 1)).all():
                raise ValueError("an answer is right (1) or not (0)")
            interval = difference(right).scaled(100)
            rows.append(("right answers, %", len(right), *(100 * right.mean(axis=0)[::-1]), interval, mcnemar(right)))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"not what msa.bench.short_context prints ({error!r}); run it again") from None
    columns = [*plain(what="Of"), Column("n", "n"), Column("before", "Before", ".3f"), Column("after", "After", ".3f")]
    columns += [IntervalColumn("difference", "Difference", "+.3f"), Column("mcnemar_p", "Exact McNemar p", ".2g")]
    return Table("short_context", "Short context, before and after", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=given_path, help="what msa.bench.short_context printed")
    file = parser.parse_args().file
    try:
        table = compare(read_json(file))
    except UserError as error:
        raise UserError(str(error) if str(file) in str(error) else f"{file}: {error}") from None
    print("\n".join(table.text()))


if __name__ == "__main__":
    run_command(main)
