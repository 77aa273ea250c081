"""The arguments that every command of tasks takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.load import DIRECTORY, Experiment, load
from configs.paths import Paths


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the profile, the configuration directory and the results directory."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    made.add_argument("--configs", default=DIRECTORY, type=Path, help="the configuration directory")
    made.add_argument("--results", default=Path("results"), type=Path, help="where results stand (default: results)")
    return made


def opened(arguments: argparse.Namespace) -> tuple[Experiment, Paths, Path]:
    """The checked experiment, its paths, and the profile's file for messages."""
    where = arguments.configs / "profiles" / f"{arguments.profile}.yaml"
    return load(arguments.profile, arguments.configs), Paths.of(arguments.profile, arguments.results), where
