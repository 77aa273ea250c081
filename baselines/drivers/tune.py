"""Search two settings of a system on a tuning split: questions that no model trained on and that no task asks.

    python -m baselines.drivers.tune --profile tiny --systems rag_bm25,rag_rerank

An entry's ``search`` maps parameters to the values to try; every combination answers the same questions of the training
set that the profile's samples call ``tuning`` (names of the training split, a seed of its own, listed by no model). Its
banks make one corpus. A system that reads all of it for every question is asked 32, each over its own bank alone, a
bank of every task.

Writes _tuning/{system}.json, which the report shows; the entry's own values stay what a person writes there.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from pydantic import ValidationError

from baselines.drivers.evaluation import Evaluation
from baselines.drivers.provenance import computed_with, model_digests
from baselines.drivers.questions import spread
from baselines.drivers.supervise import expected_failure
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.load import Experiment
from msa_base.options import add_number
from msa_base.paths import Paths
from msa_base.records import Answer, CorpusView, Document, Overlay, Question
from msa_base.seal import MadeFrom
from msa_base.stage_records import Trial, TuningRecord
from msa_base.stages import Stages
from msa_base.tables import read_json, read_table, write_json
from msa_base.validate import check_known

SPLIT = "tuning"
FEW_QUESTIONS = 32  # for a kind whose module says READS_ALL
MAX_NEW_TOKENS = 64
SEED = 0


@dataclass(frozen=True)
class TuningSet:
    """A corpus (the banks as one, or each an overlay of its own), its questions, their values and gold documents."""

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
    """The tuning split: documents renumbered, ids unique over all banks; questions spread over the tasks.

    With ``own_banks`` each question sees its own bank alone, and only the first bank with each task is asked about.
    """
    banks, samples = (read_table(name, directory / f"{name}.parquet") for name in ("banks", "samples"))
    if own_banks:
        first = {row["task"]: row["bank_id"] for row in reversed(samples)}  # a task's first comes last and stays
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
        said = [note["value"] for note in row.get("notes") or () if note["value"] in row["answer"]]
        values[name] = said or [row["answer"]]
        gold[name] = [renamed[row["bank_id"], doc_id] for group in row["chain"] for doc_id in group]
        bank_of[name] = str(row["bank_id"]) if own_banks else None
    chosen = [replace(question, overlay_id=bank_of[question.question_id]) for question in spread(questions, count)]
    if own_banks:
        view = CorpusView([], {bank: Overlay(bank, tuple(own)) for bank, own in documents.items()})
    else:
        view = CorpusView(list(itertools.chain.from_iterable(documents.values())), {})
    return TuningSet(view, chosen, values, gold)


def tune(experiment: Experiment, paths: Paths, system: str, count: int, threads: int) -> TuningRecord:
    """Try every combination of an entry's ``search``; the record of all of them, or the one that stands."""
    spec = experiment.systems[system]
    if not spec.search:
        raise UserError(f"systems.yaml: systems: {system}: nothing to tune; add `search:` with parameters and values")
    evaluation = Evaluation(experiment, paths, system, next(iter(experiment.profile.tasks)), threads)
    plugin = evaluation.plugin
    models = model_digests(evaluation.resources(SEED))
    samples = [paths.samples(SPLIT) / f"{name}.parquet" for name in ("banks", "samples")]
    made_from = Stages(experiment).tuning(system).of(paths.root, *samples, **models, questions=count)
    if before := TuningRecord.current(paths.tuning(system), made_from):
        return before
    reads_all = plugin.READS_ALL
    split = read_tuning(paths.samples(SPLIT), min(count, FEW_QUESTIONS) if reads_all else count, own_banks=reads_all)
    begun = paths.tuning(system).with_name(f".{system}.begun.json")
    rows = _begun(begun, made_from)
    with evaluation.resources_over(split.view.base, SEED) as indexed:
        resources = replace(indexed, cell_limit_s=None)  # no cell is timed here
        for values in itertools.product(*spec.search.values()):
            params = dict(zip(spec.search, values, strict=True))
            if any(row.params == params for row in rows):
                continue  # a search that was stopped goes on
            start_s = perf_counter()
            try:
                opened = plugin.open(replace(spec, params={**spec.params, **params}), resources, split.gold)
                answers = opened.answer(split.questions, split.view)
                opened.close()
                row = {"status": "ok", **measures(answers, split)}
            except Exception as error:
                row = {"status": expected_failure(error).status}
            rows.append(Trial(params=params, **row, seconds=perf_counter() - start_s))
            write_json({"made_from": made_from.digest, "rows": [row.model_dump() for row in rows]}, begun)
            print(f"{system} {params}: {rows[-1]}", flush=True)
    known = [row for row in rows if row.correct is not None]
    record = TuningRecord(
        made_from=made_from,
        profile=experiment.name,
        system=system,
        split=SPLIT,
        questions=len(split.questions),
        tokens=split.tokens,
        rows=rows,
        best=max(known, key=lambda row: row.correct).params if known else None,
        entry={name: spec.params.get(name, getattr(plugin.Params, name, None)) for name in spec.search},
        threads=threads,
        **computed_with(),
    )
    record.write(paths.tuning(system))
    begun.unlink(missing_ok=True)
    return record


def _begun(path: Path, made_from: MadeFrom) -> list[Trial]:
    """The trials of a search of the same things that was stopped; none where its file was cut or edited."""
    with suppress(UserError, ValidationError, KeyError, TypeError):
        content = read_json(path)
        if content["made_from"] == made_from.digest:
            return [Trial.model_validate(row) for row in content["rows"]]
    return []


def measures(answers: list[Answer], split: TuningSet) -> dict[str, float]:
    """Means over questions: the share of the answer's values that the text holds, and of gold documents read."""
    correct, recall = [], []
    for answer in answers:
        values, gold = split.values[answer.question_id], set(split.gold[answer.question_id])
        correct.append(np.mean([value.lower() in answer.text.lower() for value in values]))
        recall.append(len(gold.intersection(answer.cited_doc_ids)) / len(gold))
    return {"correct": float(np.mean(correct)), "recall": float(np.mean(recall))}


def main() -> None:
    parser = experiment_parser(__doc__, threads=1)
    parser.add_argument("--systems", default="all", help="comma-separated (default: every one with a `search`)")
    add_number(parser, "--questions", 256, "how many are asked (default: 256)")
    chosen = parser.parse_args()
    experiment, paths = open_experiment(chosen)
    searched = [name for name in experiment.profile.systems if experiment.systems[name].search]
    names = searched if chosen.systems in ("all", "main") else chosen.systems.split(",")
    check_known(names, experiment.profile.systems, "--systems", experiment.file)
    if chosen.questions < 1:
        raise UserError("--questions: ask one at least")
    for name in names:
        tune(experiment, paths, name, chosen.questions, chosen.threads)


if __name__ == "__main__":
    run_command(main)
