"""Write a corpus, or a task's questions, overlays, gold and view for every context of a profile.

::

    python -m tasks.prepare corpus --profile tiny --corpus prose
    python -m tasks.prepare task --profile tiny --task two_hop
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from configs.errors import UserError, run_command
from configs.load import Experiment, check_known, module_name
from configs.paths import Paths
from configs.records import Document
from configs.tables import SCHEMAS, whole_file, write_json, write_table, write_unavailable
from tasks.base import OWN_MEMORY, Cell, CorpusRequest, Tail, TaskRequest, UnavailableData
from tasks.command import opened, parser
from tasks.vocabulary import read_tokenizer

GROUP_ROWS = 8192  # documents of a row group: what is held in memory at a time


def kind_module(kind: str, function: str, where: str) -> ModuleType:
    """The module of a kind.

    Raises:
        UserError: there is no such module, or it lacks ``function``.
    """
    name = module_name(kind, "tasks")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(str(error.name)):
            raise
        raise UserError(
            f"{where}: key 'kind': no module {name}; name a file of tasks/ or an installed module"
        ) from None
    if not hasattr(module, function):
        raise UserError(f"{where}: key 'kind': {name} has no function {function}; choose another kind")
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
            rows = [{"doc_id": item.doc_id, "text": item.text, "num_tokens": item.num_tokens} for item in batch]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["corpus"]))
            tokens = sum(item.num_tokens for item in batch)
            bar.update(tokens)
            number, total = number + len(batch), total + tokens
    return number, total


def prepare_corpus(experiment: Experiment, paths: Paths, name: str, configs: Path) -> str:
    """Write one corpus up to the profile's largest context; returns a line for the log."""
    check_known([name], experiment.corpora, "--corpus", configs / "tasks.yaml")
    spec, where = experiment.corpora[name], f"{configs / 'tasks.yaml'}: corpora: {name}"
    module = kind_module(spec.kind, "make_corpus", where)
    if OWN_MEMORY in experiment.profile.contexts and "set" not in spec.params:
        raise UserError(f"{where}: grows without end; context '{OWN_MEMORY}' is for corpora of a set, name a size instead")
    num_tokens = max(experiment.contexts[context] for context in experiment.profile.contexts)
    data = data_directory(experiment)
    request = CorpusRequest(name, spec.params, where, read_tokenizer(paths.tokenizer), paths.prose, num_tokens, data)
    try:
        documents, tokens = write_corpus(module.make_corpus(request), paths.corpus(name), num_tokens)
    except UnavailableData as error:
        write_unavailable(str(error), paths.corpus(name))
        return f"{paths.corpus(name)}: unavailable: {error}"
    return f"{paths.corpus(name)}: {documents:,} documents, {tokens:,} tokens"


def data_directory(experiment: Experiment) -> Path | None:
    """The profile's data directory."""
    return Path(experiment.profile.data) if experiment.profile.data else None


def write_cell(cell: Cell, view: dict, directory: Path) -> None:
    """Write the files of one prepared cell; view.json comes last and marks the directory as complete."""
    questions = [
        {
            "question_id": item.question_id,
            "text": item.text,
            "answer_prefix": item.answer_prefix,
            "max_new_tokens": item.max_new_tokens,
            "overlay_id": item.overlay_id,
        }
        for item in cell.questions
    ]
    overlays = [
        {"overlay_id": name, "doc_id": item.doc_id, "text": item.text, "num_tokens": item.num_tokens}
        for name, documents in cell.overlays.items()
        for item in documents
    ]
    gold = [
        {
            "question_id": item.question_id,
            "answers": item.answers,
            "gold_doc_ids": item.gold_doc_ids,
            "rejected": item.rejected,
            "group": item.group,
        }
        for item in cell.gold
    ]
    write_table("questions", questions, directory / "questions.parquet")
    write_table("overlays", overlays, directory / "overlays.parquet")
    write_table("gold", gold, directory / "gold.parquet")
    grades = [
        {"question_id": item.question_id, "doc_id": doc_id, "grade": grade}
        for item in cell.gold
        for doc_id, grade in (item.grades or {}).items()
    ]
    (directory / "grades.parquet").unlink(missing_ok=True)
    if grades:
        write_table("grades", grades, directory / "grades.parquet")
    found = {"unavailable": cell.unavailable} if cell.unavailable else {}
    if cell.floor_of:
        found["floor"] = {"value": cell.floor, "of": cell.floor_of}
    write_json({**view, "base_documents": cell.base_documents, **cell.notes, **found}, directory / "view.json")


def view_of(cell: Cell, request: TaskRequest) -> dict:
    """What view.json says of a cell beside the cell's own notes."""
    base_tokens, size = request.tail.tokens(cell.base_documents), request.contexts[cell.context]
    return {
        "corpus": request.corpus,
        "base_tokens": base_tokens,
        "context_tokens": base_tokens if cell.context == OWN_MEMORY else size,
        # how the tail's text was cut; other strategies are a matter of the tasks that offer them
        "chunking": {"strategy": "sentences", "document_tokens": request.document_tokens},
    }


def prepare_task(experiment: Experiment, paths: Paths, name: str, configs: Path) -> str:
    """Write every context of one task; returns a line for the log."""
    profile = experiment.profile
    check_known([name], profile.tasks, "--task", configs / "profiles" / f"{experiment.name}.yaml")
    spec, where = experiment.tasks[name], f"{configs / 'tasks.yaml'}: tasks: {name}"
    module = kind_module(spec.kind, "prepare", where)
    contexts = {context: experiment.contexts[context] for context in profile.contexts}
    if profile.tasks[name] < 1:
        raise UserError(f"{configs / 'profiles' / experiment.name}.yaml: tasks: {name}: must ask 1 question or more")
    try:
        tail = Tail(paths.corpus(spec.corpus))
    except UnavailableData as error:
        for context, size in contexts.items():
            view = {"corpus": spec.corpus, "base_tokens": 0, "context_tokens": size}
            write_cell(Cell(context, 0, unavailable=str(error)), view, paths.prepared(name, context))
        return f"{paths.prepared(name, '*')}: unavailable: {error}"
    request = TaskRequest(
        name=name,
        params=spec.params,
        where=where,
        tokenizer=read_tokenizer(paths.tokenizer),
        prose=paths.prose,
        corpus=spec.corpus,
        corpus_params=experiment.corpora[spec.corpus].params,
        tail=tail,
        contexts=contexts,
        questions=profile.tasks[name],
        data=data_directory(experiment),
    )
    cells = tqdm(
        module.prepare(request), total=len(contexts), desc=name, unit="context", mininterval=1, file=sys.stderr
    )
    sizes = []
    for cell in cells:
        write_cell(cell, view_of(cell, request), paths.prepared(name, cell.context))
        sizes.append(f"{cell.context} {cell.base_documents:,}")
    return f"{paths.prepared(name, '*')}: {request.questions} questions, tail documents {', '.join(sizes)}"


def main() -> None:
    """Prepare one corpus or one task."""
    options = parser(__doc__)
    options.add_argument("what", choices=("corpus", "task"))
    options.add_argument("--corpus", help="with 'corpus': an entry of configs/tasks.yaml: corpora")
    options.add_argument("--task", help="with 'task': an entry of the profile's tasks")
    arguments = options.parse_args()
    name = arguments.corpus if arguments.what == "corpus" else arguments.task
    if name is None:
        raise UserError(f"prepare {arguments.what}: --{arguments.what} is missing; name the one to prepare")
    run = prepare_corpus if arguments.what == "corpus" else prepare_task
    experiment, paths, _ = opened(arguments)
    print(run(experiment, paths, name, arguments.configs))


if __name__ == "__main__":
    run_command(main)
