"""What the entries of configs/ may say: one frozen dataclass for each kind of entry; msa_base.validate checks them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, StringConstraints, Tag

from msa_base.errors import UserError
from msa_base.validate import Count, Distinct, Name, Names, Positive, Seconds, Seed, Share, Text, Threads, Weight

Role = Literal["needles", "scaling", "multi_hop", "qa", "ranking", "editing", "scenario"]
ContextName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9]*$")]


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus (the shared tail of some tasks). ``kind`` is a module with ``make_corpus``; ``params`` are its own."""

    kind: Text
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskSpec:
    """A task. ``kind`` is a module of ``tasks`` (or a dotted module anywhere); ``metric`` a function of tasks.metrics.

    ``role`` says which tables, figures and claims of the report the task takes part in, whatever module makes it.
    """

    kind: Text
    corpus: str  # an entry of ``corpora``
    metric: Text
    role: Role
    title: Text
    params: dict[str, Any] = field(default_factory=dict)
    metrics: Names = field(default_factory=list)  # further ones, each scored under its own name


@dataclass(frozen=True)
class TaskFile:
    """tasks.yaml."""

    corpora: dict[Name, CorpusSpec]
    tasks: dict[Name, TaskSpec]


@dataclass(frozen=True)
class IndexSpec:
    """An index over a corpus, built once and shared by the systems that name it."""

    kind: Text
    model: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SystemSpec:
    """A system. ``kind`` is a module of ``baselines`` (or a dotted module anywhere).

    ``model`` (the reader), ``reranker`` and ``index`` name entries of models.yaml and of ``indexes``; ``max_questions``
    caps the questions of a cell for a system that pays for a rebuilt context with each of them. ``search`` maps
    parameters to the values that baselines.drivers.tune tries.
    """

    kind: Text
    title: Text
    model: str | None = None
    index: str | None = None
    reranker: str | None = None
    max_questions: Count | None = None
    reads_gold: bool = False
    params: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Annotated[list[Any], Field(min_length=1), Distinct]] = field(default_factory=dict)

    def predictions(self, task: str, context: str, seed: int) -> Path | None:
        """The file of a cell that was answered elsewhere: the parameter ``predictions``, its placeholders filled."""
        template = self.params.get("predictions")
        if not isinstance(template, str):
            return None
        for name, value in {"task": task, "context": context, "seed": seed}.items():
            template = template.replace(f"{{{name}}}", str(value))
        return Path(template)


@dataclass(frozen=True)
class SystemFile:
    """systems.yaml."""

    systems: dict[Name, SystemSpec]
    indexes: dict[Name, IndexSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """A model that the workflow makes, takes or refers to, as the module that ``kind`` names says.

    ``after`` names the parent model, ``samples`` the training sets that it is made of.
    """

    kind: Text
    after: str | None = None
    samples: Names = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EndpointSpec:
    """A served model. ``body`` is sent with every request as it stands (seed, stop, thinking switched off ...).

    ``revision`` says which weights are behind the name, in your own words: another one is another model, and no reply
    of the first answers for it. ``api_key_env`` names the environment variable that holds the key; prices are dollars
    per million tokens.
    """

    base_url: Annotated[str, StringConstraints(pattern=r"^https?://.")]
    model: Text
    revision: Text | None = None
    api_key_env: Text | None = None
    timeout_s: Seconds = 300.0
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    parallel: Threads = 8  # requests under way at a time
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    top_p: Share = 1.0
    input_usd: Weight | None = None
    output_usd: Weight | None = None
    serve: Text | None = None  # a command that serves it at base_url: a run starts it, unless one listens there
    body: dict[str, Any] = field(default_factory=dict)

    def check_here(self) -> None:
        """Raise a UserError where the key is not set on this machine."""
        _ = self.api_key

    @property
    def api_key(self) -> str:
        """The key. Raises UserError where its environment variable is not set."""
        if self.api_key_env is None:
            return "none"  # servers of one's own ask for none, the client for one
        key, where = (
            os.environ.get(self.api_key_env),
            f"model {self.model}: the environment variable {self.api_key_env}",
        )
        if not key:
            raise UserError(f"{where} is not set; export the key in it")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise UserError(f"{where} holds a space or a letter that no key has; export the key alone")
        return key

    def __post_init__(self) -> None:
        if "@" in urlsplit(self.base_url).netloc:
            raise UserError("base_url holds a name or a password; name a variable of the environment as `api_key_env`")


@dataclass(frozen=True)
class JudgeSpec(EndpointSpec):
    """A served model that judges, and what it is asked for: 0 to 5 points, or yes or no, which count as 5 and 0."""

    rubric: Literal["points", "yes_no"] = "points"


@dataclass(frozen=True)
class LatencySpec:
    """What the latency cells ask: ``questions`` of one task, one at a time, after a warm-up.

    The machine is reserved for them; ``threads`` is how much of it a system uses, the same wherever it is measured.
    """

    task: str
    questions: Count
    threads: Threads = 1


@dataclass(frozen=True)
class LimitsSpec:
    """What one cell or index may take of the machine that runs it; beyond it, it is refused with the plan's figures."""

    host_gb: Positive | None = None  # of 10^9 bytes; none: what the machine has
    disk_gb: Positive | None = None
    cell_hours: Positive | None = None  # as planned
    sequential_hours: Positive | None = None  # of a cell of a system that makes its calls one after another


@dataclass(frozen=True)
class PublishedSpec:
    """Figures that somebody published for this profile, which its plan derives anew beside them."""

    source: Text
    model: str
    context: str
    dtype: Literal["float32", "bfloat16"]
    routing_keys_gb: Positive
    memory_gb: Positive
    training_tokens: Positive


# names of entries; an item such as ``msa: msa_4b`` gives an entry another name
_Entry = Annotated[str, Tag("name")] | Annotated[dict[Name, str], Field(min_length=1, max_length=1), Tag("renamed")]
Entries = list[Annotated[_Entry, Discriminator(lambda item: "renamed" if isinstance(item, dict) else "name")]]


@dataclass(frozen=True)
class Profile:
    """One experiment: which systems meet which tasks at which contexts, with how many questions and seeds.

    ``extends`` names another profile. A key that this profile gives replaces the other's, whole; of ``samples``,
    ``limits`` and ``latency`` only the entries that it gives do. Trained models, samples and the tokenizer of the other
    profile are used where all that they are made of is the same (msa_base.load.shared).

    ``systems`` and ``models`` name entries of systems.yaml and models.yaml; an item such as ``msa: msa_4b`` gives an
    entry the name that reports and other entries know it by. ``indexes`` and ``corpora`` do so for some of theirs.
    ``hardware`` is the machine of hardware.yaml that the profile is meant for (none: any). ``main`` names the systems
    that are evaluated unless others are asked for (none: all).
    """

    title: Text
    tokenizer: dict[str, Any]  # its ``kind`` is words, bytes or hub
    contexts: Annotated[list[str], Field(min_length=1)]  # of contexts.yaml, the smallest first
    tasks: Annotated[dict[str, Count], Field(min_length=1)]  # task -> questions in a cell
    systems: Annotated[Entries, Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    models: Entries
    samples: dict[Name, dict[str, Any]]  # training sets by name
    latency: LatencySpec
    extends: str | None = None
    indexes: Entries = field(default_factory=list)
    corpora: Entries = field(default_factory=list)
    hardware: str | None = None
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    published: PublishedSpec | None = None
    data: Text | None = None  # directory of the question-answering sets, seen from where commands run
    judges: list[str] = field(default_factory=list)  # of judges.yaml; the first one's points are the metric `judge`
    main: list[str] = field(default_factory=list)
    rehearsal: bool = False  # it shows that everything works; its numbers mean nothing and get no verdict

    def selected_systems(self, chosen: str) -> list[str]:
        """The systems that are meant: those of ``main``, ``all``, or names with commas between."""
        named = {"main": self.main or list(self.systems), "all": list(self.systems)}
        return named.get(chosen) or chosen.split(",")
