"""The table of sets: for each where its files come from, at which revision and checksum, and how they are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.load import build, check_known, read_yaml

TABLE = Path(__file__).with_name("sets.yaml")
HOSTS = ("hub", "github")
EVALUATION, TRAINING, DISTRACTORS = "evaluation", "training", "distractors"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileSpec:
    """A file (or, with ``*`` in both places, all shards of one): ``at`` in the data directory, ``path`` in the repository."""

    at: str
    path: str
    sha256: str | None = None  # None: not known
    repository: str | None = None  # where it is another one than the form's
    revision: str | None = None


@dataclass(frozen=True)
class Form:
    """One edition of a set. ``reader`` names a function of tasks.qa.readers; ``files`` are by role."""

    name: str
    reader: str
    host: str  # hub | github
    repository: str
    revision: str | None  # commit; None: not known
    split: str
    licence: str
    files: dict[str, Any]

    def file_specs(self) -> dict[str, FileSpec]:
        """The files by role."""
        return {role: FileSpec(**entry) for role, entry in self.files.items()}

    def source(self, file: FileSpec) -> tuple[str, str | None]:
        """Repository and revision of one of its files."""
        return (file.repository, file.revision) if file.repository else (self.repository, self.revision)


@dataclass(frozen=True)
class SetSpec:
    """One set; ``tokens`` is the memory size of the paper, None beside the nine."""

    title: str
    language: str
    documents: str
    answers: str
    gold: str
    forms: list[dict[str, Any]]
    tokens: int | None = None
    use: str = EVALUATION  # evaluation | training | distractors

    def chosen_forms(self) -> list[Form]:
        """The forms in order of preference."""
        return [Form(**entry) for entry in self.forms]


def read_table(path: Path | str = TABLE) -> dict[str, SetSpec]:
    """The table, checked.

    Raises:
        UserError: an unknown, missing or senseless entry; the message names it.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping from set to entry")
    return {name: _checked(name, entry, path) for name, entry in content.items()}


def _checked(name: str, entry: Any, path: Path | str) -> SetSpec:
    spec: SetSpec = build(SetSpec, entry, f"{path}: {name}")
    if spec.use not in (EVALUATION, TRAINING, DISTRACTORS) or not spec.forms:
        raise UserError(f"{path}: {name}: needs a form, and 'use' must be {EVALUATION}, {TRAINING} or {DISTRACTORS}")
    for item in spec.forms:
        form: Form = build(Form, item, f"{path}: {name}: forms")
        where = f"{path}: {name}: forms: {form.name}"
        if form.host not in HOSTS:
            raise UserError(f"{where}: key 'host' must be one of {', '.join(HOSTS)}, found {form.host!r}")
        for role, file in form.files.items():
            found: FileSpec = build(FileSpec, file, f"{where}: {role}")
            if Path(found.at).is_absolute() or ".." in Path(found.at).parts:
                raise UserError(f"{where}: {role}: key 'at' must stay inside the data directory, found {found.at!r}")
            if found.sha256 is not None and not _DIGEST.fullmatch(found.sha256):
                raise UserError(f"{where}: {role}: key 'sha256' must be 64 hexadecimal digits, found {found.sha256!r}")
            revision = form.source(found)[1]
            if revision is not None and not _COMMIT.fullmatch(revision):
                raise UserError(f"{where}: {role}: key 'revision' must be a commit of 40 digits, found {revision!r}")
    return spec


def set_spec(name: str, where: str, table: Path | str = TABLE) -> SetSpec:
    """The entry of a set.

    Raises:
        UserError: there is none of that name.
    """
    sets = read_table(table)
    check_known([name], sets, where, Path(table))
    return sets[name]
