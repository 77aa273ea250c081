"""Every name in every YAML file: misspelt, it is an error that names file, key and the right name, before any job."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import baselines.checks.check
import reports.check
import tasks.check
from msa_base import validate
from msa_base.errors import UserError
from msa_base.load import Experiment, load
from msa_base.paths import DIRECTORY
from reports import expected
from reports.published import reference, tables
from tasks.qa import table

ROOT = DIRECTORY.parent
# sweeps are W&B's own files, whose parameters tests/reports/test_dashboards.py checks
OURS = [path for path in DIRECTORY.rglob("*.yaml") if path.parent.name != "sweeps"]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in OURS)
PUBLISHED = [f"reports/published/{name}.yaml" for name in ("reference", "ledger", "tables", "expected")]
FILES = [*CONFIGS, *PUBLISHED, "tasks/qa/sets.yaml"]

# Key paths (file: key/key/...) whose text is free: prose, places and what other programs understand.
FREE = [
    r"configs/hardware\.yaml: [^/]+/(title|source)",
    r"configs/judges\.yaml: [^/]+/(base_url|model|api_key_env|serve|body/.*)",
    r"configs/tasks\.yaml: tasks/[^/]+/title",
    r"configs/tasks\.yaml: corpora/novels/params/novels",
    r"configs/systems\.yaml: systems/[^/]+/(title|params/predictions)",
    r"configs/models\.yaml: [^/]+/params/(hub|revision|package/.*|path|name|query_prefix|model_kwargs/.*)",
    r"configs/models\.yaml: [^/]+/params/(base_url|model|api_key_env|serve)",
    r"configs/models\.yaml: [^/]+/params/phases/\d+/name",
    r"configs/profiles/.*: (title|data|published/source|tokenizer/path)",
    r"reports/published/reference\.yaml: (paper|quality|ablation|cost|training)/.*",
    r"reports/published/reference\.yaml: (scaling|needles)/(source|unit)",
    r"reports/published/ledger\.yaml: families/[^/]+",
    r"reports/published/ledger\.yaml: claims/[^/]+/(title|source|bound_source)",
    r"reports/published/ledger\.yaml: statements/[^/]+/(title|source|published|how)",
    r"reports/published/tables\.yaml: [^/]+/(title|source|unit|systems/\d+/title)",
    r"reports/published/tables\.yaml: figure-training-time/places/\d+",
    r"reports/published/expected\.yaml: [^/]+/\d+/title",
    r"tasks/qa/sets\.yaml: [^/]+/(title|documents|answers|gold)",
    r"tasks/qa/sets\.yaml: [^/]+/forms/\d+/(name|repository|split|licence|files/[^/]+/(path|at|repository))",
    r"tasks/qa/sets\.yaml: [^/]+/forms/\d+/(revision|files/[^/]+/(sha256|revision))",  # digits, by a pattern
]
# Keys (not values) that are names too: of these mappings every key is misspelt.
NAMED_KEYS = [
    r"configs/profiles/.*: tasks",
    r"configs/models\.yaml: [^/]+/params/phases/\d+/answer_shares",
    r"reports/published/expected\.yaml: ",
]


def leaves(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(key path, text) of every string that stands as a value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        inside = f"{place}/{key}".lstrip("/")
        if isinstance(value, str):
            yield inside, value
        yield from leaves(value, inside)


def mappings(content: Any, place: str = "") -> Iterator[tuple[str, dict]]:
    """(key path, mapping) of every mapping."""
    if isinstance(content, dict):
        yield place, content
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from mappings(value, f"{place}/{key}".lstrip("/"))


def is_free(file: str, place: str) -> bool:
    """Whether a string is declared as free text."""
    return any(re.fullmatch(pattern, f"{file}: {place}") for pattern in FREE)


def misspelt(name: str) -> str:
    """A name with one character too many, in its middle."""
    return f"{name[: len(name) // 2 + 1]}x{name[len(name) // 2 + 1 :]}"


def replaced(content: Any, place: list[str], change: Any) -> Any:
    """A copy in which ``change`` has been applied to the container of the last key."""
    content = copy.deepcopy(content)
    inside = content
    for key in place[:-1]:
        inside = inside[int(key)] if isinstance(inside, list) else inside[key]
    change(inside, int(place[-1]) if isinstance(inside, list) else place[-1])
    return content


def cases(file: str, content: Any) -> Iterator[tuple[str, str, Any]]:
    """(key path, name, spoilt content): each name of a file, misspelt by itself."""

    def value(inside: Any, key: Any) -> None:
        inside[key] = misspelt(inside[key])

    def key_of(inside: Any, key: Any) -> None:
        items = list(inside.items())
        inside.clear()
        inside.update({misspelt(name) if name == key else name: item for name, item in items})

    for place, name in leaves(content):
        if not is_free(file, place):
            yield place, name, replaced(content, place.split("/"), value)
    for place, mapping in mappings(content):
        named = any(re.fullmatch(pattern, f"{file}: {place}") for pattern in NAMED_KEYS)
        for name in mapping if named else ():
            yield (
                f"{place}/{name}".lstrip("/"),
                name,
                replaced(content, [*place.split("/"), name] if place else [name], key_of),
            )


def check_everything(configs: Path, file: str, opened: Callable[..., Experiment] = load) -> None:
    """What `make reproduce` checks before any job, as far as a file can have a part in it; weights and keys that this
    machine lacks are no mistake here.
    """
    experiment = opened(Path(file).stem if "profiles/" in file else "tiny", configs)
    if not file.startswith("reports/"):
        tasks.check.check(experiment)
    if file.startswith("configs/"):
        baselines.checks.check.check(experiment)
    if not file.startswith("tasks/"):
        reports.check.check(configs)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of every YAML file, in the place of the shipped ones; as JSON, which is read a hundred times as fast."""
    shutil.copytree(DIRECTORY, tmp_path / "configs")
    for file, module, name in (
        ("reports/published/reference.yaml", reference, "REFERENCE"),
        ("reports/published/ledger.yaml", reference, "LEDGER"),
        ("reports/published/tables.yaml", tables, "TABLES"),
        ("reports/published/expected.yaml", expected, "EXPECTED"),
        ("tasks/qa/sets.yaml", table, "TABLE"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
        monkeypatch.setattr(module, name, tmp_path / file)
    for path in tmp_path.rglob("*.yaml"):
        path.write_text(json.dumps(validate.read_yaml(path)))
    monkeypatch.setattr(validate, "_parse", lambda text, path: json.loads(text))
    monkeypatch.setattr(tasks.check, "TABLE", tmp_path / "tasks/qa/sets.yaml")
    # the weights, pins and keys of pretrained and served models are this machine's, no names
    monkeypatch.setattr("msa.checkpoints.pretrained.missing", lambda name, spec: None)
    monkeypatch.setattr("baselines.checks.check.check_here", lambda params, where: None)
    return tmp_path


@pytest.mark.parametrize("file", FILES)
def test_every_misspelt_name_is_named_with_its_mend(place: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = load if file.startswith("configs/") else cache(load)  # the configuration stays as it is
    monkeypatch.setattr(reports.check, "load", opened)
    check_everything(place / "configs", file, opened)
    shipped, accepted, unclear, number = (place / file).read_text(), [], [], 0
    for key, name, content in cases(file, json.loads(shipped)):
        number += 1
        (place / file).write_text(json.dumps(content))
        try:
            check_everything(place / "configs", file, opened)
        except UserError as error:
            message, words = str(error), [word for word in re.split(r"[/\d]+", key) if word]
            clear = Path(file).name in message and misspelt(name) in message and f"did you mean '{name}'" in message
            if not (clear and any(word in message for word in words)):
                unclear.append(f"{key}: {message[:300]}")
        else:
            accepted.append(f"{key}: {name}")
    (place / file).write_text(shipped)
    assert not accepted and not unclear, "\n".join([*accepted, *unclear])
    assert number or file in ("configs/contexts.yaml", "configs/judges.yaml")
