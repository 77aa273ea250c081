"""A hand-made results tree: systems of known strength, expected failures, latencies and training logs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from msa_base.load import Experiment, load
from msa_base.paths import DIRECTORY, SEAL, Paths
from msa_base.records import Answer
from msa_base.seal import MadeFrom, write_seal
from msa_base.stage_records import ContextLatency, LatencyRecord, Quantiles, RunRecord, ViewRecord
from msa_base.tables import write_predictions, write_table
from reports.build import build
from reports.evidence import Evidence
from reports.published import reference
from reports.summarise import summarise
from tests.evaluated import MACHINE, write_run

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
    "samples": {name: {"bank_tokens": 800, "banks": 1, "questions": 1} for name in ("bare", "short", "mixed", "long")},
    "latency": {"task": "scaling_facts", "questions": 4},
}
# chance of a right answer on needles, scaling, two-hop at 16K, and the part lost per factor of ten in memory
STRENGTH = {
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
        self.summarise(evidence)
        return evidence

    def summarise(self, evidence: Evidence) -> None:
        """Write summary.parquet and its seal."""
        write_table("summary", map(asdict, summarise(evidence)), self.paths.summary)
        write_seal(self.paths.summary.with_suffix(".json"), MadeFrom(), [self.paths.summary.name])

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
            if task in NEEDLES:  # gold document i of 24 lies at a depth of i / 24
                view = ViewRecord(
                    made_from=MadeFrom(), corpus="prose", base_documents=24, context_tokens=16384, base_tokens=240
                )
                view.write(folder / "view.json")
        if task in NEEDLES and not self.paths.corpus("prose").exists():
            documents = [{"doc_id": index, "text": "words", "num_tokens": 10} for index in range(24)]
            write_table("corpus", documents, self.paths.corpus("prose"))

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
        self.seal_scores(system, task)

    def seal_scores(self, system: str, task: str) -> None:
        """scores.json over what is there of a task."""
        directory = self.paths.task(system, task)
        scored = sorted(directory.glob("*/*/scores.parquet"))
        answers = {
            str(path.parent.relative_to(self.paths.root)): RunRecord.open(path.parent / "run.json").answers
            for path in scored
        }
        names = [str(path.relative_to(directory)) for path in scored]
        write_seal(directory / "scores.json", MadeFrom().of(self.paths.root, **answers), names)

    def run(self, system: str, task: str, context: str, status: str, seed: int = 0, **numbers: Any) -> None:
        """run.json of a cell."""
        cell = self.paths.cell(system, task, context, seed)
        data = {"_models/reader": "e" * 64, "_data/_corpora/prose/corpus.parquet": "f" * 64, "seed": "0" * 64}
        write_run(
            cell,
            status,
            made_from=MadeFrom(code={"baselines.bm25": "d" * 16}, config={"system": "c" * 16}, data=data),
            profile=self.profile,
            system=system,
            task=task,
            context=context,
            context_tokens=self.experiment.contexts[context],
            seed=seed,
            reason="" if status == "ok" else "the system takes 16,384 tokens at most",
            **numbers,
        )

    def latency(self, system: str, slope: float) -> None:
        """latency.json with a total time that grows as memory to a power."""
        contexts = {}
        for context in self.experiment.profile.contexts:
            size = self.experiment.contexts[context]
            if system == "full_attention" and context != "16K":
                contexts[context] = ContextLatency(context_tokens=size, status="unsupported_context")
                continue
            total = 0.02 * (size / 16384) ** slope
            contexts[context] = ContextLatency(
                context_tokens=size,
                status="ok",
                n=4,
                total_s=Quantiles(median=total, p90=1.3 * total),
                first_token_s=Quantiles(median=total / 3, p90=1.3 * total / 3),
                stage_s={"route": 0.6 * total, "decode": 0.4 * total},
                peak_host_bytes=int(4e8 + 900 * size * slope),
                index_bytes=300 * size,
            )
        record = LatencyRecord(
            made_from=MadeFrom(),
            profile=self.profile,
            system=system,
            task="scaling_facts",
            contexts=contexts,
            threads=2,
            versions={},
            hardware=MACHINE,
        )
        record.write(self.paths.latency(system))

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
        write_seal(folder / SEAL, MadeFrom(), ["train.jsonl"])

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


@pytest.fixture(scope="session")
def toy_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ledger.yaml with the toy profile beside tiny wherever a claim of systems that it has names that."""
    path = tmp_path_factory.mktemp("reference") / "ledger.yaml"
    path.write_text(reference.LEDGER.read_text().replace("profiles: [tiny", "profiles: [toy, tiny"))
    return path


@pytest.fixture(scope="package", autouse=True)
def toy_claims(toy_ledger: Path) -> Iterator[None]:
    """Claims are for the toy profile too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "LEDGER", toy_ledger)
        yield


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


@pytest.fixture(scope="package")
def built(grown, evidence) -> tuple[str, str, Path]:
    """The full tree's one-screen text, its page and the report's directory."""
    text = build(evidence)
    return text, (grown.paths.report / "index.html").read_text(), grown.paths.report
