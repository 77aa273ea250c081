"""Training data: banks of short documents in the form of every task, and questions on them.

Prose and names are those of training; nothing that is evaluated is among them.

    python -m tasks.stages.samples --profile tiny --samples short
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field
from tokenizers import Tokenizer
from tqdm import tqdm

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.load import Experiment
from msa_base.paths import SEAL, Paths
from msa_base.seal import Seal, write_seal
from msa_base.stages import Stages, state
from msa_base.tables import write_table
from msa_base.validate import MANY, Count, Positive, Seed, Share, Tokens, Whole, build, check_known
from tasks.parts import wording
from tasks.parts.chunking import count_tokens, make_documents, random_ids, wrapper_tokens
from tasks.parts.prose import Prose, Unit, carry
from tasks.stages.sources import SPLITS
from tasks.stages.vocabulary import read_tokenizer

SampleTask = Literal["s1", "s2", "s3", "mk2", "mk3", "mv", "mq", "facts", "two_hop"]
WEIGHTS: dict[SampleTask, float] = dict(
    s1=0.03, s2=0.13, s3=0.10, mk2=0.11, mk3=0.08, mv=0.07, mq=0.08, facts=0.24, two_hop=0.16
)
DOCUMENTS = {"mv": 4, "mq": 4, "two_hop": 2}  # the most that one more question adds; of other tasks 1
Weights = Annotated[dict[SampleTask, Positive], Field(min_length=1)]
Chain = tuple[tuple[int, ...], ...]
Notes = tuple[tuple[str, str, int], ...]
NOISE = " ".join(wording.RULER_NOISE)


@dataclass(frozen=True)
class SampleSpec:
    """One training set of a profile."""

    bank_tokens: Tokens  # wrapped documents of a bank
    banks: Count
    questions: Count  # of each bank
    seed: Seed = 0
    document_tokens: Annotated[int, Field(ge=80, le=MANY)] = 96  # a UUID needle fits
    plain_share: Share = 0.15  # of a bank's tokens, in documents that carry nothing
    bare_share: Share = 0.0  # of the needles, facts and links, those without prose around them: more fit a bank
    weights: Weights = field(default_factory=WEIGHTS.copy)  # of the tasks among the questions; others are not asked
    tasks_per_bank: Whole = 0  # drawn by weight, so that a bank's documents differ in names alone; 0: all
    one_attribute_share: Share = 0.0  # of the banks, those whose facts are all about one attribute, likewise
    keyed_answers: bool = False  # answers to needles say `key is:` before the value; `is:` alone of a UUID


@dataclass(frozen=True)
class BankQuestion:
    """What can be asked of a bank: task, question (made anew each time), answer and documents by index."""

    task: str
    question: Callable[[], tuple[str, str]]
    answer: str
    chain: Chain
    notes: Notes  # to write down while reading: key, value, the document that says it


def name_pool(
    generator: random.Random, number: int, words: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[tuple[str, str]]:
    """Pairs of training drawn from few words of each list, shuffled, so that siblings share one half."""
    side = max(4, round((3 * number) ** 0.5))
    adjectives, nouns = (generator.sample(part, min(side, len(part))) for part in words)
    pairs = [(a, n) for a in adjectives for n in nouns if wording.pair_role(a, n) == wording.TRAIN]
    generator.shuffle(pairs)
    return pairs


class BankDraft:
    """One bank in the making: documents (as texts) and what can be asked of them."""

    def __init__(self, spec: SampleSpec, prose: Prose, tokenizer: Tokenizer, wrapper: int, generator: random.Random):
        self.spec, self.prose, self.tokenizer, self.generator = spec, prose, tokenizer, generator
        self.wrapper = wrapper
        self.budget = spec.document_tokens - wrapper
        self.noise: Unit = (NOISE, count_tokens(tokenizer, [NOISE])[0])
        self.texts: list[str] = []
        self.weights = dict(spec.weights)
        if spec.tasks_per_bank:
            self.weights, left = {}, dict(spec.weights)
            while left and len(self.weights) < spec.tasks_per_bank:
                (task,) = generator.choices(list(left), list(left.values()))
                self.weights[task] = left.pop(task)
        self.asks: dict[str, list[BankQuestion]] = {task: [] for task in spec.weights}
        self.single: list[tuple[str, str, int]] = []  # key, number and document of each word-number needle of one value
        self.total = 0  # tokens of the wrapped documents
        expected = spec.bank_tokens // 20
        self.keys = name_pool(generator, expected, wording.ruler_words())
        self.names = name_pool(generator, expected, wording.plain_words())
        attributes = list(wording.ATTRIBUTES)
        one = generator.random() < spec.one_attribute_share
        self.attributes = generator.sample(attributes, 1) if one else attributes
        self.entity_attributes: dict[str, list[str]] = {}

    def key(self) -> str:
        return "-".join(self.keys.pop())

    def name(self) -> str:
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

    def ask_needles(self, task: str, kind: str, needles: Sequence[tuple[str, str, int]]) -> None:
        """Make needles (key, value, document) askable together: all values of one key, or one value of each key."""
        of_key: dict[str, list[str]] = {}
        for key, value, _ in needles:
            of_key.setdefault(key, []).append(value)
        keys, documents = list(of_key), dict.fromkeys(document for _, _, document in needles)
        self.asks[task].append(
            BankQuestion(
                task,
                lambda: wording.ruler_question(keys, kind, len(needles) // len(keys)),
                self.needle_answer(task, of_key),
                (tuple(documents),),
                tuple(needles),
            )
        )

    def needle_answer(self, task: str, of_key: Mapping[str, Sequence[str]]) -> str:
        """Values, behind their keys where that is asked for: as needles say it, so that the key leads to the value.

        RULER counts values wherever they stand. A key that is a UUID is left out, since it is as long as its value.
        """
        if not self.spec.keyed_answers:
            return wording.listing([value for values in of_key.values() for value in values])
        said = {key: "is: " + wording.listing(values) for key, values in of_key.items()}
        return wording.listing([text if task == "mk3" else f"{key} {text}" for key, text in said.items()])

    def ask_entity(self, task: str, questions: Sequence[str], entity: str, chain: Chain, notes: Notes) -> None:
        """Make the last note's value askable, in one of several wordings on an entity."""

        def question() -> tuple[str, str]:
            return self.generator.choice(questions).format(entity=entity), wording.ANSWER_PREFIX

        self.asks[task].append(BankQuestion(task, question, notes[-1][1], chain, notes))

    def _single(self, task: str) -> None:
        if task == "mk3":
            key = wording.random_uuid(self.generator)
            text, value = self.needle(key, "uuid")
            self.ask_needles(task, "uuid", [(key, value, self.add([text], "needles"))])
            return
        kind, form = "uuid" if task == "s3" else "number", "noise" if task == "s1" else "prose"
        keys = [self.key()]
        if form == "prose" and kind == "number" and self.generator.random() < 0.3:
            keys.append(self.key())  # two depths may fall into one document
        made = [self.needle(key, kind) for key in keys]
        document = self.add([text for text, _ in made], form)
        for key, (_, value) in zip(keys, made, strict=True):
            self.ask_needles(task, kind, [(key, value, document)])
            if kind == "number":
                self.single.append((key, value, document))

    def _needles(self, task: str) -> None:
        keys = [self.key() for _ in range(4)]
        made = [self.needle(key, "number") for key in keys]
        while sum(count_tokens(self.tokenizer, [text for text, _ in made])) > self.budget:
            made.pop()
        document = self.add([text for text, _ in made], "needles")
        for key, (_, value) in zip(keys, made, strict=False):
            self.ask_needles(task, "number", [(key, value, document)])

    def _values(self, task: str) -> None:
        key = self.key()
        made = [self.needle(key, "number") for _ in range(4)]
        self.ask_needles(task, "number", [(key, value, self.add([text])) for text, value in made])

    def _queries(self, task: str) -> None:
        for _ in range(max(1, 4 - len(self.single))):
            self._single("s2")
        for _ in range(4):
            self.ask_needles(task, "number", self.generator.sample(self.single, 4))

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
        self.ask_entity(task, questions, entity, ((document,),), ((entity, value, document),))

    def _two_hop(self, task: str) -> None:
        entity, other, value = self.name(), self.name(), self.value()
        first = self.add([self.generator.choice(wording.LINKS).format(entity=entity, other=other)])
        second = self.add([self.generator.choice(wording.LINK_NUMBERS).format(entity=other, value=value)])
        notes = ((entity, other, first), (other, value, second))
        self.ask_entity(task, wording.LINK_QUESTIONS, entity, ((first,), (second,)), notes)

    def fill(self) -> None:
        """Add documents until the bank is full: plain ones by ``plain_share``, the rest for tasks drawn by weight."""
        makers = {"facts": self._facts, "two_hop": self._two_hop, "mv": self._values, "mk2": self._needles}
        makers["mq"] = self._queries  # each adds the documents of a question, or of several
        plain = 0
        while (room := (self.spec.bank_tokens - self.total) // self.spec.document_tokens) > 0:
            weights = {task: share for task, share in self.weights.items() if DOCUMENTS.get(task, 1) <= room}
            if not weights or plain < self.spec.plain_share * self.total:
                plain += self.spec.document_tokens
                self.add([], "noise" if self.generator.random() < 0.1 else "prose")
            else:
                (task,) = self.generator.choices(list(weights), list(weights.values()))
                makers.get(task, self._single)(task)

    def questions(self) -> list[tuple[BankQuestion, str, str]]:
        """Questions by weight among the tasks the bank holds, each thing asked once before any is asked again."""
        tasks = [task for task, asks in self.asks.items() if asks and task in self.weights]
        weights = [self.weights[task] for task in tasks]
        waiting: dict[str, list[BankQuestion]] = {task: [] for task in tasks}
        result = []
        for _ in range(self.spec.questions):
            task = self.generator.choices(tasks, weights)[0]
            if not waiting[task]:
                waiting[task] = self.generator.sample(self.asks[task], len(self.asks[task]))
            ask = waiting[task].pop()
            result.append((ask, *ask.question()))
        return result


def _answer(bank: BankDraft, ask: BankQuestion, doc_ids: Sequence[int]) -> tuple[str, list[list[int]]]:
    """The answer and chain under final ids: several values of one key stand in the order of their documents' ids."""
    if ask.task != "mv":
        return ask.answer, [[doc_ids[index] for index in hop] for hop in ask.chain]
    order = sorted((doc_ids[index], key, value) for key, value, index in ask.notes)
    values = [value for _, _, value in order]
    return bank.needle_answer(ask.task, {order[0][1]: values}), [[doc_id for doc_id, _, _ in order]]


def make_bank(
    bank_id: int, name: str, spec: SampleSpec, prose: Prose, tokenizer: Tokenizer, wrapper: int
) -> tuple[list[tuple[int, str]], list[dict]]:
    """The documents (id, text) of one bank in random order, and its sample rows without sample ids."""
    generator = random.Random(f"samples/{name}/{spec.seed}/{bank_id}")
    bank = BankDraft(spec, prose, tokenizer, wrapper, generator)
    bank.fill()
    doc_ids = list(islice(random_ids(f"samples/{name}/{spec.seed}/{bank_id}", len(bank.texts)), len(bank.texts)))
    rows = []
    for ask, question, prefix in bank.questions():
        answer, chain = _answer(bank, ask, doc_ids)
        notes = [{"key": key, "value": value, "doc_id": doc_ids[index]} for key, value, index in ask.notes]
        asked = {"bank_id": bank_id, "task": ask.task, "question": question, "answer_prefix": prefix}
        rows.append({**asked, "answer": answer, "chain": chain, "notes": notes})
    documents = list(zip(doc_ids, bank.texts, strict=True))
    generator.shuffle(documents)
    return documents, rows


def main() -> None:
    arguments = experiment_parser(__doc__, samples="an entry of the profile's samples, such as short").parse_args()
    experiment, paths = open_experiment(arguments)
    name, entries = arguments.samples, experiment.profile.samples
    check_known([name], entries, "--samples", experiment.file)
    stages, prose = Stages(experiment), [paths.prose / f"{split}.parquet" for split in SPLITS]
    made_from = stages.samples(name).of(paths.root, paths.tokenizer, *prose, data=state(stages.data(entries[name])))
    seal = paths.samples(name) / SEAL
    if not Seal.current(seal, made_from):
        print(write_samples(experiment, paths, name, f"{experiment.file}: samples: {name}"))
        write_seal(seal, made_from, ["banks.parquet", "samples.parquet"])


def write_samples(experiment: Experiment, paths: Paths, name: str, where: str) -> str:
    """Write banks and samples of one training set; returns a line for the log."""
    entry, tokenizer = experiment.profile.samples[name], read_tokenizer(paths.tokenizer)
    if "set" in entry:
        from tasks.qa import samples as real

        return real.write(entry, where, tokenizer, experiment.profile.data, paths.samples(name))
    spec = sample_spec(entry, where)
    prose = Prose.read(tokenizer, paths.prose, wording.TRAIN)
    wrapper = wrapper_tokens(tokenizer)
    banks, samples = [], []
    for bank_id in tqdm(range(spec.banks), desc=f"banks of {name}", mininterval=1, file=sys.stderr):
        documents, rows = make_bank(bank_id, name, spec, prose, tokenizer, wrapper)
        banks += [{"bank_id": bank_id, **vars(item)} for item in make_documents(tokenizer, documents)]
        samples += [{"sample_id": len(samples) + index, **row} for index, row in enumerate(rows)]
    directory = paths.samples(name)
    write_table("banks", banks, directory / "banks.parquet")
    write_table("samples", samples, directory / "samples.parquet")
    made = f"{len(banks):,} documents, {sum(row['num_tokens'] for row in banks):,} tokens"
    return f"{directory}: {spec.banks:,} banks, {made}, {len(samples):,} questions"


def sample_spec(parameters: dict[str, Any], where: str) -> SampleSpec:
    """A checked entry of a profile's samples. Raises UserError: a bad parameter, or a bank of too few documents."""
    spec: SampleSpec = build(SampleSpec, parameters, where)
    if spec.bank_tokens < 8 * spec.document_tokens:
        raise UserError(f"{where}: key 'bank_tokens' must be 8 documents ({8 * spec.document_tokens}) or more")
    return spec


if __name__ == "__main__":
    run_command(main)
