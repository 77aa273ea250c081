"""Training data: banks of short documents in the form of every task, and questions on them, of training prose and names only.

::

    python -m tasks.samples --profile tiny --samples short
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tqdm import tqdm

from configs.errors import UserError, run_command
from configs.load import build, check_known
from configs.tables import SCHEMAS, whole_file
from tasks import wording
from tasks.carrier import Prose, Unit, carry
from tasks.chunking import count_tokens, counted, random_ids, wrapper_tokens
from tasks.command import opened, parser
from tasks.vocabulary import read_tokenizer

WEIGHTS = {
    "s1": 0.03,
    "s2": 0.13,
    "s3": 0.10,
    "mk2": 0.11,
    "mk3": 0.08,
    "mv": 0.07,
    "mq": 0.08,
    "facts": 0.24,
    "two_hop": 0.16,
}
DOCUMENTS = {"mv": 4, "mq": 4, "two_hop": 2}  # the most that one more question adds; of other tasks 1
NOISE = " ".join(wording.RULER_NOISE)


@dataclass(frozen=True)
class SampleSpec:
    """One training set of a profile.

    ``weights`` are the shares of the tasks among the questions, by task name; a task left out is not asked.
    """

    bank_tokens: int  # wrapped documents of a bank
    banks: int
    questions: int  # of each bank
    seed: int = 0
    document_tokens: int = 96
    plain_share: float = 0.15  # of a bank's tokens, in documents that carry nothing
    bare_share: float = 0.0  # of the needles, facts and links that stand without prose around them: more of them in a bank
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    tasks_per_bank: int = 0  # tasks that a bank is about, drawn by weight, so that its documents differ in names alone; 0: all
    one_attribute_share: float = 0.0  # of the banks, those whose facts are all about one attribute, likewise


@dataclass(frozen=True)
class Ask:
    """Something that can be asked of a bank: the task, its question (made anew each time), answer and documents by index."""

    task: str
    question: Callable[[], tuple[str, str]]
    answer: str
    chain: tuple[tuple[int, ...], ...]
    notes: tuple[tuple[str, str, int], ...]  # what to write down while reading: key, value and the document that says it


def name_pool(
    generator: random.Random, number: int, split: str, words: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[tuple[str, str]]:
    """Pairs of a split drawn from few words of each list, shuffled, so that siblings share one half."""
    side = max(4, round((3 * number) ** 0.5))
    adjectives, nouns = (generator.sample(part, min(side, len(part))) for part in words)
    pairs = [(a, n) for a in adjectives for n in nouns if wording.pair_split(a, n) == split]
    generator.shuffle(pairs)
    return pairs


def _pop(weights: dict[str, float], generator: random.Random) -> tuple[str, float]:
    """Draw a task by weight and take it out."""
    task = generator.choices(list(weights), list(weights.values()))[0]
    return task, weights.pop(task)


class Bank:
    """One bank in the making: documents (as texts) and what can be asked of them."""

    def __init__(self, spec: SampleSpec, prose: Prose, tokenizer: Tokenizer, wrapper: int, generator: random.Random):
        self.spec, self.prose, self.tokenizer, self.generator = spec, prose, tokenizer, generator
        self.wrapper = wrapper
        self.budget = spec.document_tokens - wrapper
        self.noise: Unit = (NOISE, count_tokens(tokenizer, [NOISE])[0])
        self.texts: list[str] = []
        self.weights = dict(spec.weights)
        if spec.tasks_per_bank:
            left = dict(spec.weights)
            self.weights = dict(_pop(left, generator) for _ in range(min(spec.tasks_per_bank, len(left))))
        self.asks: dict[str, list[Ask]] = {task: [] for task in spec.weights}
        self.single: list[tuple[str, str, int]] = []  # key, number and document of each word-number needle of one value
        self.total = 0  # tokens of the wrapped documents
        expected = spec.bank_tokens // 20
        self.keys = name_pool(generator, expected, wording.TRAIN, wording.ruler_words())
        self.names = name_pool(generator, expected, wording.TRAIN, wording.plain_words())
        attributes = list(wording.ATTRIBUTES)
        self.attributes = generator.sample(attributes, 1) if generator.random() < spec.one_attribute_share else attributes
        self.entity_attributes: dict[str, list[str]] = {}

    def key(self) -> str:
        """A word key not yet used in this bank."""
        return "-".join(self.keys.pop())

    def name(self) -> str:
        """An entity not yet used in this bank."""
        return wording.entity_name(*self.names.pop())

    def value(self) -> str:
        """The value of a fact or chain: 5 or 6 digits."""
        return wording.random_number(self.generator, self.generator.choice((5, 6)))

    def add(self, ours: Sequence[str], form: str = "prose") -> int:
        """Add a document that carries ``ours`` in prose, in noise or alone (form needles); returns its index."""
        units = list(zip(ours, count_tokens(self.tokenizer, ours), strict=True)) if ours else []
        passage: list[Unit] = []
        if form == "prose" and not (ours and self.generator.random() < self.spec.bare_share):
            passage, _ = self.prose.passage(self.generator.randrange(len(self.prose.units)), self.budget)
        elif form == "noise":
            passage = [self.noise] * (self.budget // self.noise[1])
        text, tokens = carry(passage, units, self.budget, self.generator)
        self.texts.append(text)
        self.total += self.wrapper + tokens
        return len(self.texts) - 1

    def needle(self, key: str, kind: str) -> tuple[str, str]:
        """A needle for ``key`` and its value."""
        value = wording.random_uuid(self.generator) if kind == "uuid" else wording.random_number(self.generator)
        return wording.needle(key, value, kind), value

    def ask_needle(self, task: str, key: str, kind: str, value: str, document: int) -> None:
        """Make a needle of one value askable."""
        notes = ((key, value, document),)
        self.asks[task].append(Ask(task, lambda: wording.ruler_question([key], kind, 1), value, ((document,),), notes))

    def add_task(self, task: str) -> None:
        """Add the documents of one more question of a task (of several, where a document holds several needles)."""
        {
            "facts": self._facts,
            "two_hop": self._two_hop,
            "mv": self._values,
            "mk2": self._needles,
            "mq": self._queries,
        }.get(task, self._single)(task)

    def _single(self, task: str) -> None:
        if task == "mk3":
            key = wording.random_uuid(self.generator)
            text, value = self.needle(key, "uuid")
            self.ask_needle(task, key, "uuid", value, self.add([text], "needles"))
            return
        kind, form = "uuid" if task == "s3" else "number", "noise" if task == "s1" else "prose"
        keys = [self.key()]
        if form == "prose" and kind == "number" and self.generator.random() < 0.3:
            keys.append(self.key())  # two depths may fall into one document
        made = [self.needle(key, kind) for key in keys]
        document = self.add([text for text, _ in made], form)
        for key, (_, value) in zip(keys, made, strict=True):
            self.ask_needle(task, key, kind, value, document)
            if kind == "number":
                self.single.append((key, value, document))

    def _needles(self, task: str) -> None:
        keys = [self.key() for _ in range(4)]
        made = [self.needle(key, "number") for key in keys]
        while sum(count_tokens(self.tokenizer, [text for text, _ in made])) > self.budget:
            made.pop()
        document = self.add([text for text, _ in made], "needles")
        for key, (_, value) in zip(keys, made, strict=False):
            self.ask_needle(task, key, "number", value, document)

    def _values(self, task: str) -> None:
        key = self.key()
        made = [self.needle(key, "number") for _ in range(4)]
        documents = tuple(self.add([text]) for text, _ in made)
        answer = wording.listing([value for _, value in made])
        notes = tuple((key, value, document) for (_, value), document in zip(made, documents, strict=True))
        self.asks[task].append(Ask(task, lambda: wording.ruler_question([key], "number", 4), answer, (documents,), notes))

    def _queries(self, task: str) -> None:
        for _ in range(max(1, 4 - len(self.single))):
            self._single("s2")
        for _ in range(4):
            chosen = self.generator.sample(self.single, 4)
            keys, values, documents = ([item[part] for item in chosen] for part in range(3))
            distinct = tuple(dict.fromkeys(documents))
            answer = wording.listing(values)
            self.asks[task].append(
                Ask(task, lambda keys=keys: wording.ruler_question(keys, "number", 1), answer, (distinct,), tuple(chosen))
            )

    def _facts(self, task: str) -> None:
        open_entities = [entity for entity, left in self.entity_attributes.items() if left]
        if not open_entities or self.generator.random() < 0.4:
            entity = self.name()
            self.entity_attributes[entity] = self.generator.sample(self.attributes, len(self.attributes))
        else:
            entity = self.generator.choice(open_entities)
        documents, questions = wording.ATTRIBUTES[self.entity_attributes[entity].pop()]
        value = self.value()
        document = self.add([self.generator.choice(documents).format(entity=entity, value=value)])

        def question() -> tuple[str, str]:
            return self.generator.choice(questions).format(entity=entity), wording.ANSWER_PREFIX

        self.asks[task].append(Ask(task, question, value, ((document,),), ((entity, value, document),)))

    def _two_hop(self, task: str) -> None:
        entity, other, value = self.name(), self.name(), self.value()
        first = self.add([self.generator.choice(wording.LINKS).format(entity=entity, other=other)])
        second = self.add([self.generator.choice(wording.LINK_NUMBERS).format(entity=other, value=value)])

        def question() -> tuple[str, str]:
            return self.generator.choice(wording.LINK_QUESTIONS).format(entity=entity), wording.ANSWER_PREFIX

        notes = ((entity, other, first), (other, value, second))
        self.asks[task].append(Ask(task, question, value, ((first,), (second,)), notes))

    def fill(self) -> None:
        """Add documents until the bank is full: plain ones by ``plain_share``, the rest for tasks drawn by weight."""
        plain = 0
        while (room := (self.spec.bank_tokens - self.total) // self.spec.document_tokens) > 0:
            weights = {task: share for task, share in self.weights.items() if DOCUMENTS.get(task, 1) <= room}
            if not weights or plain < self.spec.plain_share * self.total:
                plain += self.spec.document_tokens
                self.add([], "noise" if self.generator.random() < 0.1 else "prose")
            else:
                self.add_task(self.generator.choices(list(weights), list(weights.values()))[0])

    def questions(self) -> list[tuple[Ask, str, str]]:
        """Questions by weight among the tasks the bank holds, each thing asked once before any is asked again."""
        tasks = [task for task, asks in self.asks.items() if asks and task in self.weights]
        weights = [self.weights[task] for task in tasks]
        waiting: dict[str, list[Ask]] = {task: [] for task in tasks}
        result = []
        for _ in range(self.spec.questions):
            task = self.generator.choices(tasks, weights)[0]
            if not waiting[task]:
                waiting[task] = self.generator.sample(self.asks[task], len(self.asks[task]))
            ask = waiting[task].pop()
            result.append((ask, *ask.question()))
        return result


def _answer(ask: Ask, doc_ids: Sequence[int]) -> tuple[str, list[list[int]]]:
    """The answer and chain under final ids: several values of one key stand in the order of their documents' ids."""
    if ask.task != "mv":
        return ask.answer, [[doc_ids[index] for index in hop] for hop in ask.chain]
    values = ask.answer.replace(", and ", ", ").split(", ")
    order = sorted(zip((doc_ids[index] for index in ask.chain[0]), values, strict=True))
    return wording.listing([value for _, value in order]), [[doc_id for doc_id, _ in order]]


def make_bank(
    bank_id: int, name: str, spec: SampleSpec, prose: Prose, tokenizer: Tokenizer, wrapper: int
) -> tuple[list[tuple[int, str]], list[dict]]:
    """The documents (id, text) of one bank in random order, and its sample rows without sample ids."""
    generator = random.Random(f"samples/{name}/{spec.seed}/{bank_id}")
    bank = Bank(spec, prose, tokenizer, wrapper, generator)
    bank.fill()
    ids = random_ids(f"samples/{name}/{spec.seed}/{bank_id}", len(bank.texts))
    doc_ids = [next(ids) for _ in bank.texts]
    rows = []
    for ask, question, prefix in bank.questions():
        answer, chain = _answer(ask, doc_ids)
        rows.append(
            {
                "bank_id": bank_id,
                "task": ask.task,
                "question": question,
                "answer_prefix": prefix,
                "answer": answer,
                "chain": chain,
                "notes": [{"key": key, "value": value, "doc_id": doc_ids[index]} for key, value, index in ask.notes],
            }
        )
    documents = list(zip(doc_ids, bank.texts, strict=True))
    generator.shuffle(documents)
    return documents, rows


def main() -> None:
    """Write banks.parquet and samples.parquet of one training set."""
    options = parser(__doc__)
    options.add_argument("--samples", required=True, help="an entry of the profile's samples, such as short")
    arguments = options.parse_args()
    experiment, paths, where = opened(arguments)
    entries = experiment.profile.samples
    check_known([arguments.samples], entries, "--samples", where)
    where = f"{where}: samples"
    tokenizer = read_tokenizer(paths.tokenizer)
    if "set" in entries[arguments.samples]:
        from tasks.qa import samples as real

        where = f"{where}: {arguments.samples}"
        print(real.write(entries[arguments.samples], where, tokenizer, experiment.profile.data, paths.samples(arguments.samples)))
        return
    spec: SampleSpec = build(SampleSpec, entries[arguments.samples], f"{where}: {arguments.samples}")
    check(spec, f"{where}: {arguments.samples}")
    prose = Prose.read(tokenizer, paths.prose, wording.TRAIN)
    wrapper = wrapper_tokens(tokenizer)
    pairs: list[tuple[int, str]] = []
    sizes: list[int] = []
    samples: list[dict] = []
    for bank_id in tqdm(range(spec.banks), desc=f"banks of {arguments.samples}", mininterval=1, file=sys.stderr):
        documents, rows = make_bank(bank_id, arguments.samples, spec, prose, tokenizer, wrapper)
        pairs += documents
        sizes.append(len(documents))
        samples += [{"sample_id": len(samples) + index, **row} for index, row in enumerate(rows)]
    bank_ids = (bank_id for bank_id, size in enumerate(sizes) for _ in range(size))
    banks = [
        {"bank_id": bank_id, "doc_id": document.doc_id, "text": document.text, "num_tokens": document.num_tokens}
        for bank_id, document in zip(bank_ids, counted(tokenizer, pairs), strict=True)
    ]
    directory = paths.samples(arguments.samples)
    for name, rows in (("banks", banks), ("samples", samples)):
        with whole_file(directory / f"{name}.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), temporary, compression="zstd")
    total = sum(row["num_tokens"] for row in banks)
    print(f"{directory}: {spec.banks:,} banks, {len(banks):,} documents, {total:,} tokens, {len(samples):,} questions")


def check(spec: SampleSpec, where: str) -> None:
    """Raise UserError for parameters that no bank can meet."""
    for task in spec.weights:
        if task not in WEIGHTS:
            raise UserError(f"{where}: key 'weights': unknown task '{task}' (known: {', '.join(WEIGHTS)})")
    if not spec.weights or min(spec.weights.values()) <= 0:
        raise UserError(f"{where}: key 'weights' needs tasks, each with a positive share; leave out those not wanted")
    if spec.document_tokens < 80:
        raise UserError(f"{where}: key 'document_tokens' must be 80 or more, so that a UUID needle fits")
    if spec.bank_tokens < 8 * spec.document_tokens:
        raise UserError(f"{where}: key 'bank_tokens' must be 8 documents ({8 * spec.document_tokens}) or more")


if __name__ == "__main__":
    run_command(main)
