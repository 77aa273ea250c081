"""One profile with everything that it names, read from configs/ and checked against one another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msa_base.errors import UserError
from msa_base.paths import DIRECTORY
from msa_base.specs import (
    ContextName,
    CorpusSpec,
    IndexSpec,
    JudgeSpec,
    ModelSpec,
    Profile,
    SystemFile,
    SystemSpec,
    TaskFile,
    TaskSpec,
)
from msa_base.validate import Name, Tokens, build, check_known, read_checked, read_yaml

MERGED = ("samples", "limits", "latency")  # of these an extending profile replaces single entries
DATA_KEYS = {"set", "sets", "novels"}  # parameters that name what lies in the profile's data directory


@dataclass(frozen=True)
class Experiment:
    """A profile with everything it names.

    ``shared`` says which folders of the results are another profile's: folder -> profile.
    """

    name: str
    profile: Profile
    contexts: dict[str, int]
    corpora: dict[str, CorpusSpec]
    tasks: dict[str, TaskSpec]
    indexes: dict[str, IndexSpec]
    systems: dict[str, SystemSpec]
    models: dict[str, ModelSpec]
    judges: dict[str, JudgeSpec] = field(default_factory=dict)  # the profile's
    configs: Path = DIRECTORY
    shared: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The profile's file, for messages."""
        return profile_file(self.configs, self.name)


def profile_file(directory: Path, profile: str) -> Path:
    return directory / "profiles" / f"{profile}.yaml"


def load(profile: str, directory: Path | str = DIRECTORY, data: str | None = None) -> Experiment:
    """Read and check one profile and the tables that it names.

    Args:
        profile: name of a file of ``configs/profiles``.
        directory: the configuration directory.
        data: directory of fetched sets and novels in place of the profile's ``data``.

    Raises:
        UserError: any unknown key or name, in any of the files.
    """
    directory = Path(directory)

    def table(name: str, kind: Any, may_lack: bool = False) -> Any:
        path = directory / f"{name}.yaml"
        return {} if may_lack and not path.exists() else read_checked(kind, path)

    tables = {
        **vars(table("tasks", TaskFile)),
        **vars(table("systems", SystemFile)),
        "contexts": table("contexts", dict[ContextName, Tokens]),
        "judges": table("judges", dict[Name, JudgeSpec], may_lack=True),
        "models": table("models", dict[Name, ModelSpec]),
    }
    machines = table("hardware", dict[Name, Any], may_lack=True)  # their names
    experiment: Experiment | None = None
    for name, content in _read_chain(profile, directory).items():
        parent, experiment = experiment, _experiment(name, content, tables, directory, machines, data)
        if parent is not None:
            experiment = replace(experiment, shared=shared(experiment, parent))
    return experiment


def _read_chain(profile: str, directory: Path, children: tuple[str, ...] = ()) -> dict[str, Any]:
    """The contents of a profile and of those that it extends, each with what it takes over; the parents first."""
    path, chain = profile_file(directory, profile), (*children, profile)
    content = read_yaml(path)
    parent = content.get("extends") if isinstance(content, dict) else None
    if parent is None:
        return {profile: content}
    if not isinstance(parent, str):
        raise UserError(f"{path}: key 'extends' must be the name of a profile, found {parent!r}")
    check_known([parent], sorted(item.stem for item in path.parent.glob("*.yaml")), f"{path}: extends", path.parent)
    if parent in chain:
        raise UserError(f"{path}: key 'extends': {' -> '.join([*chain, parent])} is a loop; end it")
    contents = _read_chain(parent, directory, chain)
    if isinstance(contents[parent], dict):  # a file that holds anything else is refused when its profile is built
        content = _merge(contents[parent], content)
    return {**contents, profile: content}


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """A profile's content with what it takes over; a title is each profile's own."""
    merged = {key: value for key, value in parent.items() if key not in ("title", "extends")} | child
    for key in MERGED:
        if isinstance(parent.get(key), dict) and isinstance(child.get(key), dict):
            merged[key] = parent[key] | child[key]
    return merged


def _experiment(
    name: str, content: Any, tables: dict[str, Any], directory: Path, machines: Iterable[str], data: str | None
) -> Experiment:
    path = profile_file(directory, name)
    profile: Profile = build(Profile, content, str(path))
    profile = replace(profile, data=data or profile.data)
    entries, names = {}, {}
    files = {"systems": "systems", "indexes": "systems", "models": "models", "corpora": "tasks"}
    for key, file in files.items():
        items = [item if isinstance(item, dict) else {item: item} for item in getattr(profile, key)]
        renamed = [(given, entry) for item in items for given, entry in item.items()]
        check_known([entry for _, entry in renamed], tables[key], f"{path}: {key}", directory / f"{file}.yaml")
        entries[key] = tables[key] | {given: tables[key][entry] for given, entry in renamed}
        names[key] = [given for given, _ in renamed]
    check_known(profile.judges, tables["judges"], f"{path}: judges", directory / "judges.yaml")
    entries["judges"] = {judge: tables["judges"][judge] for judge in profile.judges}
    experiment = Experiment(name, replace(profile, **names), **{**tables, **entries}, configs=directory)
    _check_profile(experiment, machines)
    _check_entries(experiment)
    return experiment


def _check_profile(experiment: Experiment, machines: Iterable[str]) -> None:
    """Raise a UserError for a name of the profile that no table has."""
    profile, path, configs = experiment.profile, experiment.file, experiment.configs
    for key in ("contexts", "systems", "seeds", "models", "indexes", "corpora", "judges", "main"):
        items = getattr(profile, key)
        if twice := [item for item in items if items.count(item) > 1]:
            raise UserError(f"{path}: {key}: '{twice[0]}' is named twice; name it once")
    check_known(profile.contexts, experiment.contexts, f"{path}: contexts", configs / "contexts.yaml")
    if list(profile.contexts) != sorted(profile.contexts, key=experiment.contexts.__getitem__):
        raise UserError(f"{path}: contexts: name the smallest first, then in their order")
    check_known(profile.tasks, experiment.tasks, f"{path}: tasks", configs / "tasks.yaml")
    check_known(profile.main, profile.systems, f"{path}: main", path)
    check_known([profile.latency.task], profile.tasks, f"{path}: latency: task", path)
    check_known(_given(profile.hardware), machines, f"{path}: hardware", configs / "hardware.yaml")
    if published := profile.published:
        check_known([published.model], profile.models, f"{path}: published: model", path)
        check_known([published.context], profile.contexts, f"{path}: published: context", path)


def _check_entries(experiment: Experiment) -> None:
    """Raise a UserError for a name of a table's entry that the profile, or another table, has not."""
    profile, path = experiment.profile, experiment.file
    tasks, systems, models = (experiment.configs / f"{name}.yaml" for name in ("tasks", "systems", "models"))
    for name, task in experiment.tasks.items():
        check_known([task.corpus], experiment.corpora, f"{tasks}: tasks: {name}: corpus", tasks)
    for name, index in experiment.indexes.items():
        check_known(_given(index.model), experiment.models, f"{systems}: indexes: {name}: model", models)
    for name, system in experiment.systems.items():
        where = f"{systems}: systems: {name}"
        check_known(_given(system.index), experiment.indexes, f"{where}: index", systems)
        named = {"model": system.model, "reranker": system.reranker}
        if system.index is not None:
            named["index: model"] = experiment.indexes[system.index].model
        for key, model in named.items():
            check_known(_given(model), experiment.models, f"{where}: {key}", models)
            if name in profile.systems:
                check_known(_given(model), profile.models, f"{where}: {key}", path)
    for name, model in experiment.models.items():
        check_known(_given(model.after), experiment.models, f"{models}: {name}: after", models)
        if name in profile.models:
            check_known(_given(model.after), profile.models, f"{models}: {name}: after", path)
            check_known(model.samples, profile.samples, f"{models}: {name}: samples", path)


def _given(name: str | None) -> list[str]:
    return [] if name is None else [name]


def shared(own: Experiment, parent: Experiment) -> dict[str, str]:
    """Folders of the results that ``own`` takes from the profile that it extends: folder -> profile that holds it.

    Prose is the same for every profile. The tokenizer, a training set and a model are the other's where their entries
    are equal, and those of all that they are made of.
    """

    def same(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> bool:
        reads_data = bool(DATA_KEYS & set(ours or {}))
        return ours == theirs and (not reads_data or own.profile.data == parent.profile.data)

    folders = {"_data/prose"}
    if same(own.profile.tokenizer, parent.profile.tokenizer):
        theirs = parent.profile.samples
        samples = {name for name, entry in own.profile.samples.items() if same(entry, theirs.get(name))}
        folders |= {"_data/tokenizer", *(f"_data/_samples/{name}" for name in samples)}

    def same_model(name: str) -> bool:
        spec = own.models[name]
        made_of = {f"_data/_samples/{sample}" for sample in spec.samples}
        if spec.after is not None or made_of:
            made_of.add("_data/tokenizer")
        is_equal = name in parent.profile.models and spec == parent.models[name] and made_of <= folders
        return is_equal and (spec.after is None or same_model(spec.after))

    folders |= {f"_models/{name}" for name in own.profile.models if same_model(name)}
    return {folder: parent.shared.get(folder, parent.name) for folder in sorted(folders)}


def describe(experiment: Experiment) -> str:
    """One line on the size of an experiment."""
    profile = experiment.profile
    sizes = {name: len(getattr(profile, name)) for name in ("systems", "tasks", "contexts", "seeds")}
    return (
        f"{profile.title}: {', '.join(f'{size} {name}' for name, size in sizes.items())}, "
        f"{math.prod(sizes.values())} cells"
    )
