"""Seals: what a stage made, by the digests of its files, and what it was made from.

Every stage leaves a small JSON beside its outputs. It names their sha256 and size, and the code, configuration and data
that they were made from; its own digest protects the rest of it. A seal that does not hold (a file or the seal itself
was removed, cut, emptied or edited) is taken away before a run begins, so that the stage makes its outputs anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msa_base.errors import UserError
from msa_base.tables import MISSING, read_json, write_json

MEND = "run the workflow again, which makes it anew"
CACHE = Path("_logs", "digests.json")  # of a results directory: digests of files by path, size and time of change
# the last four say which tokens end a text and how a chat model is asked
CHECKPOINT_FILES = (
    "model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja",
    "chat_template.json", "tokenizer_config.json",
)  # fmt: skip
DIGITS = 16  # of a digest of code or configuration in a seal
LARGE_BYTES = 2**24  # a file whose digest is worth keeping at once
SETTLED_S = 2  # a file that changed this short ago may change again within one tick of the clock


class Model(BaseModel):
    """A part of a record: no key is unknown, no value is of another type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class File(Model):
    """What a file held when it was sealed."""

    sha256: str
    bytes: int


class MadeFrom(Model):
    """Digests of what a result depends on, by name: modules, configuration entries, input files."""

    code: dict[str, str] = {}
    config: dict[str, str] = {}
    data: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """One digest of it all."""
        return value_digest(self.model_dump())

    def of(self, root: Path, *paths: Path, **values: Any) -> MadeFrom:
        """The same, of the content of some files (by their place below ``root``) and of some JSON values."""
        files = {str(path.relative_to(root)): file_digest(path) for path in paths}
        return self.model_copy(update={"data": files | {name: value_digest(value) for name, value in values.items()}})

    def changes(self, before: MadeFrom) -> str:
        """What differs from an earlier state, in words; empty where nothing does."""
        found = []
        for part in type(self).model_fields:
            now, then = getattr(self, part), getattr(before, part)
            if names := sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name)):
                found.append(f"{part} changed: {', '.join(names)}")
        return "; ".join(found)


class Record(Model):
    """A JSON file with its own digest, by which whoever reads it sees that it is as it was written."""

    FORMAT: ClassVar[int] = 1  # raised whenever the meaning of a field changes: older files are then refused by name
    MEND: ClassVar[str] = MEND

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            UserError: it is missing, of another format, or not as it was written.
        """
        content = read_json(path)
        found = content.get("format", "none") if isinstance(content, dict) else "none"
        if found != cls.FORMAT:
            raise UserError(f"{path}: is of format {found}, this version reads format {cls.FORMAT}; {cls.MEND}")
        if content.pop("digest", None) != value_digest(content):
            raise UserError(f"{path}: was changed after it was written; {cls.MEND}")
        del content["format"]
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}: key '{key}': {first['msg']} (found {first['input']!r}); {cls.MEND}") from None

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        content = {"format": self.FORMAT, **self.model_dump(mode="json")}
        write_json({**content, "digest": value_digest(content)}, path)


class Seal(Record):
    """What a stage made, and what from. ``files`` are relative to the directory of the seal.

    :meth:`read` does not look at them, :meth:`open` does.
    """

    KEPT: ClassVar[bool] = True  # whether a copy stays when Snakemake removes the seal before it runs a rule

    made_from: MadeFrom
    files: dict[str, File] = Field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a seal and hold its files against it.

        Raises:
            UserError: as :meth:`read`, or a file that is missing or is not what was sealed.
        """
        seal = cls.read(path)
        for name, sealed_file in seal.files.items():
            file = path.parent / name
            if not file.is_file():
                raise UserError(f"{file}: is missing; {MEND}")
            if (size := file.stat().st_size) != sealed_file.bytes:
                raise UserError(f"{file}: has {size:,} bytes, {sealed_file.bytes:,} were sealed; {MEND}")
            if file_digest(file) != sealed_file.sha256:
                raise UserError(f"{file}: was changed after it was sealed; {MEND}")
        return seal

    def write(self, path: Path) -> None:
        """Write the seal, and its copy before it."""
        for place in (copy_of(path), path) if self.KEPT else (path,):
            super().write(place)

    @classmethod
    def current(cls, path: Path, made_from: MadeFrom) -> Self | None:
        """The seal of outputs that are there as a stage would make them today; None, and why is printed, of others."""
        reason = "nothing is there"
        for place in (path, copy_of(path)) if cls.KEPT else (path,):
            if place.exists():
                try:
                    seal = cls.open(place)
                except UserError as error:
                    reason = str(error)
                    continue
                reason = made_from.changes(seal.made_from)
                if not reason:
                    print(f"{path}: stays, nothing changed", flush=True)
                    if cls.KEPT:
                        seal.write(path)  # newer than the inputs, as Snakemake wants it
                    return seal
        print(f"{path}: made, since {reason}", flush=True)
        return None


def copy_of(path: Path) -> Path:
    """Where the copy of a seal stays."""
    return path.with_name(f".{path.name}")


def sealed(directory: Path, names: Iterable[str]) -> dict[str, File]:
    """The files of a directory as a seal holds them."""
    paths = {name: directory / name for name in sorted(names)}
    return {name: File(sha256=file_digest(path), bytes=path.stat().st_size) for name, path in paths.items()}


def write_seal(path: Path, made_from: MadeFrom, names: Iterable[str]) -> None:
    """Seal files of a directory, once they are all there."""
    Seal(made_from=made_from, files=sealed(path.parent, names)).write(path)


def value_digest(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file; one that did not change is not read again.

    Raises:
        UserError: the file is missing.
    """
    path = Path(path).absolute()
    root = next((parent for parent in path.parents if (parent / CACHE.parent).is_dir()), None)  # of the results
    try:
        found = path.stat()
        state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]  # the last one no program can set
        known = _DIGESTS.get(str(path)) or (read_cache(root / CACHE).get(str(path)) if root else None)
        if known and known[:3] == state:
            return known[3]
        with open(path, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: {MISSING}") from None
    if time.time_ns() - max(state[1:]) > SETTLED_S * 10**9:
        _DIGESTS[str(path)] = [*state, digest]
        if found.st_size > LARGE_BYTES and root:
            keep_digests(root)
    return digest


def digest_if_there(path: Path) -> str | None:
    """sha256 of a file that may come later; None until then."""
    return file_digest(path) if path.is_file() else None


def checkpoint_digest(directory: Path) -> str:
    """One digest of a checkpoint: all files that its answers depend on. Raises UserError: weights are missing."""
    shards = {path.name for path in directory.glob("*.safetensors")} or {CHECKPOINT_FILES[0]}
    present = shards | {name for name in CHECKPOINT_FILES[1:] if (directory / name).exists()}
    return value_digest({name: file_digest(directory / name) for name in present})


_DIGESTS: dict[str, list[Any]] = {}  # by path: bytes, times of change of content and of all else, sha256


_ONLY_LOOKS: list[bool] = []  # not empty: this process changes nothing below the results


def keep_no_digests(only_looks: bool = True) -> None:
    """Whether this process only looks, and so keeps nothing for the commands that run next."""
    _ONLY_LOOKS[:] = [True] * only_looks


def keep_digests(root: Path) -> None:
    """Keep the digests that this process knows for the commands that run next on a results directory."""
    if _ONLY_LOOKS:
        return
    known = read_cache(root.absolute() / CACHE) | _DIGESTS
    write_json({path: entry for path, entry in known.items() if Path(path).is_file()}, root / CACHE)


@cache
def read_cache(path: Path) -> dict[str, Any]:
    """What an earlier command kept in a JSON file, or nothing."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return {}
