"""Training batches: banks shared by many questions, chains cut into single-step samples (paper section 3.4).

Shape legend: N documents of a bank, L padded document length, Q rows, M padded row length.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs import prompts
from configs.errors import UserError
from configs.records import Document
from configs.tables import read_arrow
from msa.loss import IGNORE
from msa.prompt import Prompter, Row, own_positions, pad_rows
from msa.traces import Note, apart, draw_step, written


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
    """One sample set in memory: its banks' documents and their questions.

    Args:
        directory: with banks.parquet and samples.parquet.
        prompter: the model's row builder.
        top_k: k of the model, which shifts the question's positions.

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
                lost = [doc_id for group in sample["chain"] for doc_id in group if doc_id not in known]
                if lost:
                    raise UserError(
                        f"{directory / 'samples.parquet'}: sample {sample['sample_id']} names document {lost[0]}, which"
                        f" bank {bank} of banks.parquet lacks; make both again"
                    )
        self.order = sorted(self.samples)

    def bank(self, step: int, rng: np.random.Generator, max_id: int) -> tuple[list[Document], dict[int, Document]]:
        """The bank of a step with fresh document ids, and the map from stored id to renumbered document.

        Fresh ids keep the model from learning the ids of a bank that it meets again.
        """
        bank = self.banks[self.order[step % len(self.order)]]
        ids = rng.choice(max_id - max_id // 10, len(bank), replace=False) + max_id // 10
        renamed = {old.doc_id: Document(int(new), old.text, old.num_tokens) for old, new in zip(bank, ids, strict=True)}
        return list(renamed.values()), renamed

    def memory_batch(
        self, step: int, seed: int, rows: int, answer_share: float, max_id: int, routing_dropout: float = 0.0,
        memory_dropout: float = 0.0, answer_shares: Mapping[str, float] = MappingProxyType({}),
    ) -> Batch:
        """Single-step samples over one bank: each row is one retrieval round or the answer of its question.

        Args:
            answer_share: of the rows, those that are answers; ``answer_shares`` those of some tasks, by name.
            routing_dropout: share of the routing tokens that take no part in routing; of every row at least one does.
            memory_dropout: share of the answers that read the fetched text alone, as a plain reader does.
        """
        rng = np.random.default_rng([seed, step, 1])
        documents, renamed = self.bank(step, rng, max_id)
        index = {document.doc_id: number for number, document in enumerate(documents)}
        samples = self._draw(step, rng, rows)
        built: list[Row] = []
        reads = torch.ones(len(samples), 1, dtype=torch.bool)
        positives = torch.zeros(len(samples), len(documents), dtype=torch.bool)
        countable = torch.ones_like(positives)
        for number, sample in enumerate(samples):
            chain = [[renamed[doc_id] for doc_id in group] for group in sample["chain"]]
            share = answer_shares.get(sample["task"], answer_share)
            last = len(chain) if rng.random() < share else int(rng.integers(len(chain)))
            built.append(self._single_step(sample, chain, last))
            for group in chain[:last]:
                countable[number, [index[document.doc_id] for document in group]] = False
            if last < len(chain):
                positives[number, [index[document.doc_id] for document in chain[last]]] = True
            elif memory_dropout:
                reads[number] = bool(rng.random() >= memory_dropout)
            _drop_routing(built[-1], routing_dropout, rng)
        wrapped = self.prompter.documents(documents)
        lengths = torch.tensor([len(tokens) for tokens in wrapped])
        groups = []
        for chosen in _by_length(built):
            group = self._collate([built[number] for number in chosen], self.top_k)
            group.positives, group.countable = positives[chosen], countable[chosen]
            group.reads = group.reads & reads[chosen]
            groups.append(group)
        return Batch(groups, pad_rows(wrapped, self.prompter.pad, WIDTH), lengths)

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

    def reading_batch(
        self, step: int, seed: int, rows: int, documents: tuple[int, int], questions: int, max_id: int
    ) -> Batch:
        """Plain reading: questions, one after the other, behind their gold documents and others of their bank in random order.

        Args:
            documents: fewest and most documents of a row (the gold ones come in any case).
            questions: of each row; several behind the same documents teach more for each token.
        """
        rng = np.random.default_rng([seed, step, 2])
        bank, renamed = self.bank(step, rng, max_id)
        number_of = {doc_id: number for number, doc_id in enumerate(renamed)}
        drawn = self._draw(step, rng, rows * questions)
        built = []
        for first in range(0, len(drawn), questions):
            asked = drawn[first : first + questions]
            chains = [[number_of[doc_id] for doc_id in group] for sample in asked for group in sample["chain"]]
            gold = list(dict.fromkeys(number for group in chains for number in group))
            wanted = max(len(gold), min(int(rng.integers(documents[0], documents[1] + 1)), len(bank)))
            others = rng.permutation([number for number in range(len(bank)) if number not in gold]).tolist()
            order = rng.permutation([*gold, *others[: wanted - len(gold)]]).tolist()
            for group in chains:  # answers list several values in the order of their documents
                for place, number in zip(sorted(map(order.index, group)), group, strict=True):
                    order[place] = number
            row = self.prompter.reading_documents([bank[number] for number in order])
            for turn, sample in enumerate(asked):
                if turn:
                    row.add(self.prompter.head)
                self.prompter.add_reader_question(row, sample["question"], sample["answer_prefix"])
                row.add([*self.prompter.text(sample["answer"]), self.prompter.im_end], learn=True)
            built.append(row)
        return Batch([self._collate([built[number] for number in chosen], 0) for chosen in _by_length(built)])

    def asking_batch(self, step: int, seed: int, rows: int, max_id: int) -> Batch:
        """Asking: a document, then the question that it answers as targets; of several hops only the first can be asked so."""
        rng = np.random.default_rng([seed, step, 5])
        _, renamed = self.bank(step, rng, max_id)
        built = []
        for sample in self._draw(step, rng, rows):
            document = renamed[int(rng.choice(sample["chain"][0]))]
            built.append(self.prompter.asking(document).add(self.prompter.text(sample["question"]), learn=True))
        return Batch([self._collate([built[number] for number in chosen], 0) for chosen in _by_length(built)])

    def memory_agent_batch(
        self, step: int, seed: int, rows: int, documents: tuple[int, int], problems: int, answer_share: float, max_id: int
    ) -> Batch:
        """Steps of memory-agent traces (msa.traces): problem, memory and section, whose target is the new memory.

        Args:
            documents: fewest and most documents of a section.
            problems: most problems of a row; each is a decision more to learn from for few tokens.
            answer_share: of the rows, final calls: the answer from a memory that holds all.

        Raises:
            UserError: no sample of the step's bank has notes.
        """
        rng = np.random.default_rng([seed, step, 6])
        bank, renamed = self.bank(step, rng, max_id)
        samples = [sample for sample in self.samples[self.order[step % len(self.order)]] if sample.get("notes")]
        if not samples:
            raise UserError("samples.parquet: no sample has notes, which traces of a memory agent are made of; make the samples again")
        notes = [[Note(n["key"], n["value"], renamed[n["doc_id"]].doc_id) for n in sample["notes"]] for sample in samples]
        built = []
        for number in rng.choice(len(samples), min(rows, len(samples)), replace=False).tolist():
            sample, own = samples[number], notes[number]
            if rng.random() < answer_share:
                known = sorted(range(len(own)), key=lambda n: sample["answer"].find(own[n].value))
                memory = Document(0, written(own, known), 0)
                row = self.prompter.reading([memory], sample["question"], sample["answer_prefix"])
                target = sample["answer"]
            else:
                order = [number, *rng.permutation(len(samples)).tolist()]
                chosen = apart(notes, order, int(rng.integers(1, problems + 1)))
                drawn = draw_step([notes[n] for n in chosen], bank, documents, rng)
                problem = " ".join(samples[n]["question"] for n in chosen)
                row = self.prompter.message(prompts.memory_update(problem, drawn.before, drawn.section))
                target = drawn.after
            built.append(row.add([*self.prompter.text(target), self.prompter.im_end], learn=True))
        return Batch([self._collate([built[number] for number in chosen], 0) for chosen in _by_length(built)])

    def copying_batch(self, step: int, seed: int, rows: int, tokens: int) -> Batch:
        """Frequent tokens in random order, of which a span comes again as targets: where in-context copying forms fastest.

        It forms on short rows first, and neither on repeated sentences, which can be half guessed, nor at a constant
        distance, where position alone finds the source.
        """
        rng = np.random.default_rng([seed, step, 3])
        built = []
        for _ in range(rows):
            first, length = int(rng.integers(tokens)), int(rng.integers(tokens // 2, tokens + 1))
            end = first + length + int(rng.integers(tokens))
            drawn = rng.choice(self.frequent, end, replace=False).tolist()
            built.append(Row().add(self.prompter.head).add(drawn).add(drawn[first : first + length], learn=True))
        groups = [self._collate([built[number] for number in chosen], 0) for chosen in _by_length(built)]
        for group in groups:
            group.vocabulary = torch.from_numpy(self.frequent)
        return Batch(groups)

    def recall_batch(self, step: int, seed: int, rows: int, tokens: int) -> Batch:
        """Associative recall: a list of keys and values, then some of the keys again, whose values are the targets.

        Keys are two frequent tokens each, drawn from few, so that siblings share one half; values are numbers or UUIDs,
        whose digits repeat, so that a copy has to keep its place. As in a sentence, other tokens stand before a key and
        between it and its value: the same ones all through the list, and the same others where it is asked for again.

        Args:
            tokens: length of the list; about half of its pairs are asked for.
        """
        rng = np.random.default_rng([seed, step, 4])
        built = []
        for _ in range(rows):
            long = rng.random() < 0.4
            frames = [rng.choice(self.frequent, rng.integers(0, FRAME_TOKENS)).tolist() for _ in range(4)]
            values = self._values(rng, max(1, tokens // ((38 if long else 9) + len(frames[0]) + len(frames[1]))), long)
            side = max(2, round((2 * len(values)) ** 0.5))
            first, second = rng.choice(self.frequent, (2, side), replace=False)
            places = rng.choice(side * side, len(values), replace=False)
            pairs = [([int(first[place // side]), int(second[place % side])], value) for place, value in zip(places, values, strict=True)]
            row = Row().add(self.prompter.head)
            for key, value in pairs:
                row.add([*frames[0], *key, *frames[1]]).add(value)
            for place in rng.permutation(len(pairs))[: (len(pairs) + 1) // 2]:
                row.add([*frames[2], *pairs[place][0], *frames[3]]).add(pairs[place][1], learn=True)
            built.append(row)
        groups = [self._collate([built[number] for number in chosen], 0) for chosen in _by_length(built)]
        spoken = np.unique(np.concatenate([self.frequent, *(row.ids for row in built)]))
        for group in groups:
            group.vocabulary = torch.from_numpy(spoken)
        return Batch(groups)

    def _values(self, rng: np.random.Generator, count: int, long: bool) -> list[list[int]]:
        """Tokens of UUIDs, or of numbers of 5 to 7 digits."""
        if long:
            return self.prompter.texts([str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(count)])
        return self.prompter.texts([str(rng.integers(10**4, 10**7)) for _ in range(count)])

    @cached_property
    def frequent(self) -> np.ndarray:
        """The most frequent tokens of the set's documents."""
        texts = [document.text for bank in self.order[:100] for document in self.banks[bank]]
        counts = np.bincount(np.concatenate(self.prompter.texts(texts)))
        return np.sort(np.argsort(-counts, kind="stable")[:FREQUENT_TOKENS])

    def _draw(self, step: int, rng: np.random.Generator, rows: int) -> list[dict[str, Any]]:
        samples = self.samples[self.order[step % len(self.order)]]
        return [samples[number] for number in rng.choice(len(samples), min(rows, len(samples)), replace=False)]

    def _collate(self, rows: list[Row], top_k: int) -> Group:
        ids = pad_rows([row.ids for row in rows], self.prompter.pad, WIDTH)
        return Group(
            ids=ids,
            targets=pad_rows([row.targets for row in rows], IGNORE, WIDTH),
            routing=pad_rows([list(map(int, row.routing)) for row in rows], 0, WIDTH).bool(),
            positions=own_positions(ids.shape[1], len(self.prompter.head), top_k),
            reads=(torch.arange(ids.shape[1]) >= len(self.prompter.head)).expand_as(ids),
            tokens=sum(len(row.ids) for row in rows),
        )


def _drop_routing(row: Row, share: float, rng: np.random.Generator) -> None:
    """Take a share of a row's routing tokens out of routing, in place, but never all."""
    places = [place for place, routing in enumerate(row.routing) if routing]
    if not share or not places:
        return
    dropped = rng.random(len(places)) < share
    dropped[rng.integers(len(places))] = False
    for place, drop in zip(places, dropped, strict=True):
        row.routing[place] = not drop


def _by_length(rows: list[Row]) -> list[list[int]]:
    """Split row numbers into groups of similar length and about ``GROUP_TOKENS`` padded tokens, in fours."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    groups: list[list[int]] = []
    for start in range(0, len(order), GROUP_ROWS):
        chosen = order[start : start + GROUP_ROWS]
        if not groups or (len(groups[-1]) + len(chosen)) * len(rows[chosen[-1]].ids) > GROUP_TOKENS:
            groups.append([])
        groups[-1] += chosen
    return groups
