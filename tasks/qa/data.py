"""The data directory: the files of a set's form, found, held to their checksums and revisions, or missed by name.

MANIFEST.tsv in it says of each file what was fetched:
``file bytes sha256 source_repository source_path commit licence``.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msa_base.errors import UserError
from msa_base.seal import file_digest
from msa_base.tables import whole_file
from msa_base.validate import check_known
from tasks.parts.tail import UnavailableData
from tasks.qa.readers import read_set
from tasks.qa.records import SetData
from tasks.qa.table import TABLE, FileSpec, Form, read_table

MANIFEST = "MANIFEST.tsv"
COLUMNS = ("file", "bytes", "sha256", "source_repository", "source_path", "commit", "licence")
_SHARD = re.compile(r"-\d+-of-(\d+)\.")


@dataclass(frozen=True)
class Edition:
    """A form whose files are there and as they should be."""

    name: str
    form: Form
    files: dict[str, list[Path]]  # by role
    digests: dict[str, str]  # sha256 by place in the data directory
    language: str

    def read(self, where: str) -> SetData:
        return read_set(self.form.reader, self.files, where)

    def source(self) -> dict[str, Any]:
        """Where it came from, for records."""
        form = self.form
        place = {"repository": form.repository, "revision": form.revision, "sha256": self.digests}
        read = {"set": self.name, "form": form.name, "split": form.split, "language": self.language}
        return read | place


def fetch_command(data: Path | str, name: str, form: str | None = None) -> str:
    command = ["python", "-m", "tasks.qa.fetch", "--data", str(data), "--set", name]
    return shlex.join([*command, *(["--form", form] if form else [])])


def read_manifest(data: Path | str) -> dict[str, dict[str, str]]:
    """Rows of MANIFEST.tsv by file; none where it is not there. Raises UserError: another header, or a file twice."""
    path = Path(data) / MANIFEST
    if not path.exists():
        return {}
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    found = {str(row.get("file")): row for row in rows}
    if rows and set(rows[0]) != set(COLUMNS):
        raise UserError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(map(str, rows[0]))}")
    if len(found) != len(rows):
        twice = next(name for name, number in Counter(row["file"] for row in rows).items() if number > 1)
        raise UserError(f"{path}: names {twice} twice; keep the row whose sha256 is the file's")
    return found


def write_manifest(rows: dict[str, dict[str, str]], data: Path | str) -> None:
    """Write MANIFEST.tsv, sorted by file, whole or not at all."""
    with whole_file(Path(data) / MANIFEST) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()))


def places(data: Path | str, file: FileSpec) -> list[Path]:
    """The file, or its shards in order, as far as they are there. Raises UserError: some shards are missing."""
    data = Path(data)
    found = sorted(path for path in data.glob(file.at) if path.is_file())
    numbers = {int(match[1]) for path in found if (match := _SHARD.search(path.name))} if "*" in file.at else set()
    if numbers and numbers != {len(found)}:
        raise UserError(f"{data / file.at}: {len(found)} shards of {sorted(numbers)[0]} are there; fetch the set again")
    return found


def forms_of(name: str, form: str | None, where: str) -> list[Form]:
    """The forms of a set, or the one asked for. Raises UserError: an unknown set or form."""
    sets = read_table()
    check_known([name], sets, where, TABLE)
    forms = [item for item in sets[name].forms if form in (None, item.name)]
    if not forms:
        known = ", ".join(item.name for item in sets[name].forms)
        raise UserError(f"{where}: key 'form': set {name} has no form '{form}' (known: {known})")
    return forms


def find_set(data: Path | str | None, name: str, where: str, form: str | None = None) -> Edition:
    """The first form of a set whose files are all in the data directory, or the form asked for.

    Raises:
        UnavailableData: no data directory is configured, or it holds no form of the set.
        UserError: an unknown set or form, or a file that :func:`verify` refuses.
    """
    forms = forms_of(name, form, where)
    if data is None:
        mend = f"give --data DIRECTORY (make: DATA=DIRECTORY), then {fetch_command('DIRECTORY', name)}"
        raise UnavailableData(f"set {name}: no data directory is named; {mend}")
    for item in forms:
        files = {role: places(data, file) for role, file in item.files.items()}
        if all(files.values()):
            language = item.language or read_table()[name].language
            return Edition(name, item, files, verify(data, name, item, files), language)
    wanted = [Path(data) / file.at for file in forms[0].files.values()]
    raise UnavailableData(f"{', '.join(map(str, wanted))}: not there; fetch it: {fetch_command(data, name, form)}")


def verify(data: Path | str, name: str, form: Form, files: dict[str, list[Path]]) -> dict[str, str]:
    """sha256 of each file by its place, held to the table where it knows it, else to the manifest.

    Raises:
        UserError: a checksum or revision is wrong, or no checksum is recorded.
    """
    manifest = read_manifest(data)
    digests = {}
    for role, file in form.files.items():
        revision = form.source(file)[1]
        for path in files[role]:
            place = path.relative_to(data).as_posix()
            row = manifest.get(place)
            expected = file.sha256 or (row and row["sha256"])
            again = f"delete it and fetch it again: {fetch_command(data, name, form.name)}"
            if not expected:
                raise UserError(f"{path}: no checksum of it is recorded, so it cannot be trusted; {again}")
            if not file.sha256 and revision and row["commit"] != revision:
                raise UserError(f"{path}: of revision {row['commit']}, expected {revision}; {again}")
            digests[place] = file_digest(path)
            if digests[place] != expected:
                raise UserError(f"{path}: wrong checksum: sha256 {digests[place]}, expected {expected}; {again}")
    return digests
