"""What a system is: its module's hooks, what it may open, and how it says that a cell is beyond it.

A system is one module, named by ``kind`` in configs/systems.yaml (``bm25`` or ``mypackage.mysystem``). :class:`Plugin`
declares every hook that a driver, a check or the planner asks for; ``make`` alone is needed. The smallest system is::

    def make(spec: SystemSpec, resources: Resources) -> System: ...
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from msa.model.config import ModelConfig
from msa.model.cost import Cost, Documents
from msa_base.errors import UserError
from msa_base.kinds import import_kind
from msa_base.records import Answer, CorpusView, Question
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.validate import build

STATUSES = ("ok", "out_of_memory", "unsupported_context", "timeout", "unavailable_data", "interrupted")
REFUSED = "planned, not run"  # how the reason of a cell begins that the plan refused
BATCH = 128  # questions that a driver hands to a system at a time


class CellStatus(Exception):
    """An expected failure of a whole cell, shown in the report; ``status`` is one of ``STATUSES`` but "ok"."""

    def __init__(self, status: str, reason: str) -> None:
        if status not in STATUSES[1:]:
            raise ValueError(f"{status!r} is not a cell status (known: {', '.join(STATUSES[1:])})")
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason

    @property
    def outcome(self) -> dict[str, Any]:
        """The fields of a record (msa_base.stage_records.Outcome)."""
        return {"status": self.status, "reason": self.reason, "refused": isinstance(self, Refused)}


class Refused(CellStatus):
    """A cell or an index that is tried anew at the next run: a plan refused it before it began, a process that it
    ran on was ended, or a server did not reply in time.
    """


def planned_failure(status: str, reason: str) -> CellStatus:
    """What a plan says of a cell or an index that cannot run; where data are missing, a new plan says the same."""
    return CellStatus(status, reason) if status == "unavailable_data" else Refused(status, reason)


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
    models: Mapping[str, Any] = MappingProxyType({})  # those that it opened, by role; it reads itself without `reader`

    def check_context(self, context_tokens: int) -> None:
        """Raise `unsupported_context` where the system states a limit below a context."""
        if self.max_context_tokens is not None and context_tokens > self.max_context_tokens:
            raise CellStatus("unsupported_context", f"the system takes {self.max_context_tokens:,} tokens at most")

    def enter(self, task: str, context: str, questions: Sequence[Question], view: CorpusView) -> None:
        """Be told which cell comes next and all that it asks. A system that answers by itself needs none of it."""

    def ingest(self, view: CorpusView) -> None:
        """Do what a view costs once, before its questions; the driver reports the time as ``ingest_s``."""

    def memory_bytes(self, view: CorpusView) -> int:
        """Bytes this system keeps for a view beside its index directory."""
        return 0

    def kernels(self) -> dict[str, str] | None:
        """Implementation and precision of every operation, where a system may choose; asked after :meth:`ingest`."""
        precision = sys.modules.get("msa.ops.precision")  # a system that computes nothing here has not loaded it
        return (precision.chosen() or None) if precision else None

    @abstractmethod
    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        """Answer a batch, in order; a CellStatus where the cell is beyond this system."""

    def over(self, view: CorpusView) -> System:
        """This system over another view: what answers on once a memory that is being asked was edited.

        It shares models, and what is known of documents that stay. This one still answers over its own view, so a
        question reads one view from its beginning to its end. Both may be asked by many threads at once. It keeps no
        answers. Raises UserError where a kind of system, or its parameters, cannot.
        """
        raise UserError(
            f"systems.yaml: kind '{type(self).__module__.removeprefix('baselines.')}' cannot be edited while it answers"
            " (it has no `over`); name a system of kind msa_system, bm25 or dense"
        )

    def pop_usage(self) -> dict[str, Any]:
        """By role, since this was last asked: what served models cost (msa_base.endpoint.Usage), and what was lost or
        repaired of what models replied (msa_base.replies.Losses).
        """
        return pop_usage(self.models)

    def close(self) -> None:
        """Free what was opened."""


def pop_usage(models: Mapping[str, Any]) -> dict[str, Any]:
    """:meth:`System.pop_usage` of some models, and of what asks them."""
    used = {role: model.pop_usage() for role, model in models.items() if hasattr(model, "pop_usage")}
    return {role: found for role, found in used.items() if found}


@dataclass(frozen=True)
class Workload:
    """What one cell asks of a system; token counts are means over its questions."""

    questions: int
    base: Documents  # of the tail that the cell sees
    overlay: Documents  # of all ``overlays``
    overlays: int
    question_tokens: float = 32  # what routes, or is embedded
    request_tokens: float = 40  # what asks for the answer behind fetched text
    answer_tokens: float = 16
    rounds: float = 1
    prompt_tokens: float | None = None  # what a question's prompts held in all its rounds, once the cell ran
    longest_tokens: float | None = None  # the most that any question's prompts held, once the cell ran
    fresh: bool = True  # the overlays are met here for the first time
    source: str = "assumed"  # what the counts rest on: `assumed`, `prepared` (the cell's data) or `ran` (its answers)
    corpus: Documents | None = None  # the whole tail. Every cell reads it, however little of it is its ``base``.

    @property
    def context_tokens(self) -> float:
        """Tokens that one question sees."""
        return self.base.tokens + self.overlay.tokens / max(1, self.overlays)

    @property
    def document_tokens(self) -> float:
        """Tokens of a document on average."""
        return (self.base.tokens + self.overlay.tokens) / max(1, len(self.base) + len(self.overlay))


@dataclass(frozen=True)
class MemoryPart:
    """Bytes of one kind on a tier: device, host, disk, or auto (the fastest that has room).

    ``sharded`` parts are divided among the devices, the others stand on each. A ``stored`` part lies on disk already
    and takes no more of it. A copy of it in memory keeps its pages there too, for as long as nothing else needs them.
    """

    name: str
    bytes: float
    tier: str
    sharded: bool = False
    stored: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a cell or an index costs: bytes by part, and work by stage; ``stages`` is None where no formula is known.

    ``view_bytes`` is what :meth:`System.memory_bytes` will say, where the formula knows it. ``served_tokens`` are those
    that a served reader reads and writes.
    """

    parts: tuple[MemoryPart, ...] = ()
    stages: dict[str, Cost] | None = field(default_factory=dict)
    status: str = "ok"
    reason: str = ""
    view_bytes: float | None = None
    served_tokens: tuple[float, float] = (0.0, 0.0)

    @property
    def flops(self) -> float | None:
        return None if self.stages is None else sum(cost.flops for cost in self.stages.values())


NOT_ESTIMATED = Estimate(stages=None)


@dataclass(frozen=True)
class PlannedCell:
    """What a system's formula costs: entries, the shapes of the models that they name (None: unknown), the workload.

    ``encoder`` is the model of the index. Weights and computation are of ``dtype``.
    """

    spec: SystemSpec
    index: IndexSpec | None
    reader: ModelConfig | None
    encoder: ModelConfig | None
    reranker: ModelConfig | None
    work: Workload
    dtype: str


LACKS = {"make": "opens no system", "build_index": "builds no index", "open_retriever": "ranks no documents"}


@dataclass(frozen=True)
class Plugin:
    """The hooks of a system's module; a hook that the module lacks has the default that stands here."""

    kind: str
    module: ModuleType
    # opens the system; where its entry says ``reads_gold``, with ``gold`` too: gold document ids by question id, which
    # the driver refills before each cell
    make: Callable[..., System] | None = None
    # indexes a corpus once into an empty directory; returns what served models cost, or None
    build_index: Callable[[IndexSpec, IndexResources, Path], dict[str, Any] | None] | None = None
    # ranks documents as a stage of hybrid, rerank or another system (baselines.parts.retrieval)
    open_retriever: Callable[[dict[str, Any], Resources, str], Any] | None = None
    # what a cell costs, before it runs; a cell without an estimate is never refused
    estimate_cell: Callable[[PlannedCell], Estimate] = lambda _: NOT_ESTIMATED
    # what an index costs: by its entry, the shape of its model (None: unknown), the documents, and the precision
    estimate_index: Callable[[IndexSpec, ModelConfig | None, Documents, str], Estimate] = lambda *_: NOT_ESTIMATED
    # bytes by part of a built index, named as ``estimate_index`` names them; a plan compares the two
    index_parts: Callable[[Path], dict[str, int]] = lambda _: {}
    Params: type | None = None  # the dataclass of a system entry's ``params``
    IndexParams: type | None = None  # that of an index entry's
    RetrieverParams: type | None = None  # that of what ``open_retriever`` takes
    NEEDS: tuple[str, ...] = ()  # keys that a system's entry cannot do without: ``model``, ``index``
    INDEX_NEEDS: tuple[str, ...] = ()  # those of an index's entry
    PLANS_TIME: bool = False  # a cell's status depends on the profile's limit: another limit runs it again
    READS_ALL: bool = False  # the whole memory is read anew for every question, so the system is tuned on few

    def need(self, hook: str, where: str) -> Callable[..., Any]:
        """A hook that the entry at ``where`` cannot do without; a UserError where the module has none."""
        found = getattr(self, hook)
        if found is None:
            raise UserError(f"{where}: kind '{self.kind}' {LACKS[hook]}; name a module with {hook}")
        return found

    def open(self, spec: SystemSpec, resources: Resources, gold: Mapping[str, list[int]]) -> System:
        """Open a system by its entry; only one that ``reads_gold`` gets the gold."""
        system = self.need("make", "systems.yaml")(spec, resources, **({"gold": gold} if spec.reads_gold else {}))
        for model in getattr(system, "models", {}).values():
            if hasattr(model, "set_replicate"):  # a served one, which may sample
                model.set_replicate(resources.seed)
        return system


def load_plugin(kind: str, where: str) -> Plugin:
    """The hooks of the module that ``kind`` names; ``where`` (file and key) leads the message where there is none."""
    module = import_kind(kind, "baselines", where)
    hooks = [item.name for item in fields(Plugin)[2:] if hasattr(module, item.name)]
    return Plugin(kind, module, **{name: getattr(module, name) for name in hooks})


def params_of(cls: type, spec: SystemSpec | IndexSpec) -> Any:
    """The checked parameters of an entry of systems.yaml."""
    return build(cls, spec.params, f"systems.yaml: params of kind '{spec.kind}'")
