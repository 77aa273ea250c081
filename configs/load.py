"""YAML to frozen dataclasses: an unknown, missing or ill-typed key is an error that names file, key and mend.

Check a profile from the shell::

    python -m configs.load --profile tiny
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from configs.errors import UserError, run_command

DIRECTORY = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z][\w.-]*")  # names are parts of paths, where a leading underscore is the workflow's own


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus (the shared tail of some tasks). ``kind`` is a module with ``make_corpus``; ``params`` are its own."""

    kind: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskSpec:
    """A task. ``kind`` is a module of ``tasks`` (or a dotted module anywhere); ``metric`` a function of tasks.metrics."""

    kind: str
    corpus: str
    metric: str
    title: str
    params: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)  # further ones, each scored under its own name


@dataclass(frozen=True)
class IndexSpec:
    """An index over a corpus, built once and shared by the systems that name it."""

    kind: str
    model: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SystemSpec:
    """A system. ``kind`` is a module of ``baselines`` (or a dotted module anywhere).

    ``model`` (the reader), ``reranker`` and ``index`` name entries of models.yaml and of ``indexes``; ``max_questions`` caps the questions of a
    cell for a system that pays for a rebuilt context with each of them. ``search`` maps parameters to the values that
    baselines.tune tries.
    """

    kind: str
    title: str
    model: str | None = None
    index: str | None = None
    reranker: str | None = None
    max_questions: int | None = None
    reads_gold: bool = False
    params: dict[str, Any] = field(default_factory=dict)
    search: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """A model that the workflow makes, or takes: ``kind`` is ``msa.train`` or ``pretrained`` (msa.pretrained).

    ``after`` names the parent model.
    """

    kind: str
    after: str | None = None
    samples: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LatencySpec:
    """What the latency cells ask: ``questions`` of one task, one at a time, after a warm-up.

    The machine is reserved for them; ``threads`` is how much of it a system uses, the same wherever it is measured.
    """

    task: str
    questions: int
    threads: int = 1


@dataclass(frozen=True)
class LimitsSpec:
    """What one cell or index may take of the machine that runs it; beyond it, it is refused with the plan's figures."""

    host_gb: float | None = None
    disk_gb: float | None = None
    cell_hours: float | None = None
    sequential_hours: float | None = None  # of a cell of a system that makes its calls one after another (baselines.planning)


@dataclass(frozen=True)
class PublishedSpec:
    """Figures that somebody published for this profile, which its plan derives anew beside them."""

    source: str
    model: str
    context: str
    dtype: str
    routing_keys_gb: float
    memory_gb: float
    training_tokens: float


@dataclass(frozen=True)
class Profile:
    """One experiment: which systems meet which tasks at which contexts, with how many questions and seeds.

    ``systems`` and ``models`` name entries of systems.yaml and models.yaml; an item such as ``msa: msa_4b`` gives an entry
    the name that reports and other entries know it by. ``indexes`` does so for some of the indexes. ``hardware`` is the
    machine of hardware.yaml that the profile is meant for (none: any). ``main`` names the systems that are raced unless
    others are asked for (none: all).
    """

    title: str
    tokenizer: dict[str, Any]
    contexts: list[str]
    tasks: dict[str, int]  # task -> questions in a cell
    systems: list[str | dict[str, str]]
    seeds: list[int]
    models: list[str | dict[str, str]]
    samples: dict[str, dict[str, Any]]  # training sets: name -> parameters of tasks.samples
    latency: dict[str, Any]  # a LatencySpec
    indexes: list[str | dict[str, str]] = field(default_factory=list)
    hardware: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)  # a LimitsSpec
    published: dict[str, Any] = field(default_factory=dict)  # a PublishedSpec, or nothing
    data: str | None = None  # directory of the question-answering sets, seen from where commands run
    judges: list[str] = field(default_factory=list)  # entries of judges.yaml; the first one's points are the metric `judge`
    main: list[str] = field(default_factory=list)

    def raced(self, chosen: str) -> list[str]:
        """The systems that are meant: those of ``main``, ``all``, or names with commas between."""
        named = {"main": self.main or list(self.systems), "all": list(self.systems)}
        return named.get(chosen) or chosen.split(",")


def build(cls: type, mapping: Any, where: str) -> Any:
    """Make the dataclass ``cls`` from a mapping.

    Raises:
        UserError: an unknown, missing or ill-typed key; the message says where and, for a typo, the nearest key.
    """
    if not isinstance(mapping, dict):
        raise UserError(f"{where}: expected a mapping, found {type(mapping).__name__}")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key, value in mapping.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{where}: unknown key '{key}'{hint} (known: {', '.join(sorted(fields))})")
        if not _has_type(value, hints[key]):
            raise UserError(f"{where}: key '{key}' must be {_type_name(hints[key])}, found {value!r}")
    for key, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in mapping:
            raise UserError(f"{where}: key '{key}' is missing; add it")
    return cls(**{key: float(value) if hints[key] is float else value for key, value in mapping.items()})


def _has_type(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, part) for part in typing.get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, typing.get_args(hint)[0]) for item in value)
    if origin is dict:
        kinds = typing.get_args(hint)
        return isinstance(value, dict) and all(_has_type(k, kinds[0]) and _has_type(v, kinds[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_origin(hint) else str(hint).replace("typing.", "")


def read_yaml(path: Path | str) -> Any:
    """Read a YAML file; a missing or broken one is a UserError that names it."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(item.stem for item in Path(path).parent.glob("*.yaml")))
        raise UserError(f"{path}: no such file (there: {known})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping, found {'nothing' if content is None else type(content).__name__}")
    return content


def _read_contexts(path: Path) -> dict[str, int]:
    contexts = _read_mapping(path)
    for name, tokens in contexts.items():
        if not _has_type(tokens, int) or tokens < 1:
            raise UserError(f"{path}: key '{name}' must be a number of tokens, found {tokens!r}")
    return contexts


@dataclass(frozen=True)
class Experiment:
    """A profile with everything it names, checked against one another."""

    name: str
    profile: Profile
    contexts: dict[str, int]
    corpora: dict[str, CorpusSpec]
    tasks: dict[str, TaskSpec]
    indexes: dict[str, IndexSpec]
    systems: dict[str, SystemSpec]
    models: dict[str, ModelSpec]
    judges: dict[str, Any] = field(default_factory=dict)  # configs.endpoint.EndpointSpec of the profile's judges


def _check_entry_names(names: Any, where: str) -> None:
    for name in names:
        if not _NAME.fullmatch(str(name)):
            raise UserError(f"{where}: name '{name}' cannot be a directory's; use letters, digits, '_', '-' and '.', a letter first")


def _entries(cls: type, mapping: Any, where: str) -> dict[str, Any]:
    _check_entry_names(mapping or {}, where)
    return {name: build(cls, entry, f"{where}: {name}") for name, entry in (mapping or {}).items()}


def _sections(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    content = _read_mapping(path)
    for key in content:
        if key not in names:
            raise UserError(f"{path}: unknown key '{key}' (known: {', '.join(names)})")
    return {name: content.get(name, {}) for name in names}


def load(profile: str, directory: Path | str = DIRECTORY) -> Experiment:
    """Read and check one profile and the tables that it names.

    Args:
        profile: name of a file of ``configs/profiles``.
        directory: the configuration directory.

    Raises:
        UserError: any unknown key or name, in any of the files.
    """
    directory = Path(directory)
    path = directory / "profiles" / f"{profile}.yaml"
    chosen: Profile = build(Profile, read_yaml(path), str(path))
    task_file = _sections(directory / "tasks.yaml", ("corpora", "tasks"))
    system_file = _sections(directory / "systems.yaml", ("indexes", "systems"))
    tables = {
        "systems": _entries(SystemSpec, system_file["systems"], f"{directory / 'systems.yaml'}: systems"),
        "indexes": _entries(IndexSpec, system_file["indexes"], f"{directory / 'systems.yaml'}: indexes"),
        "models": _entries(ModelSpec, _read_mapping(directory / "models.yaml"), str(directory / "models.yaml")),
    }
    for key, entries in tables.items():
        renamed = {name: entry for item in getattr(chosen, key) if isinstance(item, dict) for name, entry in item.items()}
        _check_entry_names(renamed, f"{path}: {key}")
        check_known(renamed.values(), entries, f"{path}: {key}", directory / f"{'models' if key == 'models' else 'systems'}.yaml")
        tables[key] = entries | {name: entries[entry] for name, entry in renamed.items()}
        names = [name for item in getattr(chosen, key) for name in ([item] if isinstance(item, str) else item)]
        chosen = dataclasses.replace(chosen, **{key: names})
    experiment = Experiment(
        name=profile,
        profile=chosen,
        contexts=_read_contexts(directory / "contexts.yaml"),
        corpora=_entries(CorpusSpec, task_file["corpora"], f"{directory / 'tasks.yaml'}: corpora"),
        tasks=_entries(TaskSpec, task_file["tasks"], f"{directory / 'tasks.yaml'}: tasks"),
        **tables,
    )
    _check_names(experiment, path, directory)
    experiment.judges.update(_read_judges(chosen.judges, path, directory / "judges.yaml"))
    return experiment


def _read_judges(names: list[str], profile: Path, path: Path) -> dict[str, Any]:
    if not names:
        return {}
    from configs.endpoint import EndpointSpec  # its imports are more than most commands need

    if len(set(names)) < len(names):
        raise UserError(f"{profile}: judges: a judge is named twice; name each once")
    entries = _read_mapping(path)
    check_known(names, entries, f"{profile}: judges", path)
    found = {}
    for name in names:
        where = f"{path}: {name}"
        try:
            found[name] = build(EndpointSpec, entries[name], where)
        except UserError as error:  # a check of the entry's own does not know where it stands
            raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    return found


def _check_names(experiment: Experiment, path: Path, directory: Path) -> None:
    profile = experiment.profile
    for key in ("contexts", "tasks", "systems", "seeds"):
        if not getattr(profile, key):
            raise UserError(f"{path}: key '{key}' is empty; name one at least")
    check_known(profile.contexts, experiment.contexts, f"{path}: contexts", directory / "contexts.yaml")
    check_known(profile.tasks, experiment.tasks, f"{path}: tasks", directory / "tasks.yaml")
    check_known(profile.systems, experiment.systems, f"{path}: systems", directory / "systems.yaml")
    check_known(profile.main, profile.systems, f"{path}: main", path)
    check_known(profile.models, experiment.models, f"{path}: models", directory / "models.yaml")
    check_known(profile.indexes, experiment.indexes, f"{path}: indexes", directory / "systems.yaml")
    latency: LatencySpec = build(LatencySpec, profile.latency, f"{path}: latency")
    check_known([latency.task], profile.tasks, f"{path}: latency: task", path)
    build(LimitsSpec, profile.limits, f"{path}: limits")
    for key, value in profile.limits.items():
        if value is not None and not value > 0:
            raise UserError(f"{path}: limits: key '{key}' must be above 0, found {value}")
    if profile.published:
        published: PublishedSpec = build(PublishedSpec, profile.published, f"{path}: published")
        check_known([published.model], profile.models, f"{path}: published: model", path)
        check_known([published.context], experiment.contexts, f"{path}: published: context", directory / "contexts.yaml")
    if profile.hardware is not None:
        from configs.hardware import read_hardware

        check_known([profile.hardware], read_hardware(directory), f"{path}: hardware", directory / "hardware.yaml")
    for name in profile.tasks:
        where = f"{directory / 'tasks.yaml'}: tasks: {name}: corpus"
        check_known([experiment.tasks[name].corpus], experiment.corpora, where, directory / "tasks.yaml")
    for name in profile.systems:
        spec, where = experiment.systems[name], f"{directory / 'systems.yaml'}: systems: {name}"
        if spec.index is not None:
            check_known([spec.index], experiment.indexes, f"{where}: index", directory / "systems.yaml")
            check_known(_given(experiment.indexes[spec.index].model), profile.models, f"{where}: index: model", path)
        check_known(_given(spec.model), profile.models, f"{where}: model", path)
        check_known(_given(spec.reranker), profile.models, f"{where}: reranker", path)
    for name in profile.models:
        model, where = experiment.models[name], f"{directory / 'models.yaml'}: {name}"
        check_known(_given(model.after), profile.models, f"{where}: after", path)
        check_known(model.samples, profile.samples, f"{where}: samples", path)


def _given(name: str | None) -> list[str]:
    return [] if name is None else [name]


def check_known(names: Any, known: Any, where: str, source: Path) -> None:
    """Raise a UserError for a name that is not among those of ``source``, with the nearest one as a hint."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), [str(item) for item in known], 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{where}: unknown name '{name}'{hint} (known in {source}: {', '.join(map(str, known))})")


def module_name(kind: str, package: str) -> str:
    """The module that a ``kind`` names: dotted names as they stand, others inside ``package``."""
    return kind if "." in kind else f"{package}.{kind}"


def describe(experiment: Experiment) -> str:
    """One line on the size of an experiment."""
    profile = experiment.profile
    sizes = {name: len(getattr(profile, name)) for name in ("systems", "tasks", "contexts", "seeds")}
    return f"{profile.title}: {', '.join(f'{size} {name}' for name, size in sizes.items())}, {math.prod(sizes.values())} cells"


def main() -> None:
    """Check a profile and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--configs", default=DIRECTORY, type=Path, help="the configuration directory")
    arguments = parser.parse_args()
    print(describe(load(arguments.profile, arguments.configs)))


if __name__ == "__main__":
    run_command(main)
