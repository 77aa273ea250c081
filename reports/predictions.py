"""The page of predictions: question, gold, answer, cited documents, right or not, for every cell that was scored.

One file beside the report. Each cell is a block of JSON in it that is read when it is chosen.
"""

from __future__ import annotations

import json
from itertools import islice

from msa_base.records import Answer
from msa_base.tables import read_predictions, read_table
from reports import sources
from reports.evidence import CellKey, Evidence

MOST = 20  # questions of a cell that are shown, in the order that they were asked
LETTERS = 500  # of a text that is shown
DOCUMENTS = 16  # of a list of ids


def embedded(value: object) -> str:
    """JSON that may stand inside a script element: nothing in it can end that."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def cut(text: str) -> str:
    """A text as it is shown: what is left out is marked."""
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} … ({len(text) - LETTERS} more characters)"


def questions(evidence: Evidence, task: str, context: str) -> dict[str, list]:
    """Text, right answers and gold documents of the questions that are shown, by id; empty where none is prepared."""
    folder = evidence.paths.prepared(task, context)
    if not (folder / "questions.parquet").exists() or not (folder / "gold.parquet").exists():
        return {}
    gold = {row["question_id"]: row for row in read_table("gold", folder / "gold.parquet")}
    found = {}
    for row in islice(read_table("questions", folder / "questions.parquet"), MOST):
        right = gold.get(row["question_id"], {"answers": [], "gold_doc_ids": []})
        answers = [cut(answer) for answer in right["answers"]]
        found[row["question_id"]] = [cut(row["text"]), answers, right["gold_doc_ids"][:DOCUMENTS]]
    return found


def answers(evidence: Evidence, cell: CellKey) -> dict:
    """The first seed's answers of a cell that are shown, and where they are; a score is the mean over seeds."""
    folder = evidence.paths.cell(*cell, evidence.experiment.profile.seeds[0])
    scores = evidence.values(cell)
    if not scores.size or not (folder / "predictions.jsonl").exists():
        return {}
    found = read_predictions(folder / "predictions.jsonl")
    rows = [_answer(answer, scores.get(answer.question_id)) for answer in found[:MOST]]
    return {"run": sources.link(evidence, folder / "run.json"), "all": len(found), "rows": rows}


def _answer(answer: Answer, score: float | None) -> list:
    known = None if score is None or score != score else round(float(score), 4)
    return [answer.question_id, cut(answer.text), answer.cited_doc_ids[:DOCUMENTS], known, answer.status]


def blocks(evidence: Evidence) -> tuple[dict, dict[str, str]]:
    """What can be chosen, and the JSON of each block by its name: ``task/context`` and ``system/task/context``."""
    profile, found = evidence.experiment.profile, {}
    cells = [cell for cell in evidence.cells() if evidence.values(cell).size]
    for task, context in dict.fromkeys((cell.task, cell.context) for cell in cells):
        found[f"{task}/{context}"] = embedded(questions(evidence, task, context))
    for cell in cells:
        if shown := answers(evidence, cell):
            found["/".join(cell)] = embedded(shown)
    names = [name for name in found if name.count("/") == 2]
    used = {part for name in names for part in name.split("/")}
    choices = {
        "system": [[name, evidence.title(name)] for name in profile.systems if name in used],
        "task": [[name, evidence.title(name)] for name in profile.tasks if name in used],
        "context": [[name, name] for name in profile.contexts if name in used],
    }
    return choices, found
