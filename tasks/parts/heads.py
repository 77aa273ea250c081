"""Questions on heads of documents over a growing tail: what the generated tasks share.

A task says what stands in one head, a sentence a document, and what can be asked of it. The documents carry real prose
around their sentences. A head is an overlay, so every context meets the same questions and the same head.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document, Question
from msa_base.validate import Count, Seed, Tokens
from tasks.base import PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.chunking import count_prompts, make_documents, random_ids
from tasks.parts.prose import Prose

NOT_GUESSED = (0.0, "")
TEMPLATE = prompts.TEMPLATE_HEAD + prompts.OBJECT_REF_END + prompts.END_OF_RETRIEVE
TEMPLATE += prompts.REPEAT_QUESTION + prompts.GIVE_ANSWER


@dataclass(frozen=True)
class Ask:
    """A question on a head: text, right answers and its documents by index; ``rejected`` and ``group`` as in Gold."""

    text: str
    answers: list[str]
    documents: list[int]
    rejected: list[str] = field(default_factory=list)
    group: str | None = None


# sentences, a document each, and what is asked of them: an Ask's documents count from the first of its part
Part = tuple[list[str], list[Ask]]
MakeHead = Callable[[int, random.Random], Iterable[Part]]  # (most documents, generator) -> the parts of a head


@dataclass(frozen=True)
class HeadParams:
    """Parameters of every task with heads: ``replicates`` heads share its questions evenly."""

    replicates: Count = 8
    head_tokens: Tokens = 15_000  # wrapped; prompt and answer must fit the smallest context beside them
    max_new_tokens: Count = 32
    seed: Seed = 42


@dataclass
class Head:
    """One replicate: its documents in the order of their sentences, and what is asked of it."""

    overlay_id: str
    documents: list[Document]
    asks: list[Ask]


def joined(parts: Iterable[Part]) -> Part:
    """All sentences of a head, and all that can be asked of it."""
    sentences: list[str] = []
    asks: list[Ask] = []
    for texts, asked in parts:
        asks += [replace(ask, documents=[len(sentences) + place for place in ask.documents]) for ask in asked]
        sentences += texts
    return sentences, asks


def draw_asks(askable: Sequence[Ask], count: int, generator: random.Random) -> list[Ask]:
    """A random choice; questions of one group come one after the other."""
    if not any(ask.group for ask in askable):
        return generator.sample(askable, count)
    groups: dict[str | None, list[Ask]] = defaultdict(list)
    for ask in askable:
        groups[ask.group].append(ask)
    return [ask for group in generator.sample(list(groups.values()), len(groups)) for ask in group][:count]


def make_heads(request: TaskRequest, params: HeadParams, make_head: MakeHead) -> list[Head]:
    """All replicates of a task. Raises UserError: a head has no room for its questions' documents."""
    prose = Prose.read(request.tokenizer, request.prose, wording.EVALUATION)
    ids = random_ids(f"heads/{request.name}", request.tail.id_documents, taken=request.tail.doc_ids.tolist())
    heads = []
    for replicate in range(params.replicates):
        generator = random.Random(f"{params.seed}/{request.name}/head{replicate}")
        count = len(range(replicate, request.questions, params.replicates))
        sentences, askable = joined(make_head(params.head_tokens // request.document_tokens, generator))
        if count > len(askable):
            wrong = f"do not fit a head of {params.head_tokens:,} tokens, which holds {len(askable)}"
            mend = "raise 'replicates' or 'head_tokens', or ask fewer questions"
            raise UserError(f"{request.where}: {count} questions {wrong}; {mend}")
        asks = draw_asks(askable, count, generator)
        start = generator.randrange(len(prose.units))
        texts, _ = prose.carry_each(request.tokenizer, sentences, request.text_tokens, start, generator)
        documents = list(make_documents(request.tokenizer, zip(ids, texts, strict=False)))
        heads.append(Head(f"head{replicate}", documents, asks))
    return heads


def constant_floor(heads: Sequence[Head]) -> tuple[float, str]:
    """What the one answer scores that is right most often."""
    counts = Counter(answer for head in heads for ask in head.asks for answer in set(ask.answers))
    answer, times = counts.most_common(1)[0]
    return times / sum(len(head.asks) for head in heads), f"always answering {answer!r}"


def reserved_tokens(request: TaskRequest, head: Head, prefix: str) -> int:
    """Tokens of a head and its longest prompt."""
    longest = max(count_prompts(request.tokenizer, TEMPLATE, [f" {ask.text} {prefix}" for ask in head.asks]), default=0)
    return sum(document.num_tokens for document in head.documents) + longest


def prepare_heads(
    request: TaskRequest,
    params: HeadParams,
    make_head: MakeHead,
    prefix: str = wording.ANSWER_PREFIX,
    floor: tuple[float, str] | None = NOT_GUESSED,
) -> Iterator[PreparedCell]:
    """The cells of a task with heads: questions in turn over the replicates, the same in every context.

    ``make_head`` gives the sentences of one head and all that can be asked of them; ``prefix`` is what every answer
    continues. ``floor`` is as in tasks.base.PreparedCell; None: what the most frequent answer scores.
    """
    heads = make_heads(request, params, make_head)
    accuracy, way = constant_floor(heads) if floor is None else floor
    reserved = max(reserved_tokens(request, head, prefix) for head in heads) + params.max_new_tokens
    turns = range(max(len(head.asks) for head in heads))
    order = [(head, head.asks[turn]) for turn in turns for head in heads if turn < len(head.asks)]
    overlays = {head.overlay_id: list(head.documents) for head in heads}
    for overlay_id, documents in overlays.items():  # systems meet them in random order
        random.Random(overlay_id).shuffle(documents)
    for context in request.contexts:
        base = request.base_documents(context, reserved)
        cell = PreparedCell(context, base, floor=accuracy, floor_of=way, overlays=overlays)
        for number, (head, ask) in enumerate(order):
            question_id = f"{request.name}-{number:04d}"
            cell.ask(
                Question(question_id, ask.text, prefix, params.max_new_tokens, head.overlay_id),
                ask.answers,
                [head.documents[index].doc_id for index in ask.documents],
                rejected=ask.rejected,
                group=f"{head.overlay_id}/{ask.group}" if ask.group else None,
            )
        yield cell
