"""Paired recall of two retrievers with its interval, and whether the first is worse beyond noise.

    python -m reports.recall --data DATA --embedder all-MiniLM-L6-v2

runs baselines.hipporag_check (whatever it takes beside ``--output`` may be given here) and compares HippoRAG 2 with dense retrieval
on the same questions: paired bootstrap over questions, 95 %. ``--rows FILE`` compares what an earlier run wrote.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from configs.errors import UserError, run_command
from configs.tables import read_json
from reports.statistics import difference, mean_interval


def compare(rows: list[dict[str, Any]], first: str, second: str) -> list[dict[str, Any]]:
    """One line a set and metric: both means and the interval of first minus second, in points.

    Raises:
        UserError: no rows, or a row lacks one of the retrievers.
    """
    tables: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    try:
        for row in rows:
            tables[row["set"], row["metric"]].append((row[first], row[second]))
    except (KeyError, TypeError):
        raise UserError(f"a row lacks one of set, metric, {first} and {second}; make the rows again") from None
    if not tables:
        raise UserError("there are no rows to compare; make them again")
    lines = []
    for (name, metric), pairs in tables.items():
        table = np.asarray(pairs, float)
        found = difference(table).scaled(100)
        means = {side: mean_interval(table[:, place]).scaled(100) for place, side in enumerate((first, second))}
        lines.append({"set": name, "metric": metric, "n": len(table), "means": means, "difference": found})
    return lines


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says of the first."""
    return "worse" if high < 0 else "better" if low > 0 else "no difference beyond noise"


def main() -> int:
    """Compare and print; exits with 1 where HippoRAG 2 is worse beyond noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="rows of an earlier run")
    chosen, passed = parser.parse_known_args()
    if chosen.rows:
        rows = read_json(chosen.rows)
    else:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "recalls.json"
            code = subprocess.run([sys.executable, "-m", "baselines.hipporag_check", *passed, "--output", str(path)]).returncode
            if code:
                return code
            rows = read_json(path)
    lines = compare(rows, "hipporag", "dense")
    for line in lines:
        first, second = (f"{side} {mean.value:.1f}" for side, mean in line["means"].items())
        found = line["difference"]
        print(
            f"{line['set']:9} {line['metric']:9} n={line['n']:<4} {first}, {second}: difference {found.value:+.1f}"
            f" [{found.low:+.1f}, {found.high:+.1f}], {verdict(found.low, found.high)}"
        )
    return int(any(line["difference"].high < 0 for line in lines))


if __name__ == "__main__":
    run_command(main)
