"""Single-hop facts about many entities, carried by real prose: the same head of questions over a growing tail.

Every document is a passage of prose with one sentence of ours: an attribute of an entity. Heads hold the asked facts,
the other attributes of the same entities and entities that share one half of the name; the tail holds the same form
about other entities, so every document of a corpus is distinct at any size.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tokenizers import Tokenizer

from configs import prompts
from configs.errors import UserError
from configs.load import build
from configs.records import Document, Question
from tasks import wording
from tasks.base import DOCUMENT_TOKENS, Cell, CorpusRequest, Gold, TaskRequest, base_documents
from tasks.carrier import Prose, carry
from tasks.chunking import count_tokens, counted, random_ids, text_budget

GROUP = 64  # tail entities whose documents are shuffled together
Spec = TypeVar("Spec", bound="HeadSpec")


@dataclass(frozen=True)
class Ask:
    """A question on a head: text, right answers and its documents by index; ``rejected`` and ``group`` as in tasks.base.Gold."""

    text: str
    answers: list[str]
    documents: list[int]
    rejected: list[str] = field(default_factory=list)
    group: str | None = None


@dataclass(frozen=True)
class TailSpec:
    """Parameters of a tail: entities are named from a fixed pool of adjectives and nouns."""

    document_tokens: int = DOCUMENT_TOKENS
    adjectives: int = 500
    nouns: int = 2500
    seed: int = 42


@dataclass(frozen=True)
class HeadSpec:
    """Parameters of a task: ``replicates`` heads share its questions evenly."""

    replicates: int = 8
    head_tokens: int = 15_000  # of wrapped documents; prompt and answer must fit the smallest context beside them
    max_new_tokens: int = 32
    seed: int = 42


def pools(spec: TailSpec) -> tuple[list[str], list[str]]:
    """The words that name tail entities: evenly spaced through the sorted lists."""
    chosen = []
    for words, number in zip(wording.plain_words(), (spec.adjectives, spec.nouns), strict=True):
        number = min(number, len(words))
        chosen.append([words[index * len(words) // number] for index in range(number)])
    return chosen[0], chosen[1]


def tail_names(spec: TailSpec, generator: random.Random, where: str) -> Iterator[str]:
    """Entities of the tails, each once.

    Raises:
        UserError: the pool is used up.
    """
    adjectives, nouns = pools(spec)
    used: set[tuple[str, str]] = set()
    missed = 0
    while missed < 1000:
        pair = generator.choice(adjectives), generator.choice(nouns)
        if pair in used or wording.pair_role(*pair) != wording.TAIL:
            missed += 1
            continue
        missed = 0
        used.add(pair)
        yield wording.entity_name(*pair)
    raise UserError(f"{where}: {len(used):,} entities used up every name; raise 'adjectives' or 'nouns'")


def head_names(generator: random.Random, number: int) -> list[str]:
    """Entities of one head, drawn from few words so that siblings share one half of the name."""
    side = max(4, round((5 * number) ** 0.5))
    adjectives, nouns = (generator.sample(words, side) for words in wording.plain_words())
    pairs = [(a, n) for a in adjectives for n in nouns if wording.pair_role(a, n) == wording.ASKED]
    if len(pairs) < number:
        return head_names(generator, number)
    return [wording.entity_name(*pair) for pair in generator.sample(pairs, number)]


def draw_value(generator: random.Random, used: set[str]) -> str:
    """A number of 5 or 6 digits that this head or tail has not used."""
    while True:
        value = wording.random_number(generator, generator.choice((5, 6)))
        if value not in used:
            return value


def fact_sentences(entity: str, values: Sequence[str], generator: random.Random) -> list[str]:
    """One sentence for each attribute of an entity."""
    return [
        generator.choice(documents).format(entity=entity, value=value)
        for (documents, _), value in zip(wording.ATTRIBUTES.values(), values, strict=True)
    ]


def carried(
    tokenizer: Tokenizer,
    prose: Prose,
    sentences: Sequence[str],
    budget_tokens: int,
    start: int,
    generator: random.Random,
) -> tuple[list[str], int]:
    """A document's text for each sentence, over consecutive passages from ``start``; and where the prose goes on."""
    texts = []
    for sentence, tokens in zip(sentences, count_tokens(tokenizer, sentences), strict=True):
        passage, start = prose.passage(start, budget_tokens - tokens)
        texts.append(carry(passage, [(sentence, tokens)], budget_tokens, generator)[0])
    return texts, start


def stream(request: CorpusRequest, spec: TailSpec, groups: Iterator[list[str]]) -> Iterator[Document]:
    """Documents that carry the sentences of ``groups`` until the tokens asked for are filled."""
    generator = random.Random(f"{spec.seed}/{request.name}/carrier")
    expected = 2 * request.num_tokens // spec.document_tokens
    budget = text_budget(request.tokenizer, spec.document_tokens, expected, request.where)
    prose = Prose.read(request.tokenizer, request.prose, wording.EVALUATION)

    def texts() -> Iterator[str]:
        start = 0
        for sentences in groups:
            group, start = carried(request.tokenizer, prose, sentences, budget, start, generator)
            yield from group

    total = 0
    for document in counted(request.tokenizer, zip(random_ids(request.name, expected), texts(), strict=False)):
        yield document
        total += document.num_tokens
        if total >= request.num_tokens:
            return


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream facts about the tail's entities (tasks.base.CorpusModule)."""
    spec: TailSpec = build(TailSpec, dict(request.params), request.where)
    generator = random.Random(f"{spec.seed}/{request.name}/facts")
    names = tail_names(spec, generator, request.where)

    def groups() -> Iterator[list[str]]:
        while True:
            sentences: list[str] = []
            for _ in range(GROUP):
                values = [draw_value(generator, set()) for _ in wording.ATTRIBUTES]
                sentences += fact_sentences(next(names), values, generator)
            generator.shuffle(sentences)
            yield sentences

    yield from stream(request, spec, groups())


@dataclass
class Head:
    """One replicate: its documents in file order, and what is asked of it."""

    overlay_id: str
    documents: list[Document]
    asks: list[Ask]


def fact_head(limit: int, generator: random.Random) -> tuple[list[str], list[Ask]]:
    """At most ``limit`` fact sentences about entities of one head, and a question on each."""
    used: set[str] = set()
    sentences: list[str] = []
    asks = []
    for entity in head_names(generator, limit // len(wording.ATTRIBUTES)):
        values = []
        for _, questions in wording.ATTRIBUTES.values():
            values.append(draw_value(generator, used))
            used.add(values[-1])
            index = len(sentences) + len(values) - 1
            asks.append(Ask(generator.choice(questions).format(entity=entity), [values[-1]], [index]))
        sentences += fact_sentences(entity, values, generator)
    return sentences, asks


def draw_asks(askable: Sequence[Ask], count: int, generator: random.Random) -> list[Ask]:
    """A random choice; questions of one group come one after the other."""
    if not any(ask.group for ask in askable):
        return generator.sample(askable, count)
    groups: dict[str | None, list[Ask]] = {}
    for ask in askable:
        groups.setdefault(ask.group, []).append(ask)
    return [ask for group in generator.sample(list(groups.values()), len(groups)) for ask in group][:count]


def make_heads(
    request: TaskRequest, spec: HeadSpec, make_facts: Callable[[int, random.Random], tuple[list[str], list[Ask]]]
) -> list[Head]:
    """All replicates of a task.

    Args:
        request: what is to be prepared.
        spec: replicates and their size.
        make_facts: from (most documents, generator) to the sentences of one head and all that can be asked of it.

    Raises:
        UserError: a head has no room for its questions' documents.
    """
    prose = Prose.read(request.tokenizer, request.prose, wording.EVALUATION)
    ids = random_ids(f"heads/{request.name}", request.tail.id_documents, taken=request.tail.doc_ids.tolist())
    heads = []
    for replicate in range(spec.replicates):
        generator = random.Random(f"{spec.seed}/{request.name}/head{replicate}")
        count = len(range(replicate, request.questions, spec.replicates))
        sentences, askable = make_facts(spec.head_tokens // request.document_tokens, generator)
        if count > len(askable):
            raise UserError(
                f"{request.where}: {count} questions do not fit a head of {spec.head_tokens:,} tokens, which holds"
                f" {len(askable)}; raise 'replicates' or 'head_tokens', or ask fewer questions"
            )
        asks = draw_asks(askable, count, generator)
        start = generator.randrange(len(prose.units))
        texts, _ = carried(request.tokenizer, prose, sentences, request.text_tokens, start, generator)
        documents = list(counted(request.tokenizer, zip(ids, texts, strict=False)))
        heads.append(Head(f"head{replicate}", documents, asks))
    return heads


def constant_floor(heads: Sequence[Head]) -> tuple[float, str]:
    """What the one answer scores that is right most often."""
    counts = Counter(answer for head in heads for ask in head.asks for answer in set(ask.answers))
    answer, times = counts.most_common(1)[0]
    return times / sum(len(head.asks) for head in heads), f"always answering {answer!r}"


def prepare_heads(
    request: TaskRequest,
    spec: HeadSpec,
    heads: Sequence[Head],
    prefix: str = wording.ANSWER_PREFIX,
    floor: tuple[float, str] = (0.0, ""),
) -> Iterator[Cell]:
    """The cells of a task with heads: questions in turn over the replicates, the same in every context.

    Args:
        request: what is to be prepared.
        spec: the answer's budget.
        heads: the replicates.
        prefix: text that every answer continues.
        floor: as in tasks.base.Cell.
    """
    reserved = 0
    template = prompts.TEMPLATE_HEAD + prompts.OBJECT_REF_END + prompts.END_OF_RETRIEVE + prompts.REPEAT_QUESTION + prompts.GIVE_ANSWER
    for head in heads:
        questions = [f"{template} {ask.text} {prefix}" for ask in head.asks]
        longest = max(count_tokens(request.tokenizer, questions), default=0)
        size = sum(document.num_tokens for document in head.documents)
        reserved = max(reserved, size + longest + spec.max_new_tokens)
    order = [
        (turn, head) for turn in range(max(len(head.asks) for head in heads)) for head in heads if turn < len(head.asks)
    ]
    for context in request.contexts:
        cell = Cell(context, base_documents(request, context, reserved), floor=floor[0], floor_of=floor[1])
        for number, (turn, head) in enumerate(order):
            ask = head.asks[turn]
            question_id = f"{request.name}-{number:04d}"
            cell.questions.append(Question(question_id, ask.text, prefix, spec.max_new_tokens, head.overlay_id))
            doc_ids = [head.documents[index].doc_id for index in ask.documents]
            group = f"{head.overlay_id}/{ask.group}" if ask.group else None
            cell.gold.append(Gold(question_id, ask.answers, doc_ids, rejected=ask.rejected, group=group))
        cell.overlays = {head.overlay_id: _shuffled(head) for head in heads}
        yield cell


def _shuffled(head: Head) -> list[Document]:
    documents = list(head.documents)
    random.Random(head.overlay_id).shuffle(documents)
    return documents


def checked_heads(request: TaskRequest, cls: type[Spec] = HeadSpec, **least: int) -> Spec:
    """The task's parameters, checked; ``least`` names the smallest value of further keys."""
    spec: Spec = build(cls, dict(request.params), request.where)
    for key, smallest in {"replicates": 1, **least}.items():
        if getattr(spec, key) < smallest:
            raise UserError(f"{request.where}: key '{key}' must be {smallest} or more, found {getattr(spec, key)}")
    return spec


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of the scaling task (tasks.base.TaskModule)."""
    spec = checked_heads(request)
    yield from prepare_heads(request, spec, make_heads(request, spec, fact_head))
