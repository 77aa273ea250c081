"""The path grammar of ``results/``: where each stage finds its input and leaves its output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Every path of one profile. ``root`` is ``results/{profile}``; tests put it elsewhere."""

    root: Path

    @classmethod
    def of(cls, profile: str, results: Path | str = "results") -> Paths:
        """The paths of a profile under a results directory."""
        return cls(Path(results) / profile)

    @property
    def prose(self) -> Path:
        """Parquet corpus table of the machine's documentation prose, with its train / evaluation split."""
        return self.root / "_data" / "prose"

    @property
    def tokenizer(self) -> Path:
        """Hugging Face tokenizers file of the profile."""
        return self.root / "_data" / "tokenizer" / "tokenizer.json"

    def samples(self, name: str) -> Path:
        """Directory with banks.parquet and samples.parquet."""
        return self.root / "_data" / "_samples" / name

    def corpus(self, name: str) -> Path:
        """The corpus.parquet of a tail."""
        return self.root / "_data" / "_corpora" / name / "corpus.parquet"

    def prepared(self, task: str, context: str) -> Path:
        """Directory with questions.parquet, overlays.parquet, gold.parquet and view.json of a task at a context."""
        return self.root / "_data" / task / context

    def model(self, name: str) -> Path:
        """Checkpoint directory of a trained model."""
        return self.root / "_models" / name

    def index(self, name: str, corpus: str) -> Path:
        """Directory of an index over a corpus."""
        return self.root / "_indexes" / name / corpus

    def cell(self, system: str, task: str, context: str, seed: int) -> Path:
        """Directory with predictions.jsonl, run.json, judgments.jsonl and scores.parquet of one cell."""
        return self.root / system / task / context / f"seed{seed}"

    def judge_replies(self, judge: str) -> Path:
        """Directory where the replies of a judge are kept, by the hash of what it was asked."""
        return self.root / "_judges" / judge

    def latency(self, system: str) -> Path:
        """latency.json of a system: fresh-process measurements over the contexts."""
        return self.root / system / "latency.json"

    def tuning(self, system: str) -> Path:
        """The record of a system's search on the tuning split."""
        return self.root / "_tuning" / f"{system}.json"

    @property
    def summary(self) -> Path:
        """One row a cell and metric."""
        return self.root / "summary.parquet"

    @property
    def report(self) -> Path:
        """Directory of the HTML report and its files."""
        return self.root / "report"
