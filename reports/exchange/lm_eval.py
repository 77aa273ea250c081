"""A system's cells in the manner of lm-eval: samples of each cell, and one file of results.

A cell is a task of lm-eval by its task, context and seed. The prompt of a sample is the question alone: what a system
read of the memory is its own (prompts.jsonl keeps some). The standard errors of lm-eval take questions as independent,
which those of one head are not: they are "N/A", and the 95 % interval stands in the metadata of the task's config.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from reports.evidence import Evidence
from reports.exchange.scored import Scored

FILTER = "none"
LOWER_IS_BETTER = ("rejected", "abstained/answerable")


def date(cells: Sequence[Scored]) -> str:
    """When the last of a system's cells ended, as lm-eval puts it into names of files."""
    return max(cell.run.ended for cell in cells).replace(":", "-")


def samples(cell: Scored) -> Iterator[dict[str, Any]]:
    """A record a question."""
    for place, answer in enumerate(cell.answers):
        question, gold = cell.questions[answer.question_id], cell.gold[answer.question_id]
        prompt, target = f"{question['text']}\n{question['answer_prefix']}".rstrip(), " | ".join(gold["answers"])
        doc = {**question, "answers": gold["answers"], "gold_doc_ids": gold["gold_doc_ids"]}
        scores = cell.scores[answer.question_id]
        yield {
            "doc_id": place,
            "doc": {**doc, "cited_doc_ids": answer.cited_doc_ids, "status": answer.status},
            "target": target,
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"max_gen_toks": question["max_new_tokens"]}}},
            "resps": [[answer.text]],
            "filtered_resps": [answer.text],
            "filter": FILTER,
            "metrics": list(scores),
            "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _hash(prompt),
            "target_hash": _hash(target),
            **scores,
        }


def results(cells: Sequence[Scored], evidence: Evidence) -> dict[str, Any]:
    """The file of results of a system; cells that failed are left out, as lm-eval has no status."""
    cells = [cell for cell in cells if cell.answers]
    system = cells[0].cell.system
    of = {cell.name: cell for cell in cells}
    better = {name: {metric: metric not in LOWER_IS_BETTER for metric in cell.intervals} for name, cell in of.items()}
    return {
        "results": {name: _means(cell) for name, cell in of.items()},
        "group_subtasks": {name: [] for name in of},
        "configs": {name: _config(cell, better[name]) for name, cell in of.items()},
        "versions": dict.fromkeys(of, 0),
        "n-shot": dict.fromkeys(of, 0),
        "higher_is_better": better,
        "n-samples": {
            name: {"original": len(cell.questions), "effective": len(cell.answers)} for name, cell in of.items()
        },
        "config": {
            "model": evidence.experiment.systems[system].kind,
            "model_args": {"system": system, "profile": evidence.experiment.name},
            "limit": evidence.experiment.systems[system].max_questions,
            "bootstrap_iters": 0,
        },
        "git_hash": None,
        "date": max(datetime.fromisoformat(cell.run.ended).timestamp() for cell in cells),
        "task_hashes": {name: _task_hash(cell) for name, cell in of.items()},
        "model_source": "msa-suite",
        "model_name": system,
        "model_name_sanitized": system,
        "total_evaluation_time_seconds": str(sum(cell.run.wall_s or 0.0 for cell in cells)),
    }


def _means(cell: Scored) -> dict[str, Any]:
    found: dict[str, Any] = {"name": cell.name, "alias": cell.name, "sample_len": len(cell.answers)}
    for metric, interval in cell.intervals.items():
        found |= {f"{metric},{FILTER}": interval.value, f"{metric}_stderr,{FILTER}": "N/A"}
    return found


def _config(cell: Scored, better: dict[str, bool]) -> dict[str, Any]:
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": up} for name, up in better.items()]
    intervals = {name: {"low": it.low, "high": it.high, "n": it.n} for name, it in cell.intervals.items()}
    return {
        "task": cell.name,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {
            "context_tokens": cell.run.context_tokens,
            "seed": cell.run.seed,
            "intervals": intervals,
            "made_from": cell.run.made_from.model_dump(),
        },
    }


def _task_hash(cell: Scored) -> str:
    return _hash("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in samples(cell)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
