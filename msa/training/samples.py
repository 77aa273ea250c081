"""Training batches: banks shared by many questions, chains cut into single-step samples (paper section 3.4).

Shape legend: N documents of a bank, L padded document length, Q rows, M padded row length.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from msa.model.losses import IGNORE
from msa.model.prompt import Prompter, Row, own_positions, pad_rows
from msa.training.traces import Note, disjoint, draw_step, memory_text
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.tables import read_arrow
from msa_base.validate import Count, Share, Text, Weight


@dataclass(frozen=True)
class Phase:
    """One phase of a training; ``objective`` names an entry of :data:`msa.training.objectives.OBJECTIVES`.

    The loss is ``lm_weight`` x L_LM + ``aux_weight`` x L_aux, where answers may have an ``answer_weight`` of their own
    in place of ``lm_weight``. ``answer_share`` of the memory rows are answers, the others retrieval rounds, or a memory
    agent's sections (``answer_shares``: of some tasks, by name, as some are hard to find and others hard to read).
    ``routing_dropout`` leaves a share of a question's tokens out of its routing: a document's score is that of its best
    pair of token and chunk, and a token that all documents of a kind match would win every pair and leave names
    untaught. ``memory_dropout`` is the share of answers that are read from fetched text alone.
    ``documents`` bounds the documents of a reading row or a section, ``questions`` is how many questions follow them
    (at most, of a section), ``tokens`` the length of a copied sequence or of a list to recall from.
    ``tokens_at_once`` bounds the padded tokens whose activations are held: rows come in smaller groups, a larger bank
    in pieces that are encoded twice. Gradients stay the same.
    """

    name: Text
    objective: Text
    samples: Text
    steps: Count
    rows: Count
    lm_weight: Weight = 1.0
    aux_weight: Weight = 0.1
    answer_weight: Weight | None = None
    answer_share: Share = 0.5
    answer_shares: dict[str, Share] = field(default_factory=dict)
    routing_dropout: Share = 0.0
    memory_dropout: Share = 0.0
    documents: Annotated[list[Count], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [1, 4])
    questions: Count = 1
    tokens: Count = 32
    tokens_at_once: Count | None = None


@dataclass
class Group:
    """Rows of similar length, so that little of a step is padding.

    ids, targets, routing, reads: [Q, M]; positions [M]; ``tokens``: real ones; positives, countable: [Q, N] documents
    to route to, and documents that count in the auxiliary loss.
    """

    ids: Tensor
    targets: Tensor
    routing: Tensor
    positions: Tensor
    reads: Tensor
    tokens: int
    positives: Tensor | None = None
    countable: Tensor | None = None
    vocabulary: Tensor | None = None  # the only tokens that can be targets, where that is known


@dataclass
class Batch:
    """Rows of one step, and the bank [N, L] with its lengths [N] that they are routed over (None for plain reading)."""

    groups: list[Group]
    documents: Tensor | None = None
    lengths: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Real tokens of the step, rows and bank."""
        return sum(group.tokens for group in self.groups) + (int(self.lengths.sum()) if self.lengths is not None else 0)

    @property
    def targets(self) -> int:
        """Target tokens of the step."""
        return sum(int((group.targets != IGNORE).sum()) for group in self.groups)


FREQUENT_TOKENS = 512
FRAME_TOKENS = 7  # fewer tokens than this stand before a key, and between it and its value
GROUP_TOKENS = 4096  # about what keeps a group's activations in a core's cache
# Shapes that recur: oneDNN makes a kernel for each new one, which takes a quarter of a step and is kept in memory.
GROUP_ROWS, WIDTH = 4, 32


class TrainingSet:
    """One sample set in memory, from banks.parquet and samples.parquet: its banks' documents and their questions.

    ``top_k`` is the model's k, which shifts the question's positions.

    Raises:
        UserError: a file is missing or corrupt, or a sample names a document that its bank lacks.
    """

    def __init__(self, directory: Path | str, prompter: Prompter, top_k: int):
        directory = Path(directory)
        self.prompter, self.top_k = prompter, top_k
        self.banks: dict[int, list[Document]] = defaultdict(list)
        for row in read_arrow("banks", directory / "banks.parquet").to_pylist():
            self.banks[row.pop("bank_id")].append(Document(**row))
        self.samples: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in read_arrow("samples", directory / "samples.parquet").to_pylist():
            self.samples[row["bank_id"]].append(row)
        for bank, samples in self.samples.items():
            known = {document.doc_id for document in self.banks[bank]}
            for sample in samples:
                if lost := [doc_id for group in sample["chain"] for doc_id in group if doc_id not in known]:
                    where = f"{directory / 'samples.parquet'}: sample {sample['sample_id']}"
                    fault = f"names document {lost[0]}, which bank {bank} of banks.parquet lacks"
                    raise UserError(f"{where} {fault}; make both again")
        self.order = sorted(self.samples)

    def bank(self, step: int, rng: np.random.Generator, max_id: int) -> tuple[list[Document], dict[int, Document]]:
        """The bank of a step with fresh document ids, and the map from stored id to renumbered document.

        Fresh ids keep the model from learning the ids of a bank that it meets again.
        """
        bank = self.banks[self.order[step % len(self.order)]]
        ids = rng.choice(max_id - max_id // 10, len(bank), replace=False) + max_id // 10
        renamed = {old.doc_id: Document(int(new), old.text, old.num_tokens) for old, new in zip(bank, ids, strict=True)}
        return list(renamed.values()), renamed

    # A batch is made of its number, a seed and the phase; document ids lie below ``max_id``.

    def memory_batch(self, step: int, seed: int, phase: Phase, max_id: int) -> Batch:
        """Single-step samples over one bank: each row is one retrieval round or the answer of its question.

        Of every row at least one token takes part in routing; an answer under memory dropout reads the fetched text
        alone, as a plain reader does.
        """
        rng = np.random.default_rng([seed, step, 1])
        documents, renamed = self.bank(step, rng, max_id)
        index = {document.doc_id: number for number, document in enumerate(documents)}
        samples = self._draw(step, rng, phase.rows)
        built: list[Row] = []
        reads = torch.ones(len(samples), 1, dtype=torch.bool)
        positives = torch.zeros(len(samples), len(documents), dtype=torch.bool)
        countable = torch.ones_like(positives)
        for number, sample in enumerate(samples):
            chain = [[renamed[doc_id] for doc_id in group] for group in sample["chain"]]
            share = phase.answer_shares.get(sample["task"], phase.answer_share)
            last = len(chain) if rng.random() < share else int(rng.integers(len(chain)))
            built.append(self._single_step(sample, chain, last))
            for group in chain[:last]:
                countable[number, [index[document.doc_id] for document in group]] = False
            if last < len(chain):
                positives[number, [index[document.doc_id] for document in chain[last]]] = True
            elif phase.memory_dropout:
                reads[number] = bool(rng.random() >= phase.memory_dropout)
            _drop_routing(built[-1], phase.routing_dropout, rng)
        wrapped = self.prompter.documents(documents)
        lengths = torch.tensor([len(tokens) for tokens in wrapped])
        groups = []
        for chosen in _by_length(built, phase.tokens_at_once):
            groups.append(group := self._collate([built[number] for number in chosen], self.top_k))
            group.positives, group.countable = positives[chosen], countable[chosen]
            group.reads = group.reads & reads[chosen]
        return Batch(groups, pad_rows(wrapped, self.prompter.pad, WIDTH), lengths)

    def rounds_batch(self, step: int, seed: int, phase: Phase, max_id: int) -> Batch:
        """Retrieval rounds alone: a bi-encoder answers nothing."""
        return self.memory_batch(step, seed, replace(phase, answer_share=0.0, answer_shares={}), max_id)

    def _single_step(self, sample: dict[str, Any], chain: list[list[Document]], last: int) -> Row:
        """The row of round ``last``: earlier rounds as context; the ids of that round, or the answer, as targets."""
        prompter = self.prompter
        row = prompter.opening(sample["question"])
        for group in chain[:last]:
            row.add(prompter.citation([document.doc_id for document in group]))
            prompter.add_fetched(row, group)
        if last < len(chain):
            return row.add(prompter.citation([document.doc_id for document in chain[last]]), learn=True)
        row.add([prompter.end_of_retrieve], learn=True)
        prompter.add_answer_request(row, sample["question"], sample["answer_prefix"])
        return row.add([*prompter.text(sample["answer"]), prompter.im_end], learn=True)

    def reading_batch(self, step: int, seed: int, phase: Phase, max_id: int) -> Batch:
        """Plain reading: gold documents and others of their bank in random order, then the questions one by one.

        Gold documents come in any case. Several questions behind the same documents teach more for each token.
        """
        rng = np.random.default_rng([seed, step, 2])
        bank, renamed = self.bank(step, rng, max_id)
        number_of = {doc_id: number for number, doc_id in enumerate(renamed)}
        drawn = self._draw(step, rng, phase.rows * phase.questions)
        built = []
        for first in range(0, len(drawn), phase.questions):
            together = drawn[first : first + phase.questions]
            chains = [[number_of[doc_id] for doc_id in group] for sample in together for group in sample["chain"]]
            gold = list(dict.fromkeys(number for group in chains for number in group))
            wanted = max(len(gold), min(int(rng.integers(phase.documents[0], phase.documents[1] + 1)), len(bank)))
            others = rng.permutation([number for number in range(len(bank)) if number not in gold]).tolist()
            order = rng.permutation([*gold, *others[: wanted - len(gold)]]).tolist()
            for group in chains:  # answers list several values in the order of their documents
                for place, number in zip(sorted(map(order.index, group)), group, strict=True):
                    order[place] = number
            row = self.prompter.reading_documents([bank[number] for number in order])
            for turn, sample in enumerate(together):
                if turn:
                    row.add(self.prompter.head)
                self.prompter.add_reader_question(row, sample["question"], sample["answer_prefix"])
                row.add([*self.prompter.text(sample["answer"]), self.prompter.im_end], learn=True)
            built.append(row)
        return Batch(self._groups(built))

    def asking_batch(self, step: int, seed: int, phase: Phase, max_id: int) -> Batch:
        """Asking: a document, and as targets the question that it answers; of several hops the first alone fits."""
        rng = np.random.default_rng([seed, step, 5])
        _, renamed = self.bank(step, rng, max_id)
        built = []
        for sample in self._draw(step, rng, phase.rows):
            document = renamed[int(rng.choice(sample["chain"][0]))]
            built.append(self.prompter.asking(document).add(self.prompter.text(sample["question"]), learn=True))
        return Batch(self._groups(built))

    def memory_agent_batch(self, step: int, seed: int, phase: Phase, max_id: int) -> Batch:
        """Steps of memory-agent traces (msa.training.traces): problem, memory and section; target: the new memory.

        Each problem of a row is a decision more to learn from for few tokens. Answers are final calls, which read a
        memory that holds all.

        Raises:
            UserError: no sample of the step's bank has notes.
        """
        rng = np.random.default_rng([seed, step, 6])
        bank, renamed = self.bank(step, rng, max_id)
        samples = [sample for sample in self.samples[self.order[step % len(self.order)]] if sample.get("notes")]
        if not samples:
            raise UserError("samples.parquet: no sample has notes, which a memory agent learns; make the samples again")
        notes = [[Note(n["key"], n["value"], renamed[n["doc_id"]].doc_id) for n in s["notes"]] for s in samples]
        built = []
        for number in rng.choice(len(samples), min(phase.rows, len(samples)), replace=False).tolist():
            sample, own = samples[number], notes[number]
            if rng.random() < phase.answer_share:
                known = sorted(range(len(own)), key=lambda n: sample["answer"].find(own[n].value))
                memory = Document(0, memory_text(own, known), 0)
                row = self.prompter.reading([memory], sample["question"], sample["answer_prefix"])
                target = sample["answer"]
            else:
                order = [number, *rng.permutation(len(samples)).tolist()]
                chosen = disjoint(notes, order, int(rng.integers(1, phase.questions + 1)))
                drawn = draw_step([notes[n] for n in chosen], bank, phase.documents, rng)
                problem = " ".join(samples[n]["question"] for n in chosen)
                row = self.prompter.message(prompts.memory_update(problem, drawn.before, drawn.section))
                target = drawn.after
            built.append(row.add([*self.prompter.text(target), self.prompter.im_end], learn=True))
        return Batch(self._groups(built))

    def copying_batch(self, step: int, seed: int, phase: Phase, _: int) -> Batch:
        """Frequent tokens in random order, then a span of them again as targets: in-context copying forms fastest here.

        It forms on short rows first, and neither on repeated sentences, which can be half guessed, nor at a constant
        distance, where position alone finds the source.
        """
        rng, tokens = np.random.default_rng([seed, step, 3]), phase.tokens
        built = []
        for _ in range(phase.rows):
            first, length = int(rng.integers(tokens)), int(rng.integers(tokens // 2, tokens + 1))
            end = first + length + int(rng.integers(tokens))
            drawn = rng.choice(self.frequent, end, replace=False).tolist()
            built.append(Row().add(self.prompter.head).add(drawn).add(drawn[first : first + length], learn=True))
        return Batch(self._groups(built, self.frequent))

    def recall_batch(self, step: int, seed: int, phase: Phase, _: int) -> Batch:
        """Associative recall: a list of keys and values, then some of the keys again, whose values are the targets.

        Keys are two frequent tokens each, drawn from few, so that siblings share one half; values are numbers or UUIDs,
        whose digits repeat, so that a copy has to keep its place. As in a sentence, other tokens stand before a key and
        between it and its value: the same ones all through the list, and the same others where it is asked for again.
        About half of the pairs are asked for.
        """
        rng, tokens = np.random.default_rng([seed, step, 4]), phase.tokens
        built = []
        for _ in range(phase.rows):
            long = rng.random() < 0.4
            frames = [rng.choice(self.frequent, rng.integers(0, FRAME_TOKENS)).tolist() for _ in range(4)]
            values = self._values(rng, max(1, tokens // ((38 if long else 9) + len(frames[0]) + len(frames[1]))), long)
            side = max(2, round((2 * len(values)) ** 0.5))
            first, second = rng.choice(self.frequent, (2, side), replace=False)
            places = rng.choice(side * side, len(values), replace=False)
            keys = [[int(first[place // side]), int(second[place % side])] for place in places]
            row = Row().add(self.prompter.head)
            for key, value in zip(keys, values, strict=True):
                row.add([*frames[0], *key, *frames[1]]).add(value)
            for asked in rng.permutation(len(keys))[: (len(keys) + 1) // 2]:
                row.add([*frames[2], *keys[asked], *frames[3]]).add(values[asked], learn=True)
            built.append(row)
        spoken = np.unique(np.concatenate([self.frequent, *(row.ids for row in built)]))
        return Batch(self._groups(built, spoken))

    def _values(self, rng: np.random.Generator, count: int, long: bool) -> list[list[int]]:
        """Tokens of UUIDs, or of numbers of 5 to 7 digits."""
        drawn = [uuid.UUID(bytes=rng.bytes(16)) if long else rng.integers(10**4, 10**7) for _ in range(count)]
        return self.prompter.texts(list(map(str, drawn)))

    @cached_property
    def frequent(self) -> np.ndarray:
        """The most frequent tokens of the set's documents."""
        texts = [document.text for bank in self.order[:100] for document in self.banks[bank]]
        counts = np.bincount(np.concatenate(self.prompter.texts(texts)))
        return np.sort(np.argsort(-counts, kind="stable")[:FREQUENT_TOKENS])

    def _draw(self, step: int, rng: np.random.Generator, rows: int) -> list[dict[str, Any]]:
        samples = self.samples[self.order[step % len(self.order)]]
        return [samples[number] for number in rng.choice(len(samples), min(rows, len(samples)), replace=False)]

    def _groups(self, rows: list[Row], vocabulary: np.ndarray | None = None) -> list[Group]:
        known = None if vocabulary is None else torch.tensor(vocabulary)
        return [self._collate([rows[number] for number in chosen], 0, known) for chosen in _by_length(rows)]

    def _collate(self, rows: list[Row], top_k: int, vocabulary: Tensor | None = None) -> Group:
        ids = pad_rows([row.ids for row in rows], self.prompter.pad, WIDTH)
        return Group(
            ids=ids,
            targets=pad_rows([row.targets for row in rows], IGNORE, WIDTH),
            routing=pad_rows([list(map(int, row.routing)) for row in rows], 0, WIDTH).bool(),
            positions=own_positions(ids.shape[1], len(self.prompter.head), top_k),
            reads=(torch.arange(ids.shape[1]) >= len(self.prompter.head)).expand_as(ids),
            tokens=sum(len(row.ids) for row in rows),
            vocabulary=vocabulary,
        )


def _drop_routing(row: Row, share: float, rng: np.random.Generator) -> None:
    """Take a share of a row's routing tokens out of routing, in place, but never all."""
    places = np.flatnonzero(row.routing)
    if share and len(places):
        dropped = rng.random(len(places)) < share
        dropped[rng.integers(len(places))] = False
        for place in places[dropped]:
            row.routing[place] = False


def _by_length(rows: list[Row], most: int | None = None) -> list[list[int]]:
    """Row numbers in groups of similar length: about ``GROUP_TOKENS`` padded tokens in fours, or at ``most``."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    size, together = (GROUP_TOKENS, GROUP_ROWS) if most is None else (most, 1)
    groups: list[list[int]] = []
    for start in range(0, len(order), together):
        chosen = order[start : start + together]
        if not groups or (len(groups[-1]) + len(chosen)) * len(rows[chosen[-1]].ids) > size:
            groups.append([])
        groups[-1] += chosen
    return groups
