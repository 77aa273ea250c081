"""What a system is: the protocol, what it may open, and how it says that a cell is beyond it.

A system is one module, named by ``kind`` in configs/systems.yaml (``bm25`` or ``mypackage.mysystem``), with

``make(spec: SystemSpec, resources: Resources) -> System``
    opens it. Where the entry says ``reads_gold``, ``make`` also gets ``gold``, a mapping from question id to gold
    document ids that the driver refills before each cell.
``build_index(spec: IndexSpec, resources: IndexResources, directory: Path) -> dict | None``
    optional: indexes a corpus once into an empty directory, for entries of ``indexes``; returns what served models cost.
``estimate_cell(spec, config, work, dtype) -> Estimate``, ``estimate_index(spec, config, documents, dtype) -> Estimate``
    optional: what a cell or an index costs before it runs (baselines.estimate), from the model's shape and the
    workload (baselines.workload); without them it is not estimated and never refused.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from configs.errors import UserError
from configs.load import build, module_name
from configs.records import Answer, CorpusView, Question

STATUSES = ("ok", "out_of_memory", "unsupported_context", "timeout", "unavailable_data")


class CellStatus(Exception):
    """An expected failure of a whole cell, shown in the report; ``status`` is one of ``STATUSES`` but "ok"."""

    def __init__(self, status: str, reason: str) -> None:
        if status not in STATUSES[1:]:
            raise ValueError(f"{status!r} is not a cell status (known: {', '.join(STATUSES[1:])})")
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Resources:
    """What a system may open: checkpoint and index directories, or None where its entry names none."""

    model: Path | None
    index: Path | None
    index_model: Path | None  # the checkpoint that made the index, for embedding questions
    threads: int
    seed: int
    reranker: Path | None = None  # the checkpoint that reranks
    cell_limit_s: float | None = None  # planned seconds above which a system that plans refuses a cell


@dataclass(frozen=True)
class IndexResources:
    """What ``build_index`` may open. ``corpus`` is the corpus.parquet of the whole tail."""

    model: Path | None
    corpus: Path
    threads: int


class System(ABC):
    """An opened system. It answers any question as it would with an index rebuilt for ``view.documents(question)``."""

    max_context_tokens: int | None = None  # above it a cell is `unsupported_context` without a try
    reads_everything: bool = False  # its prompts hold the text of the whole memory, which their audit looks for
    reads_notes: bool = False  # its prompts hold what it wrote itself, not the text of documents that it cites

    def check_context(self, context_tokens: int) -> None:
        """Raise `unsupported_context` where the system states a limit below a context."""
        if self.max_context_tokens is not None and context_tokens > self.max_context_tokens:
            raise CellStatus("unsupported_context", f"the system takes {self.max_context_tokens:,} tokens at most")

    def ingest(self, view: CorpusView) -> None:
        """Do what a view costs once, before its questions; the driver reports the time as ``ingest_s``."""

    def memory_bytes(self, view: CorpusView) -> int:
        """Bytes this system keeps for a view beside its index directory."""
        return 0

    def kernels(self) -> dict[str, str] | None:
        """Which implementation every operation takes, where a system may choose; after :meth:`ingest`."""
        return None

    @abstractmethod
    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        """Answer a batch, in order.

        Raises:
            CellStatus: the cell is beyond this system.
        """

    def take_usage(self) -> dict[str, Any]:
        """What served models cost since this was last asked, by their role: requests, tokens, dollars (configs.endpoint.Usage)."""
        return {}

    def close(self) -> None:
        """Free what was opened."""


def load_module(kind: str, where: str) -> ModuleType:
    """Import the module that ``kind`` names.

    Raises:
        UserError: no such module; ``where`` (file and key) leads the message.
    """
    name = module_name(kind, "baselines")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{where}: kind '{kind}': there is no module {name}; name a file of baselines/ or a dotted module"
        ) from None


def read_params(cls: type, params: dict[str, Any], where: str) -> Any:
    """The checked parameters of an entry; ``where`` (file and key) leads the message of a bad one.

    Raises:
        UserError: an unknown, missing, ill-typed or, by the dataclass's own check, impossible parameter.
    """
    try:
        return build(cls, params, where)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None
