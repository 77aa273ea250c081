"""Write a corpus, or a task's questions, overlays, gold and view for every context of a profile.

python -m tasks.stages.prepare corpus --profile tiny --corpus prose
python -m tasks.stages.prepare task --profile tiny --task two_hop
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.kinds import import_kind
from msa_base.load import Experiment
from msa_base.paths import SEAL, Paths
from msa_base.records import Document
from msa_base.seal import MadeFrom, Seal, sealed, write_seal
from msa_base.stage_records import Floor, ViewRecord
from msa_base.stages import Stages, state
from msa_base.tables import SCHEMAS, whole_file, write_table, write_unavailable
from msa_base.validate import check_known
from tasks.base import OWN_MEMORY, CorpusRequest, PreparedCell, TaskRequest
from tasks.parts.tail import Tail, UnavailableData
from tasks.stages.sources import SPLITS
from tasks.stages.vocabulary import read_tokenizer

GROUP_ROWS = 8192  # documents of a row group: what is held in memory at a time


def kind_module(kind: str, function: str, where: str) -> ModuleType:
    """The module of a kind. Raises UserError: there is no such module, or it lacks ``function``."""
    module = import_kind(kind, "tasks", where)
    if not hasattr(module, function):
        raise UserError(f"{where}: key 'kind': {module.__name__} has no function {function}; choose another kind")
    return module


def write_corpus(documents: Iterable[Document], path: Path, num_tokens: int) -> tuple[int, int]:
    """Write a corpus as it streams, whole or not at all; returns its documents and tokens."""
    number = total = 0
    stream = iter(documents)
    with (
        whole_file(path) as temporary,
        tqdm(total=num_tokens, desc=path.parent.name, unit="token", mininterval=1, file=sys.stderr) as bar,
        pq.ParquetWriter(temporary, SCHEMAS["corpus"], compression="zstd") as writer,
    ):
        while batch := list(islice(stream, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist([vars(item) for item in batch], schema=SCHEMAS["corpus"]))
            tokens = sum(item.num_tokens for item in batch)
            bar.update(tokens)
            number, total = number + len(batch), total + tokens
    return number, total


def prepare_corpus(experiment: Experiment, paths: Paths, name: str) -> str:
    """Write one corpus up to the profile's largest context; returns a line for the log."""
    file = experiment.configs / "tasks.yaml"
    check_known([name], experiment.corpora, "--corpus", file)
    spec, where = experiment.corpora[name], f"{file}: corpora: {name}"
    module = kind_module(spec.kind, "make_corpus", where)
    if OWN_MEMORY in experiment.profile.contexts and "set" not in spec.params:
        mend = f"context '{OWN_MEMORY}' is for corpora of a set, name a size instead"
        raise UserError(f"{where}: grows without end; {mend}")
    num_tokens = max(experiment.contexts[context] for context in experiment.profile.contexts)
    stages = Stages(experiment)
    made_from = stages.corpus(name).of(paths.root, *_sources(paths), data=state(stages.data(spec.params)))
    seal = paths.corpus(name).with_name(SEAL)
    if Seal.current(seal, made_from):
        return f"{paths.corpus(name)}: as it was"
    request = CorpusRequest(**common(experiment, paths, name, spec.params, where), num_tokens=num_tokens)
    try:
        documents, tokens = write_corpus(module.make_corpus(request), paths.corpus(name), num_tokens)
        found = f"{documents:,} documents, {tokens:,} tokens"
    except UnavailableData as error:
        write_unavailable(str(error), paths.corpus(name))
        found = f"unavailable: {error}"
    write_seal(seal, made_from, [paths.corpus(name).name])
    return f"{paths.corpus(name)}: {found}"


def _sources(paths: Paths) -> list[Path]:
    return [paths.tokenizer, *(paths.prose / f"{split}.parquet" for split in SPLITS)]


def common(experiment: Experiment, paths: Paths, name: str, params: dict[str, Any], where: str) -> dict[str, Any]:
    """What every request holds (tasks.base.Request)."""
    data = Path(experiment.profile.data) if experiment.profile.data else None
    entry = {"name": name, "params": params, "where": where}
    return {**entry, "tokenizer": read_tokenizer(paths.tokenizer), "prose": paths.prose, "data": data}


def write_cell(cell: PreparedCell, view: dict[str, Any], made_from: MadeFrom, directory: Path) -> None:
    """Write the files of one prepared cell; view.json comes last and seals the directory."""
    overlays = [{"overlay_id": name, **vars(item)} for name, documents in cell.overlays.items() for item in documents]
    grades = [
        {"question_id": item.question_id, "doc_id": doc_id, "grade": grade}
        for item in cell.gold
        for doc_id, grade in (item.grades or {}).items()
    ]
    tables = {"questions": map(vars, cell.questions), "overlays": overlays, "gold": map(vars, cell.gold)}
    tables |= {"grades": grades} if grades else {}
    (directory / "grades.parquet").unlink(missing_ok=True)
    for name, rows in tables.items():
        write_table(name, rows, directory / f"{name}.parquet")
    record = ViewRecord(
        made_from=made_from,
        files=sealed(directory, [f"{name}.parquet" for name in tables]),
        base_documents=cell.base_documents,
        unavailable=cell.unavailable,
        floor=Floor(value=cell.floor, of=cell.floor_of) if cell.floor_of else None,
        **{**view, **cell.notes},
    )
    record.write(directory / "view.json")


def prepare_task(experiment: Experiment, paths: Paths, name: str) -> str:
    """Write every context of one task; returns a line for the log."""
    profile = experiment.profile
    check_known([name], profile.tasks, "--task", experiment.file)
    spec, where = experiment.tasks[name], f"{experiment.configs / 'tasks.yaml'}: tasks: {name}"
    module = kind_module(spec.kind, "prepare", where)
    contexts = {context: experiment.contexts[context] for context in profile.contexts}
    stages = Stages(experiment)
    data = state(stages.data({**spec.params, **experiment.corpora[spec.corpus].params}))
    made_from = stages.task(name).of(paths.root, *_sources(paths), paths.corpus(spec.corpus), data=data)
    views = [paths.prepared(name, context) / "view.json" for context in contexts]
    if all([ViewRecord.current(view, made_from) for view in views]):
        return f"{paths.prepared(name, '*')}: as it was"
    try:
        tail = Tail(paths.corpus(spec.corpus))
    except UnavailableData as error:
        for context, size in contexts.items():
            view = {"corpus": spec.corpus, "base_tokens": 0, "context_tokens": size}
            write_cell(PreparedCell(context, 0, unavailable=str(error)), view, made_from, paths.prepared(name, context))
        return f"{paths.prepared(name, '*')}: unavailable: {error}"
    request = TaskRequest(
        **common(experiment, paths, name, spec.params, where),
        corpus=spec.corpus,
        corpus_params=experiment.corpora[spec.corpus].params,
        tail=tail,
        contexts=contexts,
        questions=profile.tasks[name],
    )
    sizes = []
    for cell in tqdm(module.prepare(request), total=len(contexts), desc=name, unit="context", file=sys.stderr):
        tokens, size = tail.tokens(cell.base_documents), contexts[cell.context]
        view = {"base_tokens": tokens, "context_tokens": tokens if cell.context == OWN_MEMORY else size}
        # how the tail's text was cut; other strategies are a matter of the tasks that offer them
        chunking = {"strategy": "sentences", "document_tokens": request.document_tokens}
        view |= {"corpus": spec.corpus, "chunking": chunking}
        write_cell(cell, view, made_from, paths.prepared(name, cell.context))
        sizes.append(f"{cell.context} {cell.base_documents:,}")
    return f"{paths.prepared(name, '*')}: {request.questions} questions, tail documents {', '.join(sizes)}"


def main() -> None:
    options = experiment_parser(__doc__)
    options.add_argument("what", choices=("corpus", "task"))
    options.add_argument("--corpus", help="with 'corpus': an entry of configs/tasks.yaml: corpora")
    options.add_argument("--task", help="with 'task': an entry of the profile's tasks")
    arguments = options.parse_args()
    name = arguments.corpus if arguments.what == "corpus" else arguments.task
    if name is None:
        raise UserError(f"prepare {arguments.what}: --{arguments.what} is missing; name the one to prepare")
    run = prepare_corpus if arguments.what == "corpus" else prepare_task
    print(run(*open_experiment(arguments), name))


if __name__ == "__main__":
    run_command(main)
