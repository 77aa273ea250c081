"""What commands of an experiment share: their options, and what these open."""

from __future__ import annotations

import argparse
from pathlib import Path

from msa_base.load import Experiment, load
from msa_base.options import add_threads, given_path
from msa_base.paths import DIRECTORY, Paths


def experiment_parser(description: str | None, threads: int | None = None, **names: str) -> argparse.ArgumentParser:
    """A parser with ``--profile``, ``--results``, ``--configs`` and ``--data``; ``--help`` shows the description.

    Args:
        threads: the default of ``--threads``, of a command that has it.
        names: further options that must be given, and their help.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument(
        "--results", default=Path("results"), type=given_path, help="where results stand (default: results)"
    )
    parser.add_argument("--configs", default=DIRECTORY, type=given_path, help="the configuration directory")
    parser.add_argument(
        "--data",
        type=lambda text: str(given_path(text)),
        help="directory of fetched sets and novels (default: the profile's `data`)",
    )
    if threads is not None:
        add_threads(parser, threads, f"CPU threads (default: {threads})", least=min(1, threads))
    for name, meaning in names.items():
        parser.add_argument(f"--{name}", required=True, help=meaning)
    return parser


def open_experiment(arguments: argparse.Namespace) -> tuple[Experiment, Paths]:
    """The checked experiment that the options name, and the paths of its results.

    Raises:
        UserError: a bad key or name in any file of the configuration.
    """
    return load(arguments.profile, arguments.configs, arguments.data), Paths.of(arguments.profile, arguments.results)
