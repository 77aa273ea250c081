"""Measured rows as a CSV, to go on from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from msa_base.errors import UserError
from msa_base.tables import whole_file


def read(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows that an earlier run wrote, none where there is no file; a UserError where its columns differ."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != columns:
        raise UserError(f"{path}: its columns are not those of this version; delete it or choose another --out")
    return rows


def write(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Write rows, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
