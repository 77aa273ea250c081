"""Training samples from a real set: banks of its passages and questions on them, without anything that is evaluated."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from msa_base.errors import UserError
from msa_base.tables import write_table
from msa_base.validate import Count, Seed, Tokens, build
from tasks.parts.chunking import make_documents, random_ids
from tasks.parts.splitting import Strategy, sentences
from tasks.parts.tail import UnavailableData
from tasks.qa.data import find_set
from tasks.qa.documents import gold_chunks, make_chunker
from tasks.qa.records import QuestionRecord, SetData, bare_key
from tasks.qa.table import EVALUATION, read_table

MIN_WORDS = 8  # a shorter sentence may stand in two texts by chance


@dataclass(frozen=True)
class RealSpec:
    """One training set of a profile made from a set of tasks/qa/sets.yaml."""

    set: str
    bank_tokens: Tokens
    banks: Count
    questions: Count  # of each bank
    document_tokens: Count = 96
    chunking: Strategy = "sentences"
    max_answer_words: Count = 6
    hops: bool = False  # every gold passage is a round, in the set's order, and questions keep their passages together
    seed: Seed = 0


def keys_of(text: str) -> Iterator[str]:
    """A text's own key and those of its longer sentences."""
    yield bare_key(text)
    yield from (bare_key(sentence) for sentence in sentences(text) if len(sentence.split()) >= MIN_WORDS)


def overlap_keys(sets: Iterable[SetData]) -> set[str]:
    """Keys of every passage, sentence of a passage and question of some sets."""
    found: set[str] = set()
    for data in sets:
        found.update(key for text in data.passages.values() for key in keys_of(text))
        found.update(bare_key(question.text) for question in data.questions.values())
    return found


def evaluated(data: Path | str | None, where: str) -> Iterator[SetData]:
    """Every form of a set to evaluate on that the data directory holds."""
    for name, spec in read_table().items():
        if spec.use == EVALUATION:
            for form in spec.forms:  # another language is another form
                with suppress(UnavailableData):
                    yield find_set(data, name, where, form.name).read(where)


def disjoint(data: SetData, keys: set[str]) -> tuple[list[QuestionRecord], set[str]]:
    """The questions none of whose passages and words stand among ``keys``, and the passages that are clean."""
    clean = {key for key, text in data.passages.items() if keys.isdisjoint(keys_of(text))}
    questions = [
        item for item in data.questions.values() if set(item.gold) <= clean and bare_key(item.text) not in keys
    ]
    return questions, clean


def write(parameters: dict[str, Any], where: str, tokenizer: Tokenizer, data: str | None, directory: Path) -> str:
    """Write banks.parquet and samples.parquet; a line for the log. Raises UserError: no set, or no question left."""
    spec: RealSpec = build(RealSpec, parameters, where)
    chunker = make_chunker(tokenizer, spec.chunking, spec.document_tokens, where)
    try:
        found = find_set(data, spec.set, where).read(where)
    except UnavailableData as error:
        raise UserError(f"{where}: training needs it: {error}") from None
    questions, clean = disjoint(found, overlap_keys(evaluated(data, where)))
    keys = sorted(clean, key=lambda key: (bare_key(found.passages[key]), key))
    random.Random(f"samples/{spec.set}/{spec.seed}").shuffle(keys)
    if spec.hops:
        mixed = sorted(questions, key=lambda item: item.question_id)
        random.Random(f"samples/{spec.set}/{spec.seed}/questions").shuffle(mixed)
        together = dict.fromkeys(key for item in mixed for key in (*item.gold, *item.own) if key in clean)
        keys = [*together, *(key for key in keys if key not in together)]
    chunks_of = dict(zip(keys, chunker.chunks(found.passages[key] for key in keys), strict=True))
    asks: dict[str, list[tuple[QuestionRecord, str]]] = {}
    for item in questions:
        short = [answer for answer in item.answers if len(answer.split()) <= spec.max_answer_words]
        if short:
            asks.setdefault(item.gold[0], []).append((item, short[0]))
    banks: list[dict] = []
    samples: list[dict] = []
    position = 0
    for bank_id in range(spec.banks):
        rows, position = _bank(bank_id, spec, tokenizer, keys, chunks_of, position)
        chosen = [ask for key in dict.fromkeys(row.pop("key") for row in rows) for ask in asks.get(key, [])]
        random.Random(f"samples/{spec.set}/{spec.seed}/{bank_id}").shuffle(chosen)
        ids = {row["text"]: row["doc_id"] for row in rows}
        for item, answer in chosen[: spec.questions]:
            rounds = item.gold if spec.hops else item.gold[:1]
            found_chunks = ([c for c in gold_chunks(chunks_of[key], item) if c in ids] for key in rounds)
            chain = [[ids[chunks[0]]] for chunks in found_chunks if chunks]
            if len(chain) == len(rounds):
                samples.append({"sample_id": len(samples), "bank_id": bank_id, "task": spec.set, "question": item.text,
                                "answer_prefix": "", "answer": answer, "chain": chain})  # fmt: skip
        banks += rows
    if not samples:
        raise UserError(f"{where}: no question of {spec.set} is left for training; give it more banks or tokens")
    write_table("banks", banks, directory / "banks.parquet")
    write_table("samples", samples, directory / "samples.parquet")
    left = f"{len(found.passages) - len(clean)} passages and {len(found.questions) - len(questions)} questions"
    made = f"{spec.banks} banks, {len(banks):,} documents, {len(samples):,} questions"
    return f"{directory}: {made}; {left} overlap with evaluation and are left out"


def _bank(
    bank_id: int, spec: RealSpec, tokenizer: Tokenizer, keys: list[str], chunks_of: dict[str, list[str]], position: int
) -> tuple[list[dict], int]:
    """The documents of consecutive passages until the bank is full, and where the next bank begins."""
    ids = random_ids(f"{spec.set}/{spec.seed}/{bank_id}", 0)
    rows: list[dict] = []
    total = 0
    for _ in range(len(keys)):
        key = keys[position % len(keys)]
        documents = list(make_documents(tokenizer, zip(ids, dict.fromkeys(chunks_of[key]), strict=False)))
        size = sum(document.num_tokens for document in documents)
        if rows and total + size > spec.bank_tokens:
            break
        rows += [{"key": key, "bank_id": bank_id, **vars(item)} for item in documents]
        total += size
        position += 1
    return rows, position
