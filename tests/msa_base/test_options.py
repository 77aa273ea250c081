"""Options that every command has a share of: their ranges and paths."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = (
    "msa_base.workflow --results",
    "tasks.qa.fetch --data",
    "reports.claims --configs",
    "msa.memory.encode build",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_path_is_refused(command: str) -> None:
    """As an unset variable leaves it; Python takes it for the current directory."""
    ended = subprocess.run([sys.executable, "-m", *command.split(), ""], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and "empty path" in ended.stderr


def test_results_that_are_not_there_are_no_result() -> None:
    """A misspelt directory must not read as a run whose claims are not measured."""
    command = [sys.executable, "-m", "reports.claims", "--results", "no/such/results"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "") and "no/such/results" in ended.stderr
