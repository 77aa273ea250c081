"""A cell as a log of inspect_ai (its JSON format, version 2): ``inspect view --log-dir FOLDER`` shows them."""

from __future__ import annotations

from typing import Any

from msa_base.records import Answer
from msa_base.seal import DIGITS, value_digest
from reports.evidence import Evidence
from reports.exchange.scored import Scored

VERSION = 2
PROVIDER = "msa-suite"  # inspect_ai names models as provider/model


def file_name(cell: Scored) -> str:
    """As inspect_ai names its logs: time, task, model and id, none of which holds an underscore."""
    parts = (cell.run.ended.replace(":", "-"), cell.name, cell.cell.system, _identity(cell))
    return f"{'_'.join(part.replace('_', '-') for part in parts)}.json"


def _identity(cell: Scored) -> str:
    """Two systems of equal entries have ids of their own."""
    return value_digest([*cell.cell, cell.run.seed, cell.run.profile, cell.run.made_from.digest])[:DIGITS]


def log(cell: Scored, evidence: Evidence) -> dict[str, Any]:
    """The whole log, its keys in the order in which headers are read; of a failed cell an error with its status."""
    run, model, identity = cell.run, f"{PROVIDER}/{cell.cell.system}", _identity(cell)
    usage = [_usage(answer) for answer in cell.answers]
    found = {
        "version": VERSION,
        "status": "success" if run.status == "ok" else "error",
        "eval": {
            "eval_id": identity,
            "run_id": identity,
            "task_id": identity,
            "created": run.ended,
            "task": cell.name,
            "task_display_name": f"{evidence.title(cell.cell.task)}, {cell.cell.context}",
            "task_args": {"context": run.context, "context_tokens": run.context_tokens, "seed": run.seed},
            "dataset": {
                "name": f"{run.profile}/{run.task}/{run.context}",
                "samples": len(cell.answers),
                "sample_ids": [answer.question_id for answer in cell.answers],
                "shuffled": False,
            },
            "model": model,
            "model_args": evidence.experiment.systems[cell.cell.system].params,
            "config": {"epochs": 1},
            "packages": run.versions,
            "metadata": {
                "system": evidence.title(cell.cell.system),
                "made_from": run.made_from.model_dump(),
                "hardware": run.hardware.model_dump(),
                "threads": run.threads,
            },
        },
        "plan": {"name": "plan", "steps": [{"solver": cell.cell.system, "params": {}}], "config": {}},
        "results": {
            "total_samples": len(cell.answers),
            "completed_samples": len(cell.answers),
            "scores": [_score(cell, metric) for metric in cell.metrics],
        },
        "stats": {
            "started_at": "",
            "completed_at": run.ended,
            "model_usage": {model: {key: sum(one[key] for one in usage) for key in _usage(Answer("", ""))}},
        },
        "samples": [_sample(cell, answer, model) for answer in cell.answers],
    }
    if run.status != "ok":
        message = f"{run.status}: {run.reason}"
        found["error"] = {"message": message, "traceback": message, "traceback_ansi": message}
    return found


def _score(cell: Scored, metric: str) -> dict[str, Any]:
    """The mean of a metric with its interval; one that no question has is left out."""
    values = [scores[metric] for scores in cell.scores.values() if metric in scores]
    known, found = sum(value is not None for value in values), cell.intervals.get(metric)
    ends = {"mean": found.value, "ci95_low": found.low, "ci95_high": found.high} if found else {}
    return {
        "name": metric,
        "scorer": metric,
        "scored_samples": known,
        "unscored_samples": len(cell.answers) - known,
        "params": {},
        "metrics": {name: {"name": name, "value": value} for name, value in ends.items()},
    }


def _usage(answer: Answer) -> dict[str, int]:
    total = answer.input_tokens + answer.output_tokens
    return {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens, "total_tokens": total}


def _sample(cell: Scored, answer: Answer, model: str) -> dict[str, Any]:
    question, gold = cell.questions[answer.question_id], cell.gold[answer.question_id]
    said = {"role": "assistant", "content": answer.text, "source": "generate"}
    scores = cell.scores[answer.question_id]
    return {
        "id": answer.question_id,
        "epoch": 1,
        "input": question["text"],
        "target": gold["answers"],
        "messages": [{"role": "user", "content": question["text"], "source": "input"}, said],
        "output": {
            "model": model,
            "choices": [{"message": said, "stop_reason": "max_tokens" if answer.truncated else "stop"}],
            "completion": answer.text,
            "usage": _usage(answer),
            "time": answer.total_s or None,  # of an answer that was made elsewhere no time is known
        },
        "scores": {name: {"value": it, "answer": answer.text} for name, it in scores.items() if it is not None},
        "metadata": {
            "answer_prefix": question["answer_prefix"],
            "max_new_tokens": question["max_new_tokens"],
            "overlay_id": question["overlay_id"],
            "gold_doc_ids": gold["gold_doc_ids"],
            "cited_doc_ids": answer.cited_doc_ids,
            "routed_doc_ids": answer.routed_doc_ids,
            "rounds": answer.rounds,
            "status": answer.status,
            "stage_s": answer.stage_s,
        },
    }
