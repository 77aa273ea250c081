"""Natural Questions and SQuAD as passages to search and questions, each with the passage that answers it."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path

from msa_base.records import Document
from msa_base.tables import read_json

DEVELOPMENT = 2  # questions of each passage that a form is chosen by


@dataclass
class TextSet:
    """Passages and questions; ``gold`` is the place of the passage that answers each question."""

    passages: list[str]
    questions: list[str]
    gold: list[int]


def read_nq(path: Path, passages: int) -> TextSet:
    """Natural Questions (Kwiatkowski et al. 2019): title and text of the first gold passages, and every question whose
    passage is among them.
    """
    places: dict[str, int] = {}
    found = TextSet([], [], [])
    with gzip.open(path, "rt") as lines:
        for row in map(json.loads, lines):
            passage = next((item for item in row["ctxs"] if item["isgold"]), None)
            text = "" if passage is None else f"{passage['title']}\n{passage['text']}"
            if text and len(places) < passages:
                places.setdefault(text, len(places))
            if text in places:
                found.questions.append(row["question"])
                found.gold.append(places[text])
    found.passages += places
    return found


def read_squad(path: Path, passages: int, questions: int) -> TextSet:
    """SQuAD (Rajpurkar et al. 2016): passages spread evenly over the file, and as many questions of each."""
    every = [
        (f"{article['title'].replace('_', ' ')}\n{part['context']}" if "title" in article else part["context"], part)
        for article in read_json(path)["data"]
        for part in article["paragraphs"]
    ]
    found = TextSet([], [], [])
    for number in range(min(passages, len(every))):
        text, part = every[number * len(every) // min(passages, len(every))]
        found.passages.append(text)
        for asked in part["qas"][: -(-questions // passages)]:
            found.questions.append(asked["question"])
            found.gold.append(number)
    return found


def development(squad: Path) -> TextSet:
    """Passages and questions of articles that whiten nothing, without those of the questions that are evaluated."""
    evaluated = read_json(squad / "mrqa_dev_4330.json")
    known = {bare(row[key]) for row in evaluated for key in ("context", "question")}
    every = read_squad(squad / "train_articles_4639.json", 10**6, 10**7)
    found = TextSet([], [], [])
    for number, passage in enumerate(every.passages):
        if bare(passage.partition("\n")[2]) in known:
            continue
        asked = [text for text, gold in zip(every.questions, every.gold, strict=True) if gold == number]
        asked = [text for text in asked if bare(text) not in known][:DEVELOPMENT]
        found.questions += asked
        found.gold += [len(found.passages)] * len(asked)
        found.passages.append(passage)
    return found


def bare(text: str) -> str:
    """A text without case and white space."""
    return "".join(text.lower().split())


def numbered(texts: list[str]) -> list[Document]:
    """Documents with random ids of six digits, as corpora have them."""
    ids = random.Random(0).sample(range(100_000, 1_000_000), len(texts))
    return [Document(*pair, 0) for pair in zip(ids, texts, strict=True)]


def overlaps(found: TextSet) -> list[float]:
    """Of each question the share of its content words that stand in its passage: words as bm25s cuts them, without its
    longer list of stop words, which holds those that ask.
    """
    import bm25s

    def words(texts: list[str]) -> list[set[str]]:
        return [
            set(cut) for cut in bm25s.tokenize(texts, stopwords="english_plus", return_ids=False, show_progress=False)
        ]

    asked, passages = words(found.questions), words(found.passages)
    return [len(cut & passages[gold]) / max(1, len(cut)) for cut, gold in zip(asked, found.gold, strict=True)]
