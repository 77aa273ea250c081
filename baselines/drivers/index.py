"""Build one index over one corpus, whole or not at all.

    python -m baselines.drivers.index --profile tiny --index dense_tiny --corpus facts

The directory gets what the index's module writes and index.json: build seconds, bytes, digests of files and inputs. An
index that the plan says this machine cannot hold gets index.json alone, with the status that its cells then have.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from baselines.base import IndexResources, load_plugin, planned_failure
from baselines.drivers.provenance import computed_with, peak_host_bytes
from baselines.drivers.supervise import expected_failure, in_child
from baselines.parts.models import model_digest
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.load import Experiment
from msa_base.paths import Paths
from msa_base.records import Document
from msa_base.seal import sealed
from msa_base.specs import IndexSpec
from msa_base.stage_records import IndexRecord
from msa_base.stages import Stages
from msa_base.tables import read_json, write_json, write_table
from msa_base.validate import check_known

MARK = "inputs.json"  # in a directory that is being built: what from


def main() -> None:
    names = {"index": "an entry of `indexes` in systems.yaml", "corpus": "an entry of `corpora` in tasks.yaml"}
    chosen = experiment_parser(__doc__, threads=1, **names).parse_args()
    experiment, paths = open_experiment(chosen)
    check_known([chosen.index], experiment.indexes, "--index", chosen.configs / "systems.yaml")
    check_known([chosen.corpus], experiment.corpora, "--corpus", chosen.configs / "tasks.yaml")
    refused = in_child(refusal, experiment, paths, chosen.index, chosen.corpus)
    build_directory(experiment, paths, chosen.index, chosen.corpus, chosen.threads, refused)


def refusal(*index: Any) -> tuple[str, str] | None:
    """What the plan says of the index, asked in a process of its own: planning's imports are not the index's memory."""
    from baselines.planning.cost import refused_index

    return refused_index(*index)


def build_directory(
    experiment: Experiment, paths: Paths, index: str, corpus: str, threads: int, refused: tuple[str, str] | None
) -> None:
    """Build an index beside its place and move it there with its record; an interrupted build goes on where it can.

    ``refused``: status and reason of an index that is recorded and not built.
    """
    spec = experiment.indexes[index]
    where = f"systems.yaml: indexes: {index}"
    build_index = load_plugin(spec.kind, where).need("build_index", where)
    model, place = paths.model(spec.model) if spec.model else None, paths.index(index, corpus)
    weights = {f"_models/{spec.model}": model_digest(model)} if model else {}
    made_from = Stages(experiment).index(index).of(paths.root, paths.corpus(corpus), **weights)
    before = IndexRecord.current(place / "index.json", made_from)
    if before is not None and not before.refused:
        return
    outcome: dict[str, Any] = {"status": "ok"}
    # code may change before an interrupted build goes on, what it reads may not
    with begun_directory(place, made_from.model_dump(exclude={"code"})) as directory:
        try:
            if refused:
                raise planned_failure(*refused)
            start_s = perf_counter()
            usage = build_index(spec, IndexResources(model, paths.corpus(corpus), threads), directory)
            outcome |= {"build_s": perf_counter() - start_s, "usage": usage or {}}
        except Exception as error:
            outcome = expected_failure(error).outcome
            for path in directory.iterdir():  # what it was at when it failed is no index
                if path.name != MARK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        paths_made = (path for path in directory.rglob("*") if path.is_file() and path.name != MARK)
        files = sealed(directory, (str(path.relative_to(directory)) for path in paths_made))
        record = IndexRecord(
            made_from=made_from,
            files=files,
            index=index,
            corpus=corpus,
            kind=spec.kind,
            peak_host_bytes=peak_host_bytes(),
            index_bytes=sum(file.bytes for file in files.values()),
            threads=threads,
            **computed_with(),
            **outcome,
        )
        record.write(directory / "index.json")


@contextmanager
def begun_directory(place: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """Give a directory beside ``place`` that takes its place only when the block ends well.

    One that an interrupted build of the same identity left is given again, so that the build can go on there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    begun = place.with_name(f".{place.name}.begun")
    mark = begun / MARK
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


@contextmanager
def index_over(documents: Sequence[Document], spec: IndexSpec, model: Path | None, threads: int) -> Iterator[Path]:
    """The directory of an index over documents that are no prepared corpus; it is gone after the block."""
    with TemporaryDirectory() as folder:
        corpus, index = Path(folder) / "corpus.parquet", Path(folder) / "index"
        index.mkdir()
        write_table("corpus", [vars(document) for document in documents], corpus)
        load_plugin(spec.kind, "systems.yaml: indexes").build_index(spec, IndexResources(model, corpus, threads), index)
        yield index


if __name__ == "__main__":
    run_command(main)
