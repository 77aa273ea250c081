"""Check a profile against the tables that it names, and print how large it is.

    python -m msa_base.check --profile tiny

The parameters of systems, tasks and the report are checked by baselines.checks.check, tasks.check and reports.check.
"""

from __future__ import annotations

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import run_command
from msa_base.load import describe


def main() -> None:
    """Check one profile."""
    experiment, _ = open_experiment(experiment_parser(__doc__).parse_args())
    print(describe(experiment))


if __name__ == "__main__":
    run_command(main)
