"""A hand-made results tree: systems of known strength, expected failures, latencies and training logs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.load import DIRECTORY, Experiment, load
from configs.paths import Paths
from configs.records import Answer
from configs.tables import write_json, write_predictions, write_table
from reports.evidence import Evidence
from reports.summarise import summarise

NEEDLES = [f"niah_prose_{name}" for name in ("s1", "s2", "s3", "mk1", "mk2", "mk3", "mv", "mq")]
TOY = {
    "title": "toy: hand-made",
    "tokenizer": {"kind": "words", "words": 100},
    "contexts": ["16K", "32K", "64K", "1M"],
    "tasks": {**dict.fromkeys(NEEDLES, 24), "scaling_facts": 64, "two_hop": 48},
    "systems": [
        "closed_book",
        "oracle",
        "full_attention",
        "rag_bm25",
        "rag_dense",
        "msa",
        "msa_no_interleave",
        "msa_free_ids",
    ],
    "seeds": [0],
    "models": ["backbone", "reader", "msa", "embedder"],
    "samples": {"bare": {}, "short": {}, "mixed": {}, "long": {}},
    "latency": {"task": "scaling_facts", "questions": 4},
}
STRENGTH = {  # chance of a right answer on needles, scaling, two-hop at 16K, and the part lost per factor of ten in memory
    "closed_book": (0.0, 0.02, 0.05, 0.0),
    "oracle": (0.99, 0.98, 0.97, 0.0),
    "full_attention": (0.8, 0.7, 0.6, 0.0),
    "rag_bm25": (0.9, 0.75, 0.45, 0.12),
    "rag_dense": (0.85, 0.8, 0.4, 0.1),
    "msa": (0.97, 0.95, 0.93, 0.01),
    "msa_no_interleave": (0.9, 0.94, 0.5, 0.02),
    "msa_free_ids": (0.85, 0.85, 0.8, 0.05),
}


@dataclass
class Tree:
    """Where the tree stands, and how to write more of it."""

    root: Path
    configs: Path
    profile: str = "toy"
    experiment: Experiment = field(init=False)
    paths: Paths = field(init=False)

    def __post_init__(self) -> None:
        self.experiment = load(self.profile, self.configs)
        self.paths = Paths.of(self.profile, self.root)

    def evidence(self) -> Evidence:
        """The tree as the report reads it, with summary.parquet written."""
        evidence = Evidence.read(self.profile, self.root, self.configs)
        write_table("summary", summarise(evidence), self.paths.summary)
        return evidence

    def prepare(self, task: str) -> None:
        """Questions and gold of a task at every context."""
        count = self.experiment.profile.tasks[task]
        for context in self.experiment.profile.contexts:
            folder = self.paths.prepared(task, context)
            ids = [f"{task}-{index:04d}" for index in range(count)]
            write_table(
                "gold",
                [{"question_id": name, "answers": ["x"], "gold_doc_ids": [index]} for index, name in enumerate(ids)],
                folder / "gold.parquet",
            )
            rows = [
                {
                    "question_id": name,
                    "text": "?",
                    "answer_prefix": "",
                    "max_new_tokens": 8,
                    "overlay_id": f"head{index % 4}",
                }
                for index, name in enumerate(ids)
            ]
            write_table("questions", rows, folder / "questions.parquet")

    def cell(self, system: str, task: str, context: str, chance: float, seed: int = 0) -> None:
        """A cell that ended well, its answers right with a chance; the first wrong answer is malformed."""
        spec = self.experiment.systems[system]
        count = min(spec.max_questions or 10**9, self.experiment.profile.tasks[task])
        generator = np.random.default_rng([seed, *f"{system}{task}".encode()])  # the same draws in every context
        answers, rows, malformed = [], [], 0
        for index, draw in enumerate(generator.random(count)):
            name, right = f"{task}-{index:04d}", draw < chance
            routed, cited = right or draw < chance + 0.05, right or draw < chance + 0.02
            malformed += not right
            status = "ok" if right or malformed > 1 else "malformed_retrieval"
            routes = {"layer2": [index, 999], "layer3": [index]} if routed else {"layer2": [999], "layer3": [998]}
            answers.append(
                Answer(
                    name,
                    "x",
                    [index] if cited else [],
                    routes,
                    1,
                    90,
                    8,
                    0.01,
                    0.05,
                    {"route": 0.01, "decode": 0.04},
                    status=status,
                )
            )
            metrics = {"accuracy": float(right)}
            if system.startswith("msa"):
                metrics |= {
                    "recall@1/layer2": float(right),
                    "recall@16/layer2": float(routed),
                    "recall@16/layer3": float(routed),
                    "citation_recall": float(cited),
                }
            if system.startswith("rag"):
                metrics[f"recall@16/{system.removeprefix('rag_')}"] = float(routed)
            rows += [
                dict(system=system, task=task, context=context, seed=seed, question_id=name, metric=metric, value=value)
                for metric, value in metrics.items()
            ]
        folder = self.paths.cell(system, task, context, seed)
        write_predictions(answers, folder / "predictions.jsonl")
        write_table("scores", rows, folder / "scores.parquet")
        self.run(
            system,
            task,
            context,
            "ok",
            seed,
            n=count,
            failures=int(malformed > 0),
            wall_s=2.0 + 40 * (system == "msa"),
            ingest_s=0.1,
        )

    def run(self, system: str, task: str, context: str, status: str, seed: int = 0, **numbers: float) -> None:
        """run.json of a cell."""
        record = {
            "status": status,
            "reason": "" if status == "ok" else "the system takes 16,384 tokens at most",
            **dict.fromkeys(
                (
                    "n",
                    "failures",
                    "ingest_s",
                    "wall_s",
                    "build_s",
                    "peak_host_bytes",
                    "peak_device_bytes",
                    "index_bytes",
                )
            ),
            **numbers,
            "seed": seed,
            "threads": 2,
            "inputs": {
                "config": "c" * 64,
                "code": "d" * 64,
                "weights": "e" * 64,
                "index": None,
                "corpus": "f" * 64,
                "seed": seed,
            },
            "versions": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6"},
            "hardware": {
                "platform": "Linux",
                "cpu": "A processor",
                "cores": 2,
                "memory_bytes": 8_000_000_000,
                "gpus": [],
            },
            "ended": "2026-04-01T12:00:00+00:00",
        }
        write_json(record, self.paths.cell(system, task, context, seed) / "run.json")

    def latency(self, system: str, slope: float) -> None:
        """latency.json with a total time that grows as memory to a power."""
        contexts = {}
        for context in self.experiment.profile.contexts:
            if system == "full_attention" and context != "16K":
                contexts[context] = {"status": "unsupported_context", "n": 0}
                continue
            total = 0.02 * (self.experiment.contexts[context] / 16384) ** slope
            quantiles = {"median": total, "p90": 1.3 * total}
            contexts[context] = {
                "status": "ok",
                "n": 4,
                "total_s": quantiles,
                "first_token_s": {name: value / 3 for name, value in quantiles.items()},
                "stage_s": {"route": 0.6 * total, "decode": 0.4 * total},
                "peak_host_bytes": int(4e8 + 900 * self.experiment.contexts[context] * slope),
                "index_bytes": int(300 * self.experiment.contexts[context]),
            }
        write_json(
            {"system": system, "task": "scaling_facts", "threads": 2, "contexts": contexts}, self.paths.latency(system)
        )

    def training(self, model: str, routed: bool) -> None:
        """A training log of two phases."""
        folder = self.paths.model(model)
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for step in range(200):
            entry = {
                "step": step,
                "phase": "warm-up" if step < 40 else "joint",
                "tokens": 4000,
                "seconds": step * 0.6,
                "learning_rate": 0.02,
                "lm_loss": 6 * np.exp(-step / 60) + 0.3,
                "loss": 1.0,
            }
            if routed:
                entry |= {
                    "aux_loss": 3 * np.exp(-step / 40),
                    "recall@1/layer2": 1 - np.exp(-step / 30),
                    "recall@1/layer3": 1 - np.exp(-step / 45),
                }
            lines.append(json.dumps(entry))
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n")

    def grow(self) -> None:
        """Everything: full attention stops after 16K, one cell is out of memory, one has not run."""
        for task in self.experiment.profile.tasks:
            self.prepare(task)
        for system, task, context in Evidence(self.experiment, self.paths).cells():
            needle, scaling, hop, decay = STRENGTH[system]
            if system == "full_attention" and context != "16K":
                self.run(system, task, context, "unsupported_context")
            elif (system, task, context) == ("rag_dense", "niah_prose_mk3", "1M"):
                self.run(system, task, context, "out_of_memory")
            elif (system, task, context) != ("rag_bm25", "two_hop", "1M"):
                strength = {"scaling_facts": scaling, "two_hop": hop}.get(
                    task, needle - (0.3 if task == "niah_prose_mk3" else 0)
                )
                self.cell(
                    system, task, context, strength * (1 - decay * np.log10(self.experiment.contexts[context] / 16384))
                )
        for system, slope in (("rag_bm25", 1.0), ("rag_dense", 0.7), ("msa", 0.6), ("full_attention", 1.0)):
            self.latency(system, slope)
        for model in self.experiment.profile.models:
            self.training(model, routed=model == "msa")


def plant(folder: Path, **changes) -> Tree:
    """An empty tree with a copy of the configuration and the toy profile in it; ``changes`` replace profile keys."""
    configs = folder / "configs"
    shutil.copytree(DIRECTORY, configs, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (configs / "profiles" / "toy.yaml").write_text(yaml.safe_dump({**TOY, **changes}, sort_keys=False))
    return Tree(folder / "results", configs)


@pytest.fixture
def new_tree(tmp_path: Path) -> Callable[..., Tree]:
    """Makes an empty tree; keyword arguments replace keys of the toy profile."""
    return lambda **changes: plant(tmp_path, **changes)


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The full tree, made once; tests only read it."""
    tree = plant(tmp_path_factory.mktemp("grown"))
    tree.grow()
    return tree


@pytest.fixture(scope="session")
def evidence(grown: Tree) -> Evidence:
    """The full tree as the report reads it."""
    return grown.evidence()
