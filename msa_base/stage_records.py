"""The records that stages leave beside their outputs, where they stand, and which of them no longer hold.

Each is a seal (msa_base.seal) with the numbers of its stage. results/README.md lists them for readers of the files.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import psutil
from pydantic import Field

from msa_base.errors import UserError
from msa_base.seal import Model, Seal, file_digest, keep_digests

Status = Literal["ok", "out_of_memory", "unsupported_context", "timeout", "unavailable_data", "interrupted"]


class Chunking(Model):
    """How the text of a memory was cut into documents."""

    strategy: str
    document_tokens: int


class Floor(Model):
    """The accuracy of a way to answer without the memory."""

    value: float
    of: str


class ViewRecord(Seal):
    """view.json of a task at a context. It seals questions, overlays, gold and grades."""

    corpus: str
    base_documents: int  # of the tail; the view's prefix of it
    base_tokens: int = 0
    context_tokens: int
    chunking: Chunking | None = None  # null where there is nothing to ask
    source: dict[str, Any] | None = None  # of a set: form, repository, revision, sha256 of each file
    left_out: dict[str, int] | None = None  # questions of a set, by reason
    unavailable: str | None = None  # why there is nothing to ask, on a machine without the data
    floor: Floor | None = None


class HardwareRecord(Model):
    """The machine of a record."""

    platform: str
    cpu: str
    cores: int  # that the process might use
    memory_bytes: int
    gpus: list[str]


class Outcome(Model):
    """How a cell, an index or a measurement ended.

    ``refused`` says that it is tried anew at the next run: a plan refused it before it began, a process that it ran
    on was ended (status `interrupted`), or a server did not reply in time (`timeout`).
    """

    status: Status
    reason: str = ""
    refused: bool = False


class Computed(Seal):
    """A seal of what a machine computed, and the machine."""

    threads: int
    versions: dict[str, str]
    hardware: HardwareRecord


class Measured(Outcome):
    """What a cell or a measurement took of the machine; seconds and bytes, null where it failed before."""

    context_tokens: int
    n: int | None = None
    ingest_s: float | None = None
    index_bytes: int | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    kernels: dict[str, str] | None = None


class Audit(Model):
    """Sampled prompts of a cell: how many were checked, and how often each problem was met."""

    checked: int
    problems: dict[str, int]


class RunRecord(Computed, Measured):
    """run.json of a cell. It seals predictions.jsonl and prompts.jsonl, which a failed cell has not."""

    KEPT: ClassVar[bool] = False  # Snakemake does not remove cells: they are no output of its rule

    profile: str
    system: str
    task: str
    context: str
    chunking: Chunking | None = None
    seed: int
    failures: int | None = None
    truncated: int | None = None
    left_out: int | None = None
    audit: Audit | None = None
    build_s: float | None = None
    wall_s: float | None = None
    usage: dict[str, dict[str, Any]] | None = None  # by role: requests, kept, retries, tokens, dollars
    ended: str

    @property
    def answers(self) -> list[str]:
        """What scores are made of: how the cell ended, and the digest of its predictions."""
        predictions = self.files.get("predictions.jsonl")
        return [self.status, predictions.sha256 if predictions else ""]


class IndexRecord(Computed, Outcome):
    """index.json of an index over a corpus. It seals what the index's module wrote."""

    index: str
    corpus: str
    kind: str
    build_s: float | None = None
    peak_host_bytes: int | None = None
    index_bytes: int = 0
    usage: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Quantiles(Model):
    """Median and 90th percentile."""

    median: float
    p90: float


class ContextLatency(Measured):
    """One context of a system, measured in a process of its own."""

    first_token_s: Quantiles | None = None
    total_s: Quantiles | None = None
    timings_s: dict[str, list[float]] = Field(default_factory=dict)  # every question's first_token_s and total_s
    stage_s: dict[str, float] = Field(default_factory=dict)
    open_s: float | None = None


class LatencyRecord(Computed):
    """latency.json of a system, by context."""

    profile: str
    system: str
    task: str
    batch: int = 1
    contexts: dict[str, ContextLatency]

    @property
    def refused(self) -> bool:
        """Whether a plan refused any context."""
        return any(context.refused for context in self.contexts.values())


class Trial(Model):
    """One combination of a search. ``correct`` and ``recall`` are null where the system refused it."""

    params: dict[str, Any]
    status: Status
    correct: float | None = None
    recall: float | None = None
    seconds: float


class TuningRecord(Computed):
    """_tuning/{system}.json: every combination of an entry's ``search`` on the tuning split."""

    profile: str
    system: str
    split: str
    questions: int
    tokens: int  # that a question's documents hold, on average
    rows: list[Trial]
    best: dict[str, Any] | None
    entry: dict[str, Any]  # the values of today's entry


class MirroredSegment(Model):
    """A directory of a mirrored run: up to which point of the run it reaches, and whether it was sent."""

    directory: str
    rows: int
    is_sent: bool = False


class MirroredRun(Model):
    """A run of the mirror: the digest of its data, and where it was written."""

    digest: str
    segments: list[MirroredSegment]


class MirrorRecord(Seal):
    """wandb/tracked.json: the runs by name, and the word in their ids. It seals the segments that were not sent."""

    FORMAT: ClassVar[int] = 2

    word: str
    runs: dict[str, MirroredRun]


class JudgedRecord(Seal):
    """judgments.json and probes.json: what judging took, by judge."""

    usage: dict[str, dict[str, Any]]


# where the seals of a results directory stand; cells come before the list of them
DATA_FILES = (".parquet", ".safetensors", ".jsonl")  # of which a seal that names one holds the digest
RECORDS: dict[str, type[Seal]] = {
    "[!_]*/*/*/seed*/run.json": RunRecord,
    "[!_]*/*/cells.json": Seal,
    "[!_]*/*/judgments.json": JudgedRecord,
    "_judges/_probes/*/probes.json": JudgedRecord,
    "[!_]*/*/scores.json": Seal,
    "[!_]*/latency.json": LatencyRecord,
    "_data/[!_]*/*/view.json": ViewRecord,
    "_data/*/seal.json": Seal,
    "_data/_*/*/seal.json": Seal,
    "_models/*/seal.json": Seal,
    "_indexes/*/*/index.json": IndexRecord,
    "_tuning/*.json": TuningRecord,
    "report/seal.json": Seal,
    "summary.json": Seal,
}


def records(root: Path) -> dict[Path, type[Seal]]:
    """The seals of a results directory, and what kind of record each is."""
    found = ((path, kind) for pattern, kind in RECORDS.items() for path in sorted(root.glob(pattern)))
    return {path: kind for path, kind in found if not path.name.startswith(".")}


def broken(root: Path) -> dict[Path, str]:
    """The seals that do not hold, and why; the list of an evaluation's cells falls with any of them."""
    found: dict[Path, str] = {}
    for path, kind in records(root).items():
        try:
            seal = kind.open(path)
            if lost := [name for name in seal.files if path.parent / name in found]:
                found[path] = f"{path}: the seal of {lost[0]} does not hold"
        except UserError as error:
            found[path] = str(error)
    if root.exists():
        keep_digests(root)
    return found


def sweep(root: Path) -> None:
    """Before a run: remove what processes that were killed had half written, and bring seals that are dated in the
    future (a clock was set back) to the present, or their stages would run again until the clock has caught up.
    """
    for path in root.rglob(".*.tmp") if root.exists() else ():
        process = path.name.split(".")[-2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    now_s = time.time()
    for path in records(root):
        if path.stat().st_mtime > now_s:
            os.utime(path, (now_s, now_s))


def is_stale(root: Path, seal: Seal) -> bool:
    """Whether a file that a result was made from holds something else today, whatever its date says."""
    files = {root / name: digest for name, digest in seal.made_from.data.items() if Path(name).suffix in DATA_FILES}
    return any(path.is_file() and file_digest(path) != digest for path, digest in files.items())


def refused(root: Path) -> list[Path]:
    """Outputs of rules to make again whatever their dates say: what is tried anew at every run (:class:`Outcome`), and
    what is stale.
    """
    found = set()
    for path, kind in records(root).items():
        with suppress(UserError):
            seal = kind.read(path)
            if getattr(seal, "refused", False) or is_stale(root, seal):
                found.add(path.parents[2] / "cells.json" if kind is RunRecord else path)
    return sorted(found)
