"""TREC runs and qrels, which trec_eval, pytrec_eval and ir_measures read.

A run is a ranking of each question by one stage of a system (a routed layer, "bm25", "dense"), or its citations. The
scores of a ranking are not kept: 1 / rank stands for them, so that every tool sees the same order. A question that
nothing was ranked for has no line; a mean over the qrels (``trec_eval -c``) counts it as 0.
A later round's run holds the questions that came to it, and its mean is over those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from msa_base.errors import UserError
from msa_base.paths import Paths
from msa_base.tables import read_table
from reports.exchange.scored import Scored

CITED = "cited"


def runs(cell: Scored) -> Iterator[tuple[str, list[str]]]:
    """(stage, lines) of each ranking of a cell: question, Q0, document, rank, score, system."""
    stages = dict.fromkeys(stage for answer in cell.answers for stage in answer.routed_doc_ids)
    for stage in stages:
        ranked = ((answer.question_id, answer.routed_doc_ids.get(stage, [])) for answer in cell.answers)
        yield stage.replace("/", "-"), list(_lines(ranked, cell.cell.system))
    if any(answer.cited_doc_ids for answer in cell.answers):
        yield CITED, list(_lines(((it.question_id, it.cited_doc_ids) for it in cell.answers), cell.cell.system))


def _lines(rankings: Iterable[tuple[str, list[int]]], tag: str) -> Iterator[str]:
    for question, doc_ids in rankings:
        for rank, doc_id in enumerate(dict.fromkeys(doc_ids), start=1):  # TREC ranks a document once
            yield f"{_word(question)} Q0 {doc_id} {rank} {1 / rank:.9g} {tag}\n"


def qrels(paths: Paths, task: str, context: str) -> list[str]:
    """Lines of the judged documents: question, 0, document, grade; 1 where people did not judge by degree.

    Raises:
        UserError: a grade is no whole number, as TREC wants it.
    """
    prepared = paths.prepared(task, context)
    if (path := prepared / "grades.parquet").exists():
        rows = [(row["question_id"], row["doc_id"], row["grade"]) for row in read_table("grades", path)]
        if wrong := [grade for *_, grade in rows if grade != int(grade)]:
            raise UserError(f"{path}: key 'grade' holds {wrong[0]}; TREC qrels take whole numbers alone")
    else:
        gold = read_table("gold", prepared / "gold.parquet")
        rows = [(row["question_id"], doc_id, 1) for row in gold for doc_id in dict.fromkeys(row["gold_doc_ids"])]
    return [f"{_word(question)} 0 {doc_id} {grade:.0f}\n" for question, doc_id, grade in rows]


def _word(question: str) -> str:
    """A question's id without white space, which parts the columns."""
    return re.sub(r"[\s%]", lambda found: quote(found[0]), question)
