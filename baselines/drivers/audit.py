"""What models really read: the whole prompts of a sample of each cell's questions, kept and checked (prompts.jsonl).

Checked on the tokens themselves where the model is one of ours (the system's ``reader``, or the system itself, has
``prompter`` and ``model``), on the message where it is served. The template opens it once. Question and read documents
are whole. It ends where the answer begins. Nothing is padding. Prompt and answer fit the window together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from baselines.base import System
from msa_base import prompts
from msa_base.records import Answer, CorpusView, Document, Question
from msa_base.tables import write_lines

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
    model = system.models.get("reader", system)
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
            tokenizer = model.prompter.tokenizer
            row |= {
                "prompt": tokenizer.decode(answer.prompt, skip_special_tokens=False),
                "prompt_tokens": len(answer.prompt),
                "first_tokens": [tokenizer.id_to_token(token) for token in answer.prompt[:FIRST_TOKENS]],
                "window_tokens": model.model.config.max_positions,
            }
        documents = _read(system, question, answer, view, base)
        row["problems"] = problems(question, answer, documents, model)
        rows.append(row)
    return rows


def _read(
    system: System, question: Question, answer: Answer, view: CorpusView, base: dict[int, Document]
) -> list[Document]:
    """The documents that the answer was read from; where that is the whole memory, some of them, evenly spread."""
    if system.reads_notes:
        return []
    if system.reads_everything:
        found = list(view.documents(question))
        return found[:: max(1, -(-len(found) // MOST_DOCUMENTS))]
    seen = base | {document.doc_id: document for document in view.overlay(question).added}
    return [seen[doc_id] for doc_id in answer.cited_doc_ids if doc_id in seen]


def problems(question: Question, answer: Answer, documents: Sequence[Document], model: Any) -> list[str]:
    """What is wrong with the prompt of an answer that was read from ``documents``."""
    from msa.model.chat import ChatPrompter  # with torch, which the parent process of a run does without

    if isinstance(answer.prompt, str):
        found = _message_problems(question, answer.prompt, documents)
    elif answer.prompt is not None and isinstance(getattr(model, "prompter", None), ChatPrompter):
        found = _chat_problems(question, answer, documents, model)
    elif answer.prompt is not None and hasattr(model, "prompter"):
        found = _token_problems(question, answer, documents, model)
    else:
        found = {NOT_RECORDED: True}
    return [problem for problem, is_met in found.items() if is_met]


def _message_problems(
    question: Question, message: str, documents: Sequence[Document], spelled: Callable[[str], str] = str
) -> dict[str, bool]:
    """``spelled``: a text as it stands in the message, where a tokenizer may have normalised it."""
    texts = [spelled(prompts.fetched(document.doc_id, document.text)) for document in documents]
    return {
        QUESTION: spelled(question.text) not in message,
        DOCUMENT: any(text not in message for text in texts),
        ENDING: not message.endswith(spelled(question.answer_prefix).rstrip()),
    }


def _chat_problems(question: Question, answer: Answer, documents: Sequence[Document], model: Any) -> dict[str, bool]:
    """Of a prompt in a model's own chat template: its message, and the tokens around it."""
    ids, prompter = answer.prompt, model.prompter
    found = _message_problems(
        question, prompter.said(ids), documents, lambda text: prompter.decode(prompter.text(text))
    )
    found[ENDING] |= ids[len(ids) - len(prompter.tail) :] != prompter.tail
    return found | _row_problems(question, answer, model)


def _row_problems(question: Question, answer: Answer, model: Any) -> dict[str, bool]:
    """What may be wrong with the tokens of any prompt."""
    ids, prompter, window = answer.prompt, model.prompter, model.model.config.max_positions
    in_one, inside = answer.rounds == 1 and not answer.truncated, prompter.pad not in [*prompter.head, *prompter.tail]
    return {
        TEMPLATE: ids[: len(prompter.head)] != prompter.head or holds(ids[1:], prompter.head),
        PADDING: inside and prompter.pad in ids,
        WINDOW: window is not None and len(ids) + question.max_new_tokens > window,
        COUNT: len(ids) > answer.input_tokens,
        BUDGET: in_one and len(prompter.text(answer.text)) > question.max_new_tokens,
    }


def _token_problems(question: Question, answer: Answer, documents: Sequence[Document], model: Any) -> dict[str, bool]:
    from msa.model.prompt import Row

    ids, prompter = answer.prompt, model.prompter
    # behind other text a question may be spelled with other tokens
    asked = prompter.text(question.text), prompter.opening(question.text).ids
    ending = prompter.add_answer_request(Row(), question.text, question.answer_prefix).ids
    return {
        QUESTION: not any(holds(ids, part) for part in asked),
        DOCUMENT: not all(holds(ids, prompter.fetched(document)) for document in documents),
        ENDING: ids[-len(ending) :] != ending,
    } | _row_problems(question, answer, model)


def holds(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether ``part`` stands in ``ids`` without a gap; nothing stands nowhere."""
    if not part:
        return False
    starts = (place for place, token in enumerate(ids) if token == part[0])
    return any(list(ids[start : start + len(part)]) == list(part) for start in starts)


def write_audit(rows: Sequence[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Write prompts.jsonl; how many prompts were checked, and how often each problem was met."""
    write_lines(rows, path)
    return {"checked": len(rows), "problems": dict(Counter(problem for row in rows for problem in row["problems"]))}
