"""Compare the answers of two results directories, times aside: the check that a run can be repeated.

python -m baselines.compare results other/results --profile tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.errors import run_command
from configs.load import DIRECTORY, Experiment, load
from configs.paths import Paths
from configs.records import Answer
from configs.tables import read_predictions

SAID = ("question_id", "text", "cited_doc_ids", "routed_doc_ids", "rounds", "truncated", "status")


def said(answers: list[Answer]) -> list[tuple]:
    """What a system said, without what it cost."""
    return [tuple(getattr(answer, name) for name in SAID) for answer in answers]


def differences(experiment: Experiment, first: Path, second: Path) -> tuple[int, list[str]]:
    """Cells compared, and those whose answers differ or that only one of the two has."""
    profile, differing, compared = experiment.profile, [], 0
    left, right = (Paths.of(experiment.name, results) for results in (first, second))
    for system in profile.systems:
        for task in profile.tasks:
            for context in profile.contexts:
                for seed in profile.seeds:
                    files = [paths.cell(system, task, context, seed) / "predictions.jsonl" for paths in (left, right)]
                    there = [path.exists() for path in files]
                    compared += all(there)
                    same = all(there) and said(read_predictions(files[0])) == said(read_predictions(files[1]))
                    if any(there) and not same:
                        differing.append(f"{system}/{task}/{context}/seed{seed}")
    return compared, differing


def main() -> int:
    """Print the cells that differ; exit 1 where there are any, or nothing to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="a results directory")
    parser.add_argument("second", type=Path, help="another one")
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    chosen = parser.parse_args()
    compared, differing = differences(load(chosen.profile, chosen.configs), chosen.first, chosen.second)
    for cell in differing:
        print(f"differs: {cell}")
    print(f"{compared} cells in both, {len(differing)} differ")
    return 1 if differing or not compared else 0


if __name__ == "__main__":
    run_command(main)
