"""Paired recall of two retrievers with its interval, and whether the first is worse beyond noise.

    python -m reports.recall recalls.json

compares HippoRAG 2 with dense retrieval, or what ``--first`` and ``--second`` name, on the same questions: paired
intervals over questions, 95 %, and as many questions for a verdict as reports/published/ledger.yaml asks (``least``).
The rows are those that ``python -m baselines.checks.hipporag_check --output recalls.json`` writes, or
``python -m baselines.checks.router_recall --models ...``.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd

from msa_base.errors import UserError, run_command
from msa_base.options import given_path
from msa_base.tables import read_json
from reports.published.reference import read_reference
from reports.statistics import Interval, difference, mcnemar
from reports.tables.table import Column, IntervalColumn, Table, plain

SET, METRIC, QUESTION = "set", "metric", "question_id"  # columns of the rows, beside one a retriever


def compare(rows: list[dict[str, Any]], first: str, second: str) -> Table:
    """A row a set and metric: both means and the interval of first minus second, in points, and a verdict.

    No rows, or a row that lacks one of the retrievers, are a UserError.
    """
    try:
        names = {SET: str, METRIC: str, QUESTION: str, first: float, second: float}
        frame = pd.DataFrame(rows)[list(names)]
        lacking = frame.empty or frame.isna().any(axis=None)
        frame = frame.astype(names)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"a row lacks one of {', '.join(names)}, or has another type; make the rows again") from None
    if lacking:
        raise UserError("there are no rows to compare, or values are missing; make the rows again")
    if not frame[[first, second]].stack().between(0, 1).all():
        raise UserError("a recall is no share from 0 to 1; make the rows again")
    if frame.duplicated([SET, METRIC, QUESTION]).any():
        raise UserError("a question stands there twice; make the rows again")
    found, least = [], read_reference().least.questions
    for key, pairs in frame.groupby([SET, METRIC], sort=False):
        table = pairs[[first, second]].to_numpy()
        interval = difference(table).scaled(100)
        means = 100 * pairs[first].mean(), 100 * pairs[second].mean()
        found.append((*key, len(pairs), *means, interval, mcnemar(table), verdict(interval, least)))
    columns = [*plain(set="Set", metric="Metric", n="n"), Column(first, first, ".1f"), Column(second, second, ".1f")]
    columns += [IntervalColumn("difference", "Difference", "+.1f")]
    columns += [Column("mcnemar_p", "Exact McNemar p", ".2g"), Column("verdict", f"{first} is")]
    return Table("recall", f"Recall of {first} and {second}", columns, found)


def verdict(found: Interval, least: int) -> str:
    """What an interval of a difference says of the first, from ``least`` questions on."""
    if found.n < least:
        return f"inconclusive: {found.n} questions, a verdict needs {least}"
    return "worse" if found.high < 0 else "better" if found.low > 0 else "no different beyond noise"


def main() -> int:
    """Compare and print; exits with 1 where the first is worse beyond noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=given_path, help="a row a question, as the checks of retrieval write them")
    parser.add_argument("--first", default="hipporag", help="a retriever of the rows (default: hipporag)")
    parser.add_argument("--second", default="dense", help="what it is compared with (default: dense)")
    chosen = parser.parse_args()
    table = compare(read_json(chosen.rows), chosen.first, chosen.second)
    print("\n".join(table.text()))
    return int("worse" in set(table.frame["verdict"]))


if __name__ == "__main__":
    run_command(main)
