"""Memories that change: a fact replaced (the new value counts), removed (abstain), or reported anew at later dates.

``replaced`` and ``removed`` edit documents of the tail itself, which every system has indexed: an overlay puts another
text in the place of a document, with another value or with the fact's sentence taken out. ``dated`` adds several
reports of one fact to the head, each with its date; the latest counts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from msa_base.errors import UserError
from msa_base.records import Document, Question
from tasks.base import PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.chunking import make_documents
from tasks.parts.entities import draw_value, head_names
from tasks.parts.heads import Ask, HeadParams, Part, prepare_heads

ABSTAIN = "If the documents do not say it, answer: not mentioned."
REPORT = "Report of {date}: {sentence}"
LATEST = "By the latest report: {question}"
MONTHS = ("January", "March", "May", "June", "July", "September", "October", "November")


@dataclass(frozen=True)
class Params(HeadParams):
    """Parameters: what changes; of ``head_tokens`` leading tokens of the tail, or of a head where facts are dated."""

    change: Literal["replaced", "removed", "dated"] = "replaced"
    versions: Annotated[int, Field(ge=2, le=1000)] = 3  # dated reports of one fact


@dataclass(frozen=True)
class Fact:
    """A fact that a document of the tail carries."""

    document: Document
    sentence: str
    entity: str
    attribute: str
    value: str


def find_facts(documents: Sequence[Document]) -> list[Fact]:
    """The fact sentences (tasks.parts.wording) of documents that carry exactly one, in their order."""
    name, number = r"(?P<entity>[A-Z][a-z]+ [A-Z][a-z]+)", r"(?P<value>\d{5,6})"
    patterns = [
        (attribute, re.escape(text).replace(r"\{entity\}", name).replace(r"\{value\}", number))
        for attribute, (texts, _) in wording.ATTRIBUTES.items()
        for text in texts
    ]
    facts = []
    for document in documents:
        found = [
            Fact(document, match[0], match["entity"], attribute, match["value"])
            for attribute, pattern in patterns
            for match in re.finditer(pattern, document.text)
        ]
        facts += found if len(found) == 1 else []
    return facts


@dataclass(frozen=True)
class Edit:
    """A question on a fact of the tail, and the new text of the fact's document (None: it stays as it is)."""

    overlay_id: str
    fact: Fact
    ask: Ask
    text: str | None


def draw_edits(request: TaskRequest, params: Params, facts: Sequence[Fact]) -> list[Edit]:
    """All questions by replicate; of ``removed``, every other one asks for a fact that is left."""
    edits = []
    for replicate in range(params.replicates):
        generator = random.Random(f"{params.seed}/{request.name}/edits{replicate}")
        count = len(range(replicate, request.questions, params.replicates))
        for turn, fact in enumerate(generator.sample(facts, count)):
            question = generator.choice(wording.ATTRIBUTES[fact.attribute][1]).format(entity=fact.entity)
            if params.change == "removed":
                rest = " ".join(fact.document.text.replace(fact.sentence, " ").split()) or "(no entry)"
                question, text = f"{question} {ABSTAIN}", None if turn % 2 else rest
                ask = Ask(question, [fact.value], []) if turn % 2 else Ask(question, [], [], [fact.value])
            else:
                value = draw_value(generator, {fact.value})
                text = fact.document.text.replace(fact.sentence, fact.sentence.replace(fact.value, value))
                ask = Ask(question, [value], [], [fact.value])
            edits.append(Edit(f"edits{replicate}", fact, ask, text))
    return edits


def prepare_edits(request: TaskRequest, params: Params) -> Iterator[PreparedCell]:
    """Cells whose overlays replace documents of the tail's beginning. Raises UserError: too few facts there."""
    leading = request.tail.prefix(params.head_tokens)
    facts = find_facts(list(request.tail.take(set(range(leading))).values()))
    share = -(-request.questions // params.replicates)
    if len(facts) < share:
        there = f"the first {params.head_tokens:,} tokens of corpus '{request.corpus}' carry {len(facts)} facts"
        mend = "name a corpus of kind scaling, raise 'replicates' or 'head_tokens'"
        raise UserError(f"{request.where}: {share} questions a replicate, but {there}; {mend}")
    edits = draw_edits(request, params, facts)
    changed = [edit for edit in edits if edit.text is not None]
    overlays: dict[str, list[Document]] = {f"edits{replicate}": [] for replicate in range(params.replicates)}
    grown = 0  # tokens by which documents got longer
    texts = ((edit.fact.document.doc_id, edit.text) for edit in changed)
    for edit, document in zip(changed, make_documents(request.tokenizer, texts), strict=True):
        overlays[edit.overlay_id].append(document)
        grown += max(0, document.num_tokens - edit.fact.document.num_tokens)
    longest = request.prompt_tokens([edit.ask.text for edit in edits], wording.ANSWER_PREFIX)
    unanswerable = sum(not edit.ask.answers for edit in edits) / len(edits)
    guess = "always abstaining" if unanswerable else "guessing a number"
    for context in request.contexts:
        base = request.base_documents(context, longest + params.max_new_tokens + grown, least=leading)
        cell = PreparedCell(context, base, floor=unanswerable, floor_of=guess, overlays=overlays)
        for number, edit in enumerate(edits):
            question_id, text = f"{request.name}-{number:04d}", edit.ask.text
            question = Question(question_id, text, wording.ANSWER_PREFIX, params.max_new_tokens, edit.overlay_id)
            doc_ids = [edit.fact.document.doc_id] if edit.ask.answers else []
            cell.ask(question, edit.ask.answers, doc_ids, rejected=edit.ask.rejected)
        yield cell


def dated_head(versions: int, limit: int, generator: random.Random) -> Iterator[Part]:
    """Reports of one attribute of each entity, in different years, and a question on the latest of each."""
    used: set[str] = set()
    for entity in head_names(generator, limit // versions):
        texts, questions = wording.ATTRIBUTES[generator.choice(list(wording.ATTRIBUTES))]
        sentences, values = [], []
        for year in sorted(generator.sample(range(1960, 2024), versions)):
            values.append(draw_value(generator, used))
            date = f"{generator.randint(1, 28)} {generator.choice(MONTHS)} {year}"
            fact = generator.choice(texts).format(entity=entity, value=values[-1])
            sentences.append(REPORT.format(date=date, sentence=fact))
        question = LATEST.format(question=generator.choice(questions).format(entity=entity))
        # in random order: where a report stands among the others must not say which one is the latest
        places = generator.sample(range(versions), versions)
        yield sentences, [Ask(question, [values[-1]], places, values[:-1])]


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    params = request.read(Params)
    if params.change != "dated":
        return prepare_edits(request, params)
    floor = (1 / params.versions, "any one of the reports")
    return prepare_heads(request, params, partial(dated_head, params.versions), floor=floor)
