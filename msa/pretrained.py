"""Pretrained weights of models.yaml: where somebody fetched them to, and how they become a model of a profile.

    python -m msa.pretrained --profile small --model backbone

links the files of the entry's directory into the profile's models. Nothing is downloaded: where the weights are
missing, the message holds the command that fetches the pinned commit.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError, run_command
from configs.load import DIRECTORY, ModelSpec, build, load
from configs.paths import Paths
from configs.tables import whole_file

KIND = "pretrained"
PATTERNS = ("*.safetensors", "tokenizer.json", "config.json")  # linked in this order


@dataclass(frozen=True)
class Pretrained:
    """The ``params`` of a models.yaml entry of this kind; ``revision`` is a commit of the hub's repository.

    ``shape`` and ``router`` are what config.json says, so that a plan needs no download (msa.plan.planned_config).
    """

    hub: str
    path: str
    shape: dict[str, Any]
    revision: str | None = None
    router: dict[str, Any] = field(default_factory=dict)


def missing(name: str, spec: ModelSpec) -> str | None:
    """Why an entry's weights cannot be used, with the mend; None where they can.

    Raises:
        UserError: an unknown, missing or ill-typed key of the entry.
    """
    params: Pretrained = build(Pretrained, spec.params, f"models.yaml: {name}: params")
    fetch = f"`hf download {params.hub} --revision {params.revision or 'COMMIT'} --local-dir {params.path}`"
    if params.revision is None:
        return f"models.yaml: {name}: no commit of {params.hub} is pinned; add `revision:`, then {fetch}"
    if lacking := [pattern for pattern in PATTERNS if not any(Path(params.path).glob(pattern))]:
        return (
            f"models.yaml: {name}: weights of {params.hub} are not at {params.path} (no {', '.join(lacking)});"
            f" fetch them with {fetch}"
        )
    return None


def adopt(name: str, spec: ModelSpec, directory: Path) -> None:
    """Link the fetched files into a model's directory, config.json last.

    Raises:
        UserError: something of the weights is missing.
    """
    if reason := missing(name, spec):
        raise UserError(reason)
    source = Path(spec.params["path"]).absolute()
    for path in (path for pattern in PATTERNS for path in sorted(source.glob(pattern))):
        with whole_file(directory / path.name) as temporary:
            temporary.symlink_to(path)


def main() -> None:
    """Adopt the weights of one model of a profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--model", required=True, help="a model of the profile")
    parser.add_argument("--results", default="results", type=Path, help="results directory")
    parser.add_argument("--configs", default=DIRECTORY, type=Path, help="configuration directory")
    chosen = parser.parse_args()
    models = load(chosen.profile, chosen.configs).models
    spec = models.get(chosen.model)
    if spec is None or spec.kind != KIND:
        known = ", ".join(name for name, entry in models.items() if entry.kind == KIND)
        raise UserError(f"--model {chosen.model}: no entry of kind {KIND} (known in models.yaml: {known})")
    adopt(chosen.model, spec, Paths.of(chosen.profile, chosen.results).model(chosen.model))


if __name__ == "__main__":
    run_command(main)
