"""What models really read: the whole prompts of a sample of each cell's questions, kept and checked (prompts.jsonl).

Checked on the tokens themselves where the model is one of ours (the system's ``reader``, or the system itself, has
``prompter`` and ``model``), on the message where it is served: the template opens it once and no other begin-of-text token
stands before it, question and read documents are whole, it ends where the answer begins, nothing is padding, and prompt and
answer fit the window together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from baselines.base import System
from configs import prompts
from configs.records import Answer, CorpusView, Document, Question

SAMPLE = 4  # questions of a cell
FIRST_TOKENS = 4
MOST_DOCUMENTS = 32  # looked for in one prompt

NOT_RECORDED = "not recorded"
TEMPLATE = "does not open with the template"
QUESTION = "question not whole"
DOCUMENT = "document not whole"
ENDING = "does not end where the answer begins"
PADDING = "padding inside"
WINDOW = "prompt and answer exceed the window"
COUNT = "more tokens than were counted"
BUDGET = "more tokens written than the budget"


def audit(
    system: System, questions: Sequence[Question], answers: Sequence[Answer], view: CorpusView
) -> list[dict[str, Any]]:
    """One row for each sampled question: its prompt as text, its sizes, and what is wrong with it."""
    model = getattr(system, "reader", system)
    places = sorted({index * len(questions) // SAMPLE for index in range(SAMPLE)}) if questions else []
    wanted = {doc_id for place in places for doc_id in answers[place].cited_doc_ids}
    base = {document.doc_id: document for document in view.base if document.doc_id in wanted} if wanted else {}
    rows = []
    for place in places:
        question, answer = questions[place], answers[place]
        row = {
            "question_id": question.question_id,
            "prompt": answer.prompt if isinstance(answer.prompt, str) else None,
            "prompt_tokens": None,
            "first_tokens": None,
            "window_tokens": None,
            "max_new_tokens": question.max_new_tokens,
            "output_tokens": answer.output_tokens,
            "truncated": answer.truncated,
            "doc_ids": answer.cited_doc_ids,
            "left_out_doc_ids": answer.left_out_doc_ids,
        }
        if isinstance(answer.prompt, list) and hasattr(model, "prompter"):
            row |= _shown(answer.prompt, model)
        documents = _read(system, question, answer, view, base)
        row["problems"] = list(problems(question, answer, documents, model))
        rows.append(row)
    return rows


def _shown(ids: list[int], model: Any) -> dict[str, Any]:
    tokenizer = model.prompter.tokenizer
    return {
        "prompt": tokenizer.decode(ids, skip_special_tokens=False),
        "prompt_tokens": len(ids),
        "first_tokens": [tokenizer.id_to_token(token) for token in ids[:FIRST_TOKENS]],
        "window_tokens": model.model.config.max_positions,
    }


def _read(
    system: System, question: Question, answer: Answer, view: CorpusView, base: dict[int, Document]
) -> list[Document]:
    """The documents whose text the answer was read from; some of them, spread evenly, where that is the whole memory."""
    if system.reads_notes:
        return []
    if system.reads_everything:
        found = list(view.documents(question))
        return found[:: max(1, -(-len(found) // MOST_DOCUMENTS))]
    seen = base | {document.doc_id: document for document in view.overlay(question).added}
    return [seen[doc_id] for doc_id in answer.cited_doc_ids if doc_id in seen]


def problems(question: Question, answer: Answer, documents: Sequence[Document], model: Any) -> Iterator[str]:
    """What is wrong with the prompt of an answer that was read from ``documents``."""
    if answer.prompt is None or (isinstance(answer.prompt, list) and not hasattr(model, "prompter")):
        yield NOT_RECORDED
    elif isinstance(answer.prompt, str):
        yield from _message_problems(question, answer.prompt, documents)
    else:
        yield from _token_problems(question, answer, documents, model)


def _message_problems(question: Question, message: str, documents: Sequence[Document]) -> Iterator[str]:
    if question.text not in message:
        yield QUESTION
    if any(prompts.fetched(document.doc_id, document.text) not in message for document in documents):
        yield DOCUMENT
    if not message.endswith(question.answer_prefix.rstrip()):
        yield ENDING


def _token_problems(question: Question, answer: Answer, documents: Sequence[Document], model: Any) -> Iterator[str]:
    ids, prompter = answer.prompt, model.prompter
    if ids[: len(prompter.head)] != prompter.head or holds(ids[1:], prompter.head):
        yield TEMPLATE
    if not holds(ids, prompter.text(question.text)):
        yield QUESTION
    if not all(holds(ids, prompter.fetched(document)) for document in documents):
        yield DOCUMENT
    ending = [*prompter.give_answer, *prompter.text(question.answer_prefix)]
    if ids[-len(ending) :] != ending:
        yield ENDING
    if prompter.pad in ids:
        yield PADDING
    window = model.model.config.max_positions
    if window is not None and len(ids) + question.max_new_tokens > window:
        yield WINDOW
    if len(ids) > answer.input_tokens:
        yield COUNT
    if answer.rounds == 1 and not answer.truncated and len(prompter.text(answer.text)) > question.max_new_tokens:
        yield BUDGET


def holds(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether ``part`` stands in ``ids`` without a gap; nothing stands nowhere."""
    if not part:
        return False
    starts = (place for place, token in enumerate(ids) if token == part[0])
    return any(list(ids[start : start + len(part)]) == list(part) for start in starts)


def outcome(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many prompts were checked, and how often each problem was met."""
    return {"checked": len(rows), "problems": dict(Counter(problem for row in rows for problem in row["problems"]))}


def write_audit(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write prompts.jsonl, whole or not at all."""
    from configs.tables import whole_file

    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
