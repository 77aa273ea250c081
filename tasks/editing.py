"""Memories that change: a fact replaced (the new value must be answered), removed (abstain), or reported anew at later dates.

``replaced`` and ``removed`` edit documents of the tail itself, which every system has indexed: an overlay puts another
text in the place of a document, with another value or with the fact's sentence taken out. ``dated`` adds several reports
of one fact to the head, each with its date; the latest counts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from configs import prompts
from configs.errors import UserError
from configs.records import Document, Question
from tasks import wording
from tasks.base import Cell, Gold, TaskRequest, base_documents
from tasks.chunking import count_tokens, counted
from tasks.scaling import Ask, HeadSpec, checked_heads, draw_value, head_names, make_heads, prepare_heads

CHANGES = ("replaced", "removed", "dated")
ABSTAIN = "If the documents do not say it, answer: not mentioned."
REPORT = "Report of {date}: {sentence}"
LATEST = "By the latest report: {question}"
MONTHS = ("January", "March", "May", "June", "July", "September", "October", "November")


@dataclass(frozen=True)
class EditSpec(HeadSpec):
    """Parameters: what changes; of ``head_tokens`` leading tokens of the tail, or of a head where facts are dated."""

    change: str = "replaced"
    versions: int = 3  # dated reports of one fact


@dataclass(frozen=True)
class Fact:
    """A fact that a document of the tail carries."""

    document: Document
    sentence: str
    entity: str
    attribute: str
    value: str


def _patterns() -> dict[str, list[re.Pattern]]:
    """For each attribute, what its sentences look like."""
    name, number = r"(?P<entity>[A-Z][a-z]+ [A-Z][a-z]+)", r"(?P<value>\d{5,6})"
    return {
        attribute: [
            re.compile(re.escape(text).replace(r"\{entity\}", name).replace(r"\{value\}", number)) for text in texts
        ]
        for attribute, (texts, _) in wording.ATTRIBUTES.items()
    }


def find_facts(documents: Sequence[Document]) -> list[Fact]:
    """The fact sentences (tasks.wording) of documents that carry exactly one, in their order."""
    facts = []
    for document in documents:
        found = [
            Fact(document, match[0], match["entity"], attribute, match["value"])
            for attribute, patterns in _patterns().items()
            for pattern in patterns
            for match in pattern.finditer(document.text)
        ]
        facts += found if len(found) == 1 else []
    return facts


def without(fact: Fact) -> str:
    """The document's text with the fact's sentence taken out; "(no entry)" where it held nothing else."""
    return " ".join(fact.document.text.replace(fact.sentence, " ").split()) or "(no entry)"


def _edited(fact: Fact, change: str, generator: random.Random) -> tuple[str, Ask]:
    """The new text of a fact's document, and the question that meets it."""
    question = generator.choice(wording.ATTRIBUTES[fact.attribute][1]).format(entity=fact.entity)
    if change == "removed":
        return without(fact), Ask(f"{question} {ABSTAIN}", [], [], [fact.value])
    value = draw_value(generator, {fact.value})
    sentence = fact.sentence.replace(fact.value, value)
    return fact.document.text.replace(fact.sentence, sentence), Ask(question, [value], [], [fact.value])


def prepare_edits(request: TaskRequest, spec: EditSpec) -> Iterator[Cell]:
    """Cells whose overlays replace documents of the tail's beginning; of ``removed``, every other question asks what is left.

    Raises:
        UserError: the beginning of the tail carries too few facts.
    """
    leading = request.tail.prefix(spec.head_tokens)
    facts = find_facts(list(request.tail.take(set(range(leading))).values()))
    share = -(-request.questions // spec.replicates)
    if len(facts) < share:
        raise UserError(
            f"{request.where}: {share} questions a replicate, but the first {spec.head_tokens:,} tokens of corpus"
            f" '{request.corpus}' carry {len(facts)} facts; name a corpus of kind scaling, raise 'replicates' or 'head_tokens'"
        )
    asked: list[tuple[int, Ask, Fact]] = []  # replicate, question, its fact
    edits: list[tuple[int, Fact, str]] = []  # replicate, the fact as it was, new text
    for replicate in range(spec.replicates):
        generator = random.Random(f"{spec.seed}/{request.name}/edits{replicate}")
        count = len(range(replicate, request.questions, spec.replicates))
        for turn, fact in enumerate(generator.sample(facts, count)):
            if spec.change == "removed" and turn % 2:
                question = generator.choice(wording.ATTRIBUTES[fact.attribute][1]).format(entity=fact.entity)
                asked.append((replicate, Ask(f"{question} {ABSTAIN}", [fact.value], []), fact))
                continue
            text, ask = _edited(fact, spec.change, generator)
            asked.append((replicate, ask, fact))
            edits.append((replicate, fact, text))
    documents = counted(request.tokenizer, ((fact.document.doc_id, text) for _, fact, text in edits))
    overlays: dict[str, list[Document]] = {f"edits{replicate}": [] for replicate in range(spec.replicates)}
    grown = 0
    for (replicate, fact, _), document in zip(edits, documents, strict=True):
        overlays[f"edits{replicate}"].append(document)
        grown += max(0, document.num_tokens - fact.document.num_tokens)
    yield from _cells(request, spec, asked, overlays, leading, grown)


def _cells(
    request: TaskRequest,
    spec: EditSpec,
    asked: Sequence[tuple[int, Ask, Fact]],
    overlays: dict[str, list[Document]],
    leading: int,
    grown: int,
) -> Iterator[Cell]:
    """The same questions and edits over every prefix of the tail that holds the edited documents; ``grown`` tokens are theirs."""
    template = prompts.TEMPLATE_HEAD + prompts.TEMPLATE_TAIL + prompts.REPEAT_QUESTION + prompts.GIVE_ANSWER
    texts = [f"{template} {prompts.question(ask.text)} {ask.text} {wording.ANSWER_PREFIX}" for _, ask, _ in asked]
    reserved = max(count_tokens(request.tokenizer, texts)) + spec.max_new_tokens + grown
    unanswerable = sum(not ask.answers for _, ask, _ in asked) / len(asked)
    guess = "always abstaining" if unanswerable else "guessing a number"
    for context in request.contexts:
        base = base_documents(request, context, reserved, least=leading)
        cell = Cell(context, base, floor=unanswerable, floor_of=guess, overlays=overlays)
        for number, (replicate, ask, fact) in enumerate(asked):
            question_id = f"{request.name}-{number:04d}"
            cell.questions.append(
                Question(question_id, ask.text, wording.ANSWER_PREFIX, spec.max_new_tokens, f"edits{replicate}")
            )
            doc_ids = [fact.document.doc_id] if ask.answers else []
            cell.gold.append(Gold(question_id, ask.answers, doc_ids, rejected=ask.rejected))
        yield cell


def dated_head(versions: int, limit: int, generator: random.Random) -> tuple[list[str], list[Ask]]:
    """Reports of one attribute of each entity, in different years, and a question on the latest of each."""
    used: set[str] = set()
    sentences: list[str] = []
    asks = []
    for entity in head_names(generator, limit // versions):
        texts, questions = wording.ATTRIBUTES[generator.choice(list(wording.ATTRIBUTES))]
        values = []
        for year in sorted(generator.sample(range(1960, 2024), versions)):
            values.append(draw_value(generator, used))
            used.add(values[-1])
            date = f"{generator.randint(1, 28)} {generator.choice(MONTHS)} {year}"
            fact = generator.choice(texts).format(entity=entity, value=values[-1])
            sentences.append(REPORT.format(date=date, sentence=fact))
        question = LATEST.format(question=generator.choice(questions).format(entity=entity))
        # in random order: where a report stands among the others must not say which one is the latest
        indices = generator.sample(range(len(sentences) - versions, len(sentences)), versions)
        asks.append(Ask(question, [values[-1]], indices, values[:-1]))
    return sentences, asks


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of an editing task (tasks.base.TaskModule)."""
    spec = checked_heads(request, EditSpec, versions=2)
    if spec.change not in CHANGES:
        raise UserError(f"{request.where}: key 'change' must be one of {', '.join(CHANGES)}, found {spec.change!r}")
    if spec.change != "dated":
        yield from prepare_edits(request, spec)
        return
    heads = make_heads(request, spec, partial(dated_head, spec.versions))
    yield from prepare_heads(request, spec, heads, floor=(1 / spec.versions, "any one of the reports"))
