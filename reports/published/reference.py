"""What was published: the numbers (reference.yaml) and the ledger of claims with what measures them (ledger.yaml)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from msa_base.specs import Role
from msa_base.validate import Distinct, Name, Names, Seconds, Text, Tokens, Weight, Wrong, check_known, read_checked

REFERENCE = Path(__file__).parent / "reference.yaml"
LEDGER = REFERENCE.with_name("ledger.yaml")
UNITS = {"loss": " %", "gain": " %", "difference": " points", "ratio": " x", "slope": ""}
Figure = Annotated[float, Field(ge=-1e6, le=1e6)]  # any that somebody may publish or ask for
Statistic = Literal["loss", "gain", "difference", "ratio", "slope"]


def _check_lengths(key: str, rows: Mapping[str, Sequence[float]], columns: Sequence[Any]) -> None:
    if longer := [name for name, values in rows.items() if len(values) > len(columns)]:
        raise Wrong(f"{key}: {longer[0]}: has more values than there are columns ({len(columns)})")


@dataclass(frozen=True)
class Side:
    """One mean of a claim: a system at a context, or at the ``smallest`` or ``largest`` that both sides have."""

    system: str
    context: str


@dataclass(frozen=True)
class Measure:
    """What a claim is measured on in some profiles: tasks by name or all of a role (of none: latency), the metric.

    Without profiles nothing measures it.
    """

    profiles: Names = field(default_factory=list)
    metric: Text = "accuracy"
    tasks: Names = field(default_factory=list)
    role: Role | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published claim that a comparison decides; ledger.yaml says what the fields mean and which unit bounds have."""

    title: Text
    source: Text
    published: Figure
    statistic: Statistic
    first: Side
    second: Side
    bound_source: Text
    family: Text
    exact: Measure = field(default_factory=Measure)
    miniature: Measure = field(default_factory=Measure)
    above: Figure | None = None
    at_most: Figure | None = None
    headline: bool = False
    tests: Names = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.above is None) == (self.at_most is None):
            raise Wrong("needs one of the keys 'above' and 'at_most'")

    @property
    def unit(self) -> str:
        """Suffix of the claim's numbers."""
        return UNITS[self.statistic]

    @property
    def criterion(self) -> str:
        """What the whole interval must satisfy."""
        return f"above {self.above:g}{self.unit}" if self.at_most is None else f"at most {self.at_most:g}{self.unit}"

    def measure(self, profile: str) -> Measure | None:
        """What the claim is measured on in a profile; None where it is for other profiles."""
        return next((part for part in (self.exact, self.miniature) if profile in part.profiles), None)


@dataclass(frozen=True)
class Least:
    """What a verdict needs, fixed before anything is measured; reference.yaml says of what."""

    questions: Annotated[int, Field(ge=1, le=100_000)]
    heads: Annotated[int, Field(ge=2, le=10_000)]  # one head says nothing of heads
    sizes: Annotated[int, Field(ge=3, le=100)]  # two have no interval
    timings: Annotated[int, Field(ge=1, le=10_000)]


@dataclass(frozen=True)
class Statement:
    """A published claim without a comparison that decides it: ``how`` says where its figure is, ``tests`` hold it."""

    title: Text
    source: Text
    published: Text
    how: Text
    family: Text
    tests: Names = field(default_factory=list)


@dataclass(frozen=True)
class Ledger:
    """ledger.yaml. ``families`` says of each what its claims have in common."""

    least: Least
    families: dict[Name, Text]
    claims: dict[str, Claim]
    statements: dict[str, Statement]

    def __post_init__(self) -> None:
        for part in ("claims", "statements"):
            for name, entry in getattr(self, part).items():
                check_known([entry.family], self.families, f"{part}: {name}: family", "families")


@dataclass(frozen=True)
class Paper:
    """Which paper, and its backbone."""

    arxiv: Text
    backbone: Text


@dataclass(frozen=True)
class Curves:
    """Published values over memory sizes; a series that stops early has fewer values than there are contexts."""

    source: Text
    contexts: Names
    series: dict[str, list[Weight]]
    unit: str = ""

    def __post_init__(self) -> None:
        _check_lengths("series", self.series, self.contexts)


@dataclass(frozen=True)
class Rows:
    """A published table."""

    source: Text
    rows: dict[str, list[Weight]]
    columns: Names

    def __post_init__(self) -> None:
        _check_lengths("rows", self.rows, self.columns)


@dataclass(frozen=True)
class AnswerCost:
    """Published figures of time and memory."""

    source: Text
    inference: Text
    memory_at_100M: Text
    training_context_tokens: Annotated[list[Tokens], Distinct]
    training_s: dict[str, list[Seconds]]

    def __post_init__(self) -> None:
        _check_lengths("training_s", self.training_s, self.training_context_tokens)


@dataclass(frozen=True)
class Recipe:
    """What is said of training."""

    source: Text
    text: Text


@dataclass(frozen=True)
class Numbers:
    """reference.yaml. ``roles`` says which entries of systems.yaml play which part."""

    paper: Paper
    roles: dict[str, Annotated[Names, Field(min_length=1)]]
    scaling: Curves
    needles: Curves
    quality: Rows
    ablation: Rows
    cost: AnswerCost
    training: Recipe


@dataclass(frozen=True)
class Reference(Numbers):
    """The published numbers, and what of them is checked. ``played_by`` maps each role to its system in one profile."""

    ledger: Ledger
    played_by: dict[str, str]

    @property
    def claims(self) -> dict[str, Claim]:
        """The claims that a comparison decides."""
        return self.ledger.claims

    @property
    def least(self) -> Least:
        """What a verdict needs."""
        return self.ledger.least


def read_ledger(path: Path | None = None) -> Ledger:
    """The ledger as it stands; an unknown key or family, or a claim without exactly one bound, is a UserError."""
    return read_checked(Ledger, path or LEDGER)


def cast(roles: Mapping[str, Sequence[str]], systems: Sequence[str]) -> dict[str, str]:
    """Who plays each role: the first of its systems that is among ``systems`` (a profile's), else its first."""
    return {role: next((name for name in names if name in systems), names[0]) for role, names in roles.items()}


def read_reference(ledger: Path | None = None, systems: Sequence[str] = ()) -> Reference:
    """The published numbers and the ledger, whose roles are played by ``systems``; errors as :func:`read_ledger`'s."""
    numbers, found = read_checked(Numbers, REFERENCE), read_ledger(ledger)
    played_by, claims = cast(numbers.roles, systems), {}
    for name, claim in found.claims.items():
        sides = {"first": claim.first, "second": claim.second}
        played = {key: replace(side, system=played_by.get(side.system, side.system)) for key, side in sides.items()}
        claims[name] = replace(claim, **played)
    return Reference(**vars(numbers), ledger=replace(found, claims=claims), played_by=played_by)
