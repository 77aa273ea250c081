"""Search two settings of a system on a tuning split: questions that no model trained on and that no task asks.

    python -m baselines.tune --profile tiny --systems rag_bm25,rag_rerank

An entry's ``search`` maps parameters to the values to try; every combination answers the same questions of the training set
that the profile's samples call ``tuning`` (names of the training split, a seed of its own, listed by no model). Its banks make
one corpus. A system that reads all of it for every question is asked 32, each over its own bank alone, a bank of every task.
Writes _tuning/{system}.json, which the report shows; the entry's own values stay what a person writes there.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from baselines.base import CellStatus, IndexResources, Resources, load_module
from baselines.provenance import checkpoint_digest, code_digest, hardware, value_digest, versions
from baselines.race import Race, spread
from configs.errors import UserError, run_command
from configs.load import DIRECTORY, Experiment, check_known, load
from configs.paths import Paths
from configs.records import Answer, CorpusView, Document, Overlay, Question
from configs.tables import read_table, write_json, write_table

SPLIT = "tuning"
FEW_QUESTIONS = 32  # for a kind whose module says READS_ALL
MAX_NEW_TOKENS = 64
SEED = 0


@dataclass(frozen=True)
class TuningSet:
    """A corpus (the banks as one, or each bank an overlay of its own), questions over it, their values and gold documents."""

    view: CorpusView
    questions: list[Question]
    values: dict[str, list[str]]
    gold: dict[str, list[int]]

    @property
    def tokens(self) -> int:
        """What a question's documents hold, on average."""
        own = [document.num_tokens for question in self.questions for document in self.view.overlay(question).added]
        return sum(document.num_tokens for document in self.view.base) + round(sum(own) / len(self.questions))


def read_tuning(directory: Path, count: int, own_banks: bool = False) -> TuningSet:
    """The tuning split, documents renumbered so that ids are unique over all banks, its questions spread over the tasks.

    Args:
        own_banks: each question sees its own bank alone, and only the first bank with each task is asked about.
    """
    banks, samples = (read_table(name, directory / f"{name}.parquet") for name in ("banks", "samples"))
    if own_banks:
        first = {row["task"]: row["bank_id"] for row in reversed(samples)}  # the first of each task comes last and stays
        samples = [row for row in samples if first[row["task"]] == row["bank_id"]]
    rng = np.random.default_rng(SEED)
    ids = rng.choice(900_000, len(banks), replace=False) + 100_000
    renamed = {(row["bank_id"], row["doc_id"]): int(new) for row, new in zip(banks, ids, strict=True)}
    documents: dict[str, list[Document]] = defaultdict(list)
    for row in banks:
        new = renamed[row["bank_id"], row["doc_id"]]
        documents[str(row["bank_id"])].append(Document(new, row["text"], row["num_tokens"]))
    questions, values, gold, bank_of = [], {}, {}, {}
    for row in samples:
        name = f"{SPLIT}-{row['sample_id']:05d}"
        # grouping by task spreads them
        questions.append(Question(name, row["question"], row["answer_prefix"], MAX_NEW_TOKENS, row["task"]))
        values[name] = re.split(r", and |, ", row["answer"])
        gold[name] = [renamed[row["bank_id"], doc_id] for group in row["chain"] for doc_id in group]
        bank_of[name] = str(row["bank_id"]) if own_banks else None
    chosen = [replace(question, overlay_id=bank_of[question.question_id]) for question in spread(questions, count)]
    if own_banks:
        view = CorpusView([], {bank: Overlay(bank, tuple(own)) for bank, own in documents.items()})
    else:
        view = CorpusView(list(itertools.chain.from_iterable(documents.values())), {})
    return TuningSet(view, chosen, values, gold)


def tune(experiment: Experiment, paths: Paths, system: str, count: int, threads: int) -> dict[str, Any]:
    """Try every combination of an entry's ``search``; the record of all of them.

    Raises:
        UserError: the entry has nothing to search, or a value that its module refuses.
    """
    spec = experiment.systems[system]
    if not spec.search:
        raise UserError(f"systems.yaml: systems: {system}: nothing to tune; add `search:` with parameters and values")
    race = Race(experiment, paths, system, next(iter(experiment.profile.tasks)), threads)
    module = load_module(spec.kind, f"systems.yaml: systems: {system}")
    reads_all = getattr(module, "READS_ALL", False)
    split = read_tuning(paths.samples(SPLIT), min(count, FEW_QUESTIONS) if reads_all else count, own_banks=reads_all)
    rows = []
    with TemporaryDirectory() as folder:
        resources = replace(_indexed(race, split.view.base, Path(folder)), cell_limit_s=None)  # no cell is timed here
        for values in itertools.product(*spec.search.values()):
            params = dict(zip(spec.search, values, strict=True))
            extra = {"gold": split.gold} if spec.reads_gold else {}
            start_s = perf_counter()
            try:
                opened = module.make(replace(spec, params={**spec.params, **params}), resources, **extra)
                answers = opened.answer(split.questions, split.view)
                opened.close()
                row = {"status": "ok", **measures(answers, split)}
            except CellStatus as refusal:
                row = {"status": refusal.status, "correct": None, "recall": None}
            rows.append({"params": params, **row, "seconds": perf_counter() - start_s})
            print(f"{system} {params}: {rows[-1]}", flush=True)
    models = {
        "weights": resources.model,
        "index_weights": resources.index_model,
        "reranker_weights": resources.reranker,
    }
    known = [row for row in rows if row["correct"] is not None]
    entry = {name: spec.params.get(name, _default(module, name)) for name in spec.search}
    return {
        "profile": experiment.name,
        "system": system,
        "split": SPLIT,
        "questions": len(split.questions),
        "tokens": split.tokens,
        "rows": rows,
        "best": max(known, key=lambda row: row["correct"])["params"] if known else None,
        "entry": entry,
        "inputs": {
            "config": value_digest(asdict(spec)),
            "code": code_digest(),
            **{name: checkpoint_digest(path) for name, path in models.items() if path is not None},
            "questions": value_digest([question.text for question in split.questions]),
        },
        "threads": threads,
        "versions": versions(),
        "hardware": hardware(),
    }


def measures(answers: list[Answer], split: TuningSet) -> dict[str, float]:
    """Means over questions: the share of the answer's values that the text holds, and of the gold documents that were read."""
    correct = [
        np.mean([value.lower() in answer.text.lower() for value in split.values[answer.question_id]])
        for answer in answers
    ]
    recall = [
        len(set(answer.cited_doc_ids) & set(split.gold[answer.question_id])) / len(set(split.gold[answer.question_id]))
        for answer in answers
    ]
    return {"correct": float(np.mean(correct)), "recall": float(np.mean(recall))}


def _default(module: Any, name: str) -> Any:
    return getattr(getattr(module, "Params", None), name, None)


def _indexed(race: Race, documents: Sequence[Document], folder: Path) -> Resources:
    """What the system may open, its index built over the tuning corpus."""
    resources = race.resources(SEED)
    if race.index_spec is None:
        return resources
    write_table("corpus", [vars(document) for document in documents], folder / "corpus.parquet")
    builder = load_module(race.index_spec.kind, f"systems.yaml: indexes: {race.spec.index}")
    (folder / "index").mkdir()
    given = IndexResources(resources.index_model, folder / "corpus.parquet", race.threads)
    builder.build_index(race.index_spec, given, folder / "index")
    return replace(resources, index=folder / "index")


def main() -> None:
    """Tune the chosen systems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--systems", default="all", help="comma-separated (default: every one with a `search`)")
    parser.add_argument("--questions", type=int, default=256, help="how many are asked (default: 256)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--configs", type=Path, default=DIRECTORY, help="the configuration directory")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where results stand (default: results)")
    chosen = parser.parse_args()
    experiment = load(chosen.profile, chosen.configs)
    searched = [name for name in experiment.profile.systems if experiment.systems[name].search]
    names = searched if chosen.systems in ("all", "main") else chosen.systems.split(",")
    check_known(names, experiment.profile.systems, "--systems", chosen.configs / f"profiles/{chosen.profile}.yaml")
    if chosen.questions < 1:
        raise UserError("--questions: ask one at least")
    paths = Paths.of(chosen.profile, chosen.results)
    for name in names:
        write_json(tune(experiment, paths, name, chosen.questions, chosen.threads), paths.tuning(name))


if __name__ == "__main__":
    run_command(main)
