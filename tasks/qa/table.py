"""The table of sets: for each where its files come from, at which revision and checksum, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from msa_base.validate import Commit, Digest, Text, Tokens, Wrong, read_checked

TABLE = Path(__file__).with_name("sets.yaml")
EVALUATION = "evaluation"
# ISO 639-1. A word for English that nobody knows would keep its articles in silence: a set in another language adds one
Language = Literal["ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"]


def _inside_data(at: str) -> str:
    if not at or Path(at).is_absolute() or ".." in Path(at).parts:
        raise PydanticCustomError("place", "must stay inside the data directory")
    return at


@dataclass(frozen=True)
class FileSpec:
    """A file, or all shards of one with ``*`` in both places."""

    at: Annotated[str, AfterValidator(_inside_data)]  # in the data directory
    path: Text  # in the repository
    sha256: Digest | None = None  # None: not known
    repository: Text | None = None  # where it is another one than the form's
    revision: Commit | None = None

    def __post_init__(self) -> None:
        if self.revision and not self.repository:
            raise Wrong("key 'revision' is of another repository than the form's: name it as 'repository'")


@dataclass(frozen=True)
class Form:
    """One edition of a set. ``reader`` names a function of tasks.qa.readers; ``files`` are by role."""

    name: Text
    reader: Text
    host: Literal["hub", "github"]
    repository: Text
    revision: Commit | None  # None: not known
    split: Text
    licence: Text
    files: dict[str, FileSpec]
    language: Language | None = None  # where it is another one than the set's

    def source(self, file: FileSpec) -> tuple[str, str | None]:
        """Repository and revision of one of its files."""
        return (file.repository, file.revision) if file.repository else (self.repository, self.revision)


@dataclass(frozen=True)
class SetSpec:
    """One set; ``tokens`` is the memory size of the paper, None beside the nine."""

    title: Text
    language: Language
    documents: Text
    answers: Text
    gold: Text
    forms: Annotated[list[Form], Field(min_length=1)]  # in order of preference
    tokens: Tokens | None = None
    use: Literal["evaluation", "training", "distractors"] = EVALUATION

    def __post_init__(self) -> None:
        names = [form.name for form in self.forms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise Wrong(f"forms: '{twice[0]}' is named twice; give each form a name of its own")


def read_table(path: Path | str | None = None) -> dict[str, SetSpec]:
    """The table, checked. Raises UserError: an unknown, missing or senseless entry; the message names it."""
    return read_checked(dict[str, SetSpec], path or TABLE)
