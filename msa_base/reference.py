"""Write docs/CONFIGURATION.md: every key of configs/ with its type, range, default and meaning, from the records.

    python -m msa_base.reference

The records are the dataclasses that check the files: what the page says is what is checked. A key's meaning is the
comment at its field.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from msa_base.errors import run_command
from msa_base.kinds import PRETRAINED, module_name
from msa_base.load import load
from msa_base.paths import DIRECTORY
from msa_base.tables import whole_file
from msa_base.validate import MANY, adapter

PROFILE = "smoke"  # any: the tables are whole in each
PAGE = DIRECTORY.parent / "docs" / "CONFIGURATION.md"
# what the module of a kind calls its records
PLUGIN_RECORDS = {
    "Params": "params",
    "IndexParams": "params of an index",
    "CorpusParams": "params of a corpus",
    "ModelParams": "params of a model",
}


class ConfigurationFile(NamedTuple):
    """A file: what it holds, its records, and, where it has kinds, their package and the tables that name them."""

    path: str
    holds: str
    records: tuple[str, ...] = ()
    package: str = ""
    tables: tuple[str, ...] = ()


SPECS, VOCABULARY = "msa_base.specs:", "tasks.stages.vocabulary:"
FILES = (
    ConfigurationFile(
        "configs/profiles/NAME.yaml",
        "One experiment. `tokenizer` and each of `samples` are one of the records that follow.",
        (
            SPECS + "Profile",
            *(VOCABULARY + kind for kind in ("WordsSpec", "BytesSpec", "HubSpec")),
            "tasks.stages.samples:SampleSpec",
            "tasks.qa.samples:RealSpec",
        ),
    ),
    ConfigurationFile("configs/contexts.yaml", "Names of memory sizes: `16K: 16384`, in tokens."),
    ConfigurationFile(
        "configs/tasks.yaml",
        "`corpora` and `tasks` by name.",
        (SPECS + "CorpusSpec", SPECS + "TaskSpec"),
        "tasks",
        ("corpora", "tasks"),
    ),
    ConfigurationFile(
        "configs/systems.yaml",
        "`systems` and `indexes` by name. A retriever that is a stage of another takes the parameters of its search.",
        (SPECS + "SystemSpec", SPECS + "IndexSpec"),
        "baselines",
        ("systems", "indexes"),
    ),
    ConfigurationFile(
        "configs/models.yaml",
        "Models by name. `params` of `kind: msa.training.train` and `pretrained`, then of models that live elsewhere.",
        (SPECS + "ModelSpec", "msa.training.recipe:TrainParams", "msa.checkpoints.pretrained:Pretrained"),
        "baselines.parts",
        ("models",),
    ),
    ConfigurationFile("configs/judges.yaml", "Judges by name.", (SPECS + "EndpointSpec",)),
    ConfigurationFile(
        "configs/hardware.yaml", "Machines by name, for `make plan`.", ("baselines.planning.hardware:Hardware",)
    ),
    ConfigurationFile("tasks/qa/sets.yaml", "Question-answering sets by name.", ("tasks.qa.table:SetSpec",)),
)
HEAD = """# Configuration reference

    .venv/bin/python -m msa_base.reference    # writes this page anew

Every key of the files that say what runs. `make reproduce` checks them all before anything starts, and refuses an
unknown key with the nearest one as a hint. Upper ends of a million and more are left out here. A `kind` names a module,
in `tasks` or `baselines` or, with dots, anywhere; what it lets a file set stands under its name.
"""


def page() -> str:
    """The page as Markdown."""
    parts, told, experiment = [HEAD], {}, load(PROFILE)
    for file in FILES:
        parts.append(f"\n## {file.path}\n\n{file.holds}\n")
        for module, name in (place.split(":") for place in file.records):
            parts += _sections(getattr(importlib.import_module(module), name), name, "###", told)
        kinds = {entry.kind for table in file.tables for entry in getattr(experiment, table).values()}
        for kind in sorted(kinds - {PRETRAINED}):
            parts += _of_kind(kind, file.package, told)
    return "".join(parts)


def _of_kind(kind: str, package: str, told: dict[type, str]) -> Iterator[str]:
    """The records of the module of a kind."""
    module = importlib.import_module(module_name(kind, package))
    records = {title: getattr(module, name, None) for name, title in PLUGIN_RECORDS.items()}
    if any(records.values()):
        yield f"\n### kind: {kind}\n\n{_markdown((module.__doc__ or '').splitlines()[0])}\n"
    for title, record in records.items():
        if record in told:
            yield f"\nIts {title} are [{told[record]}]({_anchor(told[record])}).\n"
        elif record and dataclasses.fields(record):
            yield from _sections(record, f"{kind}: {title}", "####", told)


def _sections(record: type, title: str, level: str, told: dict[type, str]) -> Iterator[str]:
    """A record's section, and those of the records that it holds; ``told`` has the titles of those that have one."""
    told[record] = title
    doc = inspect.cleandoc(record.__dict__.get("__doc__") or "")
    yield f"\n{level} {title}\n\n{_markdown(doc)}\n\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n"
    schema, meanings = adapter(record).json_schema(), _meanings(record)
    for field in dataclasses.fields(record):
        value = _value(schema["properties"][field.name])
        yield f"| `{field.name}` | {value} | {_default(field)} | {_cell(_markdown(meanings.get(field.name, '')))} |\n"
    for inner in _records(typing.get_type_hints(record).values()):
        if inner not in told:
            yield from _sections(inner, inner.__name__, level, told)


def _anchor(title: str) -> str:
    return "#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _records(hints: Iterable[Any]) -> Iterator[type]:
    """The records among types, and inside them."""
    for hint in hints:
        if dataclasses.is_dataclass(hint):
            yield hint
        yield from _records(typing.get_args(hint))


def _meanings(record: type) -> dict[str, str]:
    """The comment of each field, behind it or on the line before."""
    found = {}
    for cls in reversed(record.__mro__[:-1]):
        for before, name, behind in re.findall(
            r"^(?:    # (.*)\n)?    (\w+): .*?(?:  # (.*))?$", inspect.getsource(cls), flags=re.MULTILINE
        ):
            found[name] = behind or before or found.get(name, "")
    return found


def _value(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    branches = [branch for branch in schema.get("anyOf") or schema.get("oneOf") or () if branch != {"type": "null"}]
    if branches:
        return " or ".join(map(_value, branches))
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/")[-1]
        return f"[{name}]({_anchor(name)})"
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in values)
    kind = schema.get("type")
    if kind == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        number = f"({least}) " if least and least == most else f"(at least {least}) " if least else ""
        return f"list {number}of {_value(schema['items'])}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return "mapping" + (f" to {_value(inner)}" if isinstance(inner, dict) and inner else "")
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", None: "anything"}
    pattern = f" like `{schema['pattern']}`" if "pattern" in schema else ""
    return _cell(words.get(kind, kind) + pattern + _range(schema, step=int(kind == "integer")))


def _range(schema: dict[str, Any], step: int) -> str:
    """The ends of a number; ``step`` is what lies between whole numbers."""
    words = {
        "minimum": " from {}",
        "maximum": " to {}",
        "exclusiveMinimum": " above {}",
        "exclusiveMaximum": " below {}",
    }
    said = {key: schema[key] for key in words if key in schema and schema[key] < MANY}
    if step and "exclusiveMinimum" in said:
        said["minimum"] = said.pop("exclusiveMinimum") + step
    return "".join(words[key].format(f"{said[key]:,}") for key in words if key in said)


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "its defaults" if dataclasses.is_dataclass(value) else f"`{json.dumps(value)}`"
    if field.default is dataclasses.MISSING:
        return "**required**"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def _markdown(text: str) -> str:
    """A docstring or comment as one paragraph."""
    paragraphs = re.sub(r":\w+:`([^`]*)`", r"`\1`", text.replace("``", "`")).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(path: Path = PAGE) -> None:
    """Write the page."""
    with whole_file(path) as temporary:
        temporary.write_text(page())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write()
    print(PAGE)


if __name__ == "__main__":
    run_command(main)
