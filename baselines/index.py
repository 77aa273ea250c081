"""Build one index over one corpus, whole or not at all.

    python -m baselines.index --profile tiny --index dense_tiny --corpus facts

The directory gets what the index's module writes and index.json: build seconds, bytes, digests of files and inputs. An
index that the plan says this machine cannot hold gets index.json alone, with the status that its cells then have.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from baselines.base import CellStatus, IndexResources, load_module
from baselines.planner import refuse_index
from baselines.provenance import (
    checkpoint_digest,
    code_digest,
    file_digest,
    hardware,
    peak_host_bytes,
    value_digest,
    versions,
)
from configs.errors import UserError, run_command
from configs.load import DIRECTORY, Experiment, check_known, load
from configs.paths import Paths
from configs.tables import read_json, write_json


def main() -> None:
    """Build the index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--index", required=True, help="an entry of `indexes` in systems.yaml")
    parser.add_argument("--corpus", required=True, help="an entry of `corpora` in tasks.yaml")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results stand (default: results)")
    chosen = parser.parse_args()
    experiment = load(chosen.profile, chosen.configs)
    check_known([chosen.index], experiment.indexes, "--index", chosen.configs / "systems.yaml")
    check_known([chosen.corpus], experiment.corpora, "--corpus", chosen.configs / "tasks.yaml")
    build_directory(experiment, Paths.of(chosen.profile, chosen.results), chosen.index, chosen.corpus, chosen.threads)


def build_directory(experiment: Experiment, paths: Paths, index: str, corpus: str, threads: int) -> None:
    """Build an index beside its place and move it there with its record; an interrupted build goes on where it can.

    Raises:
        UserError: the entry's module builds no index, or an input is missing or broken.
    """
    spec = experiment.indexes[index]
    module = load_module(spec.kind, f"systems.yaml: indexes: {index}")
    if not hasattr(module, "build_index"):
        raise UserError(
            f"systems.yaml: indexes: {index}: kind '{spec.kind}' builds no index; name a module with build_index"
        )
    model = paths.model(spec.model) if spec.model else None
    inputs = {
        "config": value_digest(asdict(spec)),
        "code": code_digest(),
        "corpus": file_digest(paths.corpus(corpus)),
        "weights": checkpoint_digest(model) if model else None,
    }
    status, reason, build_s = "ok", "", None
    with begun_directory(paths.index(index, corpus), inputs) as directory:
        usage = None
        try:
            refuse_index(experiment, paths, index, corpus)
            start_s = perf_counter()
            usage = module.build_index(spec, IndexResources(model, paths.corpus(corpus), threads), directory)
            build_s = perf_counter() - start_s
        except CellStatus as refusal:
            status, reason = refusal.status, refusal.reason
        files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "inputs.json")
        record = {
            "index": index,
            "corpus": corpus,
            "kind": spec.kind,
            "status": status,
            "reason": reason,
            "build_s": build_s,
            "peak_host_bytes": peak_host_bytes(),
            "index_bytes": sum(path.stat().st_size for path in files),
            "files": {str(path.relative_to(directory)): file_digest(path) for path in files},
            "usage": usage or {},
            "threads": threads,
            "inputs": inputs,
            "versions": versions(),
            "hardware": hardware(),
        }
        write_json(record, directory / "index.json")


@contextmanager
def begun_directory(place: Path, inputs: dict[str, str | None]) -> Iterator[Path]:
    """Give a directory beside ``place`` that takes its place only when the block ends well.

    One that an interrupted build from the same inputs left is given again, so that a module which writes in steps can go
    on; code may have changed in between, what it was to read may not.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    begun = place.with_name(f".{place.name}.begun")
    identity = {name: digest for name, digest in inputs.items() if name != "code"}
    mark = begun / "inputs.json"
    if begun.exists() and not (mark.exists() and read_json(mark) == identity):
        shutil.rmtree(begun)
    begun.mkdir(exist_ok=True)
    write_json(identity, mark)
    try:
        yield begun
    except UserError:  # what is wrong with the input stays wrong
        shutil.rmtree(begun)
        raise
    mark.unlink()
    shutil.rmtree(place, ignore_errors=True)
    os.replace(begun, place)


if __name__ == "__main__":
    run_command(main)
