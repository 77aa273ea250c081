"""Fetch a set into a data directory, or check what is there.

::

    python -m tasks.qa.fetch --data data --set popqa            # the first form that can be had
    python -m tasks.qa.fetch --data data --set popqa --form gold
    python -m tasks.qa.fetch --data data --verify               # every file that is there, against table and manifest

A file is kept when it came whole, from the pinned revision, with the pinned checksum, and reads as the form it belongs
to; otherwise nothing is. Where the table pins no revision or checksum, MANIFEST.tsv records what came, and holds every
later reading to it; `--verify` prints those records as lines for tasks/qa/sets.yaml.
"""

from __future__ import annotations

import argparse
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from msa_base.errors import UserError, run_command
from msa_base.options import given_path
from msa_base.seal import file_digest
from tasks.parts.tail import UnavailableData
from tasks.qa.data import COLUMNS, find_set, forms_of, places, read_manifest, verify, write_manifest
from tasks.qa.readers import read_set
from tasks.qa.table import TABLE, FileSpec, Form, read_table

GITHUB = "https://raw.githubusercontent.com"
TIMEOUT_S = 60
ELSEWHERE = "look for the network, or for another form"


@dataclass(frozen=True)
class Hosts:
    """Where files come from: a GitHub mirror of raw files, and a hub endpoint (None: huggingface_hub's own)."""

    github: str = GITHUB
    hub: str | None = None

    def info(self, repository: str, revision: str | None) -> Any:
        """What the hub says of a dataset at a revision (None: the newest)."""
        from huggingface_hub import HfApi

        with _hub_errors(repository):
            return HfApi(endpoint=self.hub).dataset_info(repository, revision=revision)

    def revision(self, form: Form, repository: str, pinned: str | None) -> str:
        """The commit to fetch: the pinned one, or what the hub calls the newest now."""
        if pinned is None and form.host == "github":
            raise UserError(f"{repository}: a form of host github needs its revision in {TABLE}")
        return pinned or self.info(repository, None).sha

    def paths(self, repository: str, revision: str, file: FileSpec) -> list[str]:
        """The files of a repository that a file entry names: itself, or all shards of a pattern."""
        if "*" not in file.path:
            return [file.path]
        siblings = self.info(repository, revision).siblings or []
        found = sorted(item.rfilename for item in siblings if fnmatch(item.rfilename, file.path))
        if not found:
            raise UserError(f"{repository} at {revision}: holds no file like {file.path}")
        return found

    def download(self, form: Form, repository: str, revision: str, path: str, target: Path) -> None:
        """Bring one file. Raises UserError: it cannot be had."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if form.host == "github":
            address = f"{self.github}/{repository}/{revision}/{path}"
            try:
                with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response, open(target, "wb") as stream:
                    shutil.copyfileobj(response, stream)
                    expected = response.headers.get("Content-Length")
            except (urllib.error.URLError, OSError) as error:
                raise UserError(f"{address}: cannot be had ({error}); {ELSEWHERE}") from None
            came = target.stat().st_size
            if expected is not None and came != int(expected):
                raise UserError(f"{address}: only {came:,} of {expected} bytes came; run the same command again")
            return
        from huggingface_hub import hf_hub_download

        with _hub_errors(f"{repository}/{path} at {revision}"):
            place = {"endpoint": self.hub, "local_dir": target.parent / ".hub"}
            shutil.move(hf_hub_download(repository, path, repo_type="dataset", revision=revision, **place), target)


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except RevisionNotFoundError:
        raise UserError(f"{what}: the hub has no such revision; correct it in {TABLE}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{what}: the hub has no such dataset; correct it in {TABLE}") from None
    except Exception as error:  # the client lets through those of its HTTP library, which is not always the same
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: cannot be had from the hub ({reason}); {ELSEWHERE}") from None


def fetch_form(data: Path, name: str, form: Form, hosts: Hosts) -> list[str]:
    """Bring the files of a form that are not there yet; the places of those that came. All of them are kept, or none.

    Raises:
        UserError: a file cannot be had, has a wrong checksum, or does not read as its form.
    """
    staging = data / f".fetch-{name}-{form.name}-{os.getpid()}"
    rows: dict[str, dict[str, str]] = {}
    try:
        for file in form.files.values():
            if places(data, file):
                continue
            repository, pinned = form.source(file)
            revision = hosts.revision(form, repository, pinned)
            for path in hosts.paths(repository, revision, file):
                shard = PurePosixPath(file.at).with_name(PurePosixPath(path).name)
                place = str(shard) if "*" in file.at else file.at
                hosts.download(form, repository, revision, path, staging / place)
                size, digest = str((staging / place).stat().st_size), file_digest(staging / place)
                values = (place, size, digest, repository, path, revision, form.licence)
                rows[place] = dict(zip(COLUMNS, values, strict=True))
                if file.sha256 not in (None, digest):
                    wrong = f"wrong checksum: sha256 {digest}, expected {file.sha256}"
                    raise UserError(f"{repository}/{path} at {revision}: {wrong}; nothing was kept")
        # a file that is not what it should be must not stay
        files = {role: places(staging, file) or places(data, file) for role, file in form.files.items()}
        read_set(form.reader, files, f"{name}: {form.name}")
        for place in rows:
            (data / place).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / place, data / place)
        if rows:
            write_manifest({**read_manifest(data), **rows}, data)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return list(rows)


def fetch(data: Path, name: str, wanted: str | None, hosts: Hosts) -> str:
    """Bring a set: the form wanted, or the first that can be had. Raises UserError: why none can, form by form."""
    reasons = []
    for form in forms_of(name, wanted, "--set"):
        try:
            came = fetch_form(data, name, form, hosts)
        except UserError as error:
            reasons.append(f"{form.name}: {error}")
            continue
        digests = verify(data, name, form, {role: places(data, file) for role, file in form.files.items()})
        return f"{name}, form {form.name}: {', '.join(came) or 'all there'}; {len(digests)} files as they should be"
    raise UserError("; ".join(reasons))


def verify_all(data: Path) -> Iterator[str]:
    """A line for each form that is there, and for each pin that the table lacks. Raises UserError: a wrong file."""
    manifest = read_manifest(data)
    for name, spec in read_table().items():
        for form in spec.forms:
            try:
                edition = find_set(data, name, "--verify", form.name)
            except UnavailableData:
                continue
            yield f"{name}, form {form.name}: {len(edition.digests)} files as they should be"
            for role, file in form.files.items():
                for path in edition.files[role] if file.sha256 is None else ():
                    row = manifest[path.relative_to(data).as_posix()]
                    pin = f"{{at: {row['file']}, path: {row['source_path']}, sha256: {row['sha256']}}}"
                    yield f"  to pin: {pin} at revision {row['commit']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=given_path, required=True, help="the data directory, `data` of a profile")
    parser.add_argument("--set", help="an entry of tasks/qa/sets.yaml")
    parser.add_argument("--form", help="one of its forms (default: the first that can be had)")
    parser.add_argument("--verify", action="store_true", help="fetch nothing; check every file that is there")
    parser.add_argument("--github", default=GITHUB, help=f"a mirror of raw files (default: {GITHUB})")
    parser.add_argument("--hub", help="a hub endpoint (default: huggingface_hub's)")
    chosen = parser.parse_args()
    if chosen.verify == bool(chosen.set):
        raise UserError("name a --set to fetch, or --verify what is there")
    if chosen.verify:
        for line in verify_all(chosen.data):
            print(line)
        return
    print(fetch(chosen.data, chosen.set, chosen.form, Hosts(chosen.github, chosen.hub)))


if __name__ == "__main__":
    run_command(main)
