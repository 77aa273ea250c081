"""The path grammar of ``results/``: where each stage finds its input and leaves its output."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msa_base.errors import UserError

DIRECTORY = Path(__file__).parent.parent / "configs"  # of the checkout
SEAL = "seal.json"  # of a directory that one stage makes (msa_base.seal)


@dataclass(frozen=True)
class Paths:
    """Every path of one profile (results/README.md says what each holds); ``root`` is ``results/{profile}``."""

    root: Path

    @classmethod
    def of(cls, profile: str, results: Path | str = "results") -> Paths:
        """The paths of a profile under a results directory.

        Raises:
            UserError: a brace in its path, which Snakemake takes for a wildcard, or bytes that are no UTF-8.
        """
        if wrong := re.search("[\ud800-\udfff]", str(results)):
            what = f"its path is no UTF-8 ({wrong[0]!a}), which Parquet files need"
            raise UserError(f"--results {str(results)!a}: {what}; name another directory")
        if set("{}") & set(str(results)):
            raise UserError(f"--results {results}: a path with a brace cannot be a workflow's; name another directory")
        return cls(Path(results) / profile)

    def share(self, shared: Mapping[str, str]) -> None:
        """Link folders that are another profile's (msa_base.load.shared: folder -> profile), so that what that one
        made is used, and what is made here is there for that one.

        A folder with results of this profile's own stays. A link that no longer holds goes.
        """
        for place in ("_data", "_data/_samples", "_models"):
            for link in (self.root / place).glob("*"):
                if link.is_symlink() and str(link.relative_to(self.root)) not in shared:
                    link.unlink()
        for folder, profile in shared.items():
            link, target = self.root / folder, self.root.parent / profile / folder
            target.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            elif link.is_dir() and not any(link.iterdir()):
                link.rmdir()
            if not link.exists():
                link.symlink_to(os.path.relpath(target, link.parent))

    def not_shared(self, shared: Mapping[str, str]) -> list[str]:
        """The folders that :meth:`share` would link now."""
        return [folder for folder in shared if not (place := self.root / folder).is_dir() or not any(place.iterdir())]

    @property
    def prose(self) -> Path:
        """Parquet corpus table of the machine's documentation prose, with its train / evaluation split."""
        return self.root / "_data" / "prose"

    @property
    def tokenizer(self) -> Path:
        return self.root / "_data" / "tokenizer" / "tokenizer.json"

    def samples(self, name: str) -> Path:
        return self.root / "_data" / "_samples" / name

    def corpus(self, name: str) -> Path:
        return self.root / "_data" / "_corpora" / name / "corpus.parquet"

    def prepared(self, task: str, context: str) -> Path:
        return self.root / "_data" / task / context

    def model(self, name: str) -> Path:
        return self.root / "_models" / name

    def index(self, name: str, corpus: str) -> Path:
        return self.root / "_indexes" / name / corpus

    def task(self, system: str, task: str) -> Path:
        """Directory of all cells of a system at a task, and of the seals over them."""
        return self.root / system / task

    def cell(self, system: str, task: str, context: str, seed: int) -> Path:
        return self.root / system / task / context / f"seed{seed}"

    def judge_replies(self, judge: str) -> Path:
        return self.root / "_judges" / judge

    def probes(self, task: str) -> Path:
        """The seal over what the judges gave to known answers of a task."""
        return self.root / "_judges" / "_probes" / task / "probes.json"

    def latency(self, system: str) -> Path:
        return self.root / system / "latency.json"

    def tuning(self, system: str) -> Path:
        return self.root / "_tuning" / f"{system}.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.parquet"

    @property
    def mirror(self) -> Path:
        return self.root / "wandb" / "tracked.json"

    @property
    def report(self) -> Path:
        return self.root / "report"
