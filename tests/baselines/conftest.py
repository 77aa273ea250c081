"""A small prepared experiment on disk, and stand-ins for the reader and the embedder of msa."""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from msa_base.paths import Paths
from msa_base.records import CorpusView, Document, Overlay, Question
from msa_base.seal import MadeFrom, sealed
from msa_base.stage_records import ViewRecord
from msa_base.tables import write_table

WORDS = [f"{head}{tail}" for head in ("ba", "ko", "mi", "su", "re", "ta") for tail in ("da", "lo", "ne", "pi", "vu")]
CONTEXTS = {"1K": 1000, "2K": 2000, "4K": 4000}


@dataclass
class FakeGeneration:
    """What msa.generation.reader.Generation has."""

    text: str
    input_tokens: int
    output_tokens: int = 1
    first_token_s: float = 0.25
    total_s: float = 0.5
    truncated: bool = False
    prompt: str | None = None
    status: str = "ok"


class FakeReader:
    """Says which documents it was given: an answer is a digest of the whole prompt."""

    calls = 0

    def __init__(self, model: Path | None, threads: int) -> None:
        self.model = model

    def prompt_tokens(self, documents: list[Document], question: Question) -> int:
        """Documents, and 20 tokens for the rest."""
        return sum(document.num_tokens for document in documents) + 20

    def answer(self, pairs: list[tuple[list[Document], Question]]) -> list[FakeGeneration]:
        """One digest a pair."""
        FakeReader.calls += len(pairs)
        return [
            FakeGeneration(
                hashlib.sha256(repr(([d.text for d in documents], question.text)).encode()).hexdigest()[:12],
                self.prompt_tokens(documents, question),
            )
            for documents, question in pairs
        ]

    def answer_shared(self, documents: list[Document], questions: list[Question]) -> list[FakeGeneration]:
        """As :meth:`answer`."""
        return self.answer([(documents, question) for question in questions])


class FakeEmbedder:
    """Embeds a text as the sum of its words' fixed random vectors, so that shared words mean nearness."""

    def __init__(self, model: Path | None, threads: int) -> None:
        self.model = model

    def documents(self, documents: list[Document]) -> np.ndarray:
        """Unit vectors of the texts."""
        return self.queries([document.text for document in documents])

    def queries(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [N, 24] float32."""
        rows = []
        for text in texts:
            seeds = [int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) for word in text.split()]
            vector = sum(np.random.default_rng(seed).standard_normal(24) for seed in seeds)
            rows.append(vector / np.linalg.norm(vector))
        return np.asarray(rows, np.float32)


class FakeReranker:
    """Scores a pair by a digest of both: any order, always the same."""

    calls = 0

    def __init__(self, model: Path | None, threads: int) -> None:
        self.model = model

    @staticmethod
    def score(question: str, text: str) -> float:
        """Of one pair."""
        return int(hashlib.sha256(f"{question}/{text}".encode()).hexdigest()[:6], 16) / 2**24

    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        """Of many pairs."""
        FakeReranker.calls += len(pairs)
        return np.asarray([self.score(question, document.text) for question, document in pairs])


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins where systems open the real ones; drivers fork, so their children have them too."""
    for module, opener, fake in (
        ("parts.reading", "open_reader", FakeReader),
        ("long_context", "open_reader", FakeReader),
        ("hipporag", "open_reader", FakeReader),
        ("dense", "open_embedder", FakeEmbedder),
        ("parts.embedded", "open_embedder", FakeEmbedder),
        ("memory_store", "open_embedder", FakeEmbedder),
        ("rerank", "open_reranker", FakeReranker),
    ):
        monkeypatch.setattr(importlib.import_module(f"baselines.{module}"), opener, fake)
    FakeReader.calls = FakeReranker.calls = 0


def sentence(rng: random.Random, length: int = 24) -> str:
    """Random words, few enough that many documents share them."""
    return " ".join(rng.choice(WORDS) for _ in range(length))


def make_corpus(rng: random.Random, count: int) -> list[Document]:
    """Documents of distinct random ids."""
    ids = rng.sample(range(100_000, 999_999), count)
    return [Document(doc_id, sentence(rng), 40) for doc_id in ids]


def make_view(rng: random.Random, base: list[Document]) -> tuple[CorpusView, list[Question]]:
    """A view whose questions have every sort of overlay: none, replacing, adding, both, and shared."""
    replacing = tuple(Document(document.doc_id, sentence(rng), 40) for document in rng.sample(base, 3))
    adding = tuple(Document(doc_id, sentence(rng), 40) for doc_id in (1, 2, 3, 4))
    overlays = {
        "replacing": Overlay("replacing", replacing),
        "adding": Overlay("adding", adding),
        "both": Overlay("both", (adding[2], replacing[0], adding[0])),
        # a word that no base document has, and one that most have
        "rare": Overlay("rare", (Document(9, "zyzzyva " + sentence(rng), 41), Document(base[0].doc_id, "zyzzyva", 2))),
    }
    names = [None, *overlays, *overlays]
    questions = [Question(f"q{i}", sentence(rng, 5) + " zyzzyva unseen", "", 8, name) for i, name in enumerate(names)]
    return CorpusView(base, overlays), questions


SYSTEMS = {
    "indexes": {"dense_small": {"kind": "dense", "model": "embedder"}},
    "systems": {
        "closed_book": {"kind": "closed_book", "title": "Closed book", "model": "reader"},
        "oracle": {"kind": "oracle", "title": "Oracle", "model": "reader", "reads_gold": True},
        "full": {
            "kind": "long_context",
            "title": "Full",
            "model": "reader",
            "max_questions": 4,
            "params": {"window_tokens": 2100},
        },
        "rag_bm25": {"kind": "bm25", "title": "BM25", "model": "reader", "params": {"read_k": 2}},
        "rag_dense": {
            "kind": "dense",
            "title": "Dense",
            "model": "reader",
            "index": "dense_small",
            "params": {"read_k": 2},
        },
    },
}
PROFILE = {
    "title": "test",
    "tokenizer": {},
    "contexts": list(CONTEXTS),
    "tasks": {"needles": 9},
    "systems": list(SYSTEMS["systems"]),
    "seeds": [0],
    "models": ["reader", "embedder"],
    "samples": {"short": {}},
    "latency": {"task": "needles", "questions": 3},
}
SHAPE = {"hidden_size": 8, "intermediate_size": 8, "layers": 1, "query_heads": 1, "kv_heads": 1, "head_dim": 8}
PHASE = {"name": "copying", "objective": "copy", "samples": "short", "steps": 1, "rows": 1}
MODEL = {
    "kind": "msa.training.train",
    "samples": ["short"],
    "params": {"shape": {**SHAPE, "rope_theta": 1e4}, "phases": [PHASE]},
}
TASKS = {
    "corpora": {"prose": {"kind": "haystack"}},
    "tasks": {
        "needles": {"kind": "ruler", "corpus": "prose", "metric": "contains", "role": "needles", "title": "Needles"}
    },
}


class Workplace:
    """A configuration and a results directory in a temporary folder, and a way to run commands on them."""

    def __init__(self, root: Path, run: Callable[..., int]) -> None:
        self.configs, self.results = root / "configs", root / "results"
        self.paths = Paths.of("test", self.results)
        self.systems = yaml.safe_load(yaml.safe_dump(SYSTEMS))
        self._run = run

    def write_configs(self) -> None:
        """Write the configuration as it now stands."""
        files = {
            "contexts": CONTEXTS,
            "systems": self.systems,
            "tasks": TASKS,
            "models": {"reader": MODEL, "embedder": MODEL},
            "profiles/test": PROFILE,
        }
        for name, content in files.items():
            path = self.configs / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(content, sort_keys=False))

    def write_data(self) -> None:
        """Write checkpoints, corpus and prepared cells."""
        rng = random.Random(0)
        corpus = make_corpus(rng, 100)
        write_table("corpus", [vars(document) for document in corpus], self.paths.corpus("prose"))
        for name in ("reader", "embedder"):
            self.paths.model(name).mkdir(parents=True)
            (self.paths.model(name) / "model.safetensors").write_bytes(name.encode())
        for context, tokens in CONTEXTS.items():
            view, questions = make_view(rng, corpus[: tokens // 40])
            cell = self.paths.prepared("needles", context)
            write_table("questions", [vars(question) for question in questions], cell / "questions.parquet")
            rows = [
                {"overlay_id": name, **vars(document)}
                for name, overlay in view.overlays.items()
                for document in overlay.added
            ]
            write_table("overlays", rows, cell / "overlays.parquet")
            gold = [
                {
                    "question_id": question.question_id,
                    "answers": ["x"],
                    "gold_doc_ids": [view.documents(question)[0].doc_id],
                }
                for question in questions
            ]
            write_table("gold", gold, cell / "gold.parquet")
            self.write_view(context, len(view.base))

    def write_view(self, context: str, base_documents: int, **content: Any) -> None:
        """view.json of a prepared cell, over the tables that stand beside it."""
        cell = self.paths.prepared("needles", context)
        files = sealed(cell, [f"{name}.parquet" for name in ("questions", "overlays", "gold")])
        sizes = {"base_documents": base_documents, "context_tokens": CONTEXTS[context], **content}
        ViewRecord(made_from=MadeFrom(), files=files, corpus="prose", **sizes).write(cell / "view.json")

    def command(self, module: str, *arguments: str) -> int:
        """Run a command of baselines in this process; its exit code."""
        places = ["--configs", str(self.configs), "--results", str(self.results)]
        return self._run(module, "--profile", "test", *arguments, *places)

    def run(self, system: str) -> int:
        """Run a system at the task."""
        return self.command("run", "--system", system, "--task", "needles")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A prepared experiment of one task and three contexts."""

    def run(module: str, *arguments: str) -> int:
        from msa_base.errors import run_command

        monkeypatch.setattr(sys, "argv", [module, *arguments])
        room = "checks" if module in ("check", "contract", "load") else "drivers"
        with pytest.raises(SystemExit) as ended:
            run_command(importlib.import_module(f"baselines.{room}.{module}").main)
        return ended.value.code

    made = Workplace(tmp_path, run)
    made.write_configs()
    made.write_data()
    return made
