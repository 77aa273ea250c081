"""What people write, checked: YAML files and mappings become frozen dataclasses, or one line names file, key and mend.

The types of a dataclass's fields say what is allowed; pydantic checks them, strictly: "3" and true are no numbers, and
neither nan nor inf is one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from msa_base.errors import UserError, shown

MOST_BYTES, MOST_VALUES = 2**22, 10**6  # of one file
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_MISSING = ("missing", "missing_argument")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        mend = "use letters, digits, '_', '-' and '.', a letter first"
        raise PydanticCustomError("name", f"cannot be a directory's; {mend}")
    return name


Name = Annotated[str, AfterValidator(_check_name)]  # part of a path, where a leading underscore is the workflow's own


def _check_distinct(items: list[Any]) -> list[Any]:
    if twice := [item for item in items if items.count(item) > 1]:
        raise PydanticCustomError("twice", "names {item} twice; name it once", {"item": repr(twice[0])})
    return items


Distinct = AfterValidator(_check_distinct)  # of a list: nothing twice


def _check_printable(text: str) -> str:
    if not all(letter.isprintable() or letter == "\n" for letter in text):
        raise PydanticCustomError("unprintable", "must hold no control characters")
    return text


Text = Annotated[str, StringConstraints(min_length=1), AfterValidator(_check_printable)]
Names = Annotated[list[Text], Distinct]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]  # sha256
# The ranges of numbers. Their upper ends lie far above what anybody can mean: a slip of the keyboard stops here, not
# after hours of work.
MANY = 10**6
Count = Annotated[int, Field(gt=0, le=MANY)]  # of what is held or done one by one
Whole = Annotated[int, Field(ge=0, le=MANY)]
Tokens = Annotated[int, Field(gt=0, le=10**12)]
Threads = Annotated[int, Field(gt=0, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=10)]  # of learning
Weight = Annotated[float, Field(ge=0, le=1e6)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
Positive = Annotated[float, Field(gt=0, le=1e15)]


class Wrong(UserError, ValueError):
    """What a record's own check (``__post_init__``) says of its values; :func:`build` adds where they stand."""


def build(cls: Any, value: Any, where: str) -> Any:
    """Make ``cls`` (a dataclass, or a type such as ``dict[str, ASpec]``) of what YAML or JSON holds.

    The value passes through JSON: strictly taken, a Python mapping is no dataclass, while a JSON object may be one.

    Raises:
        UserError: an unknown, missing or ill-typed key; the message starts with ``where`` and, for a typo, ends with
            the nearest key. So does what a dataclass's own check raises.
    """
    try:
        return adapter(cls).validate_json(json.dumps(value))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        first = min(faults, key=lambda fault: fault["type"] not in _UNKNOWN)  # a typo explains the key that is missing
        raise UserError(f"{where}: {_explain(cls, value, first)}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: holds what is neither text, number, list nor mapping ({error})") from None


@cache
def adapter(cls: Any) -> TypeAdapter:
    if dataclasses.is_dataclass(cls):
        cls.__pydantic_config__ = _CONFIG
        return TypeAdapter(cls)
    return TypeAdapter(cls, config=_CONFIG)


def _explain(cls: Any, value: Any, fault: Any) -> str:
    """One line on the first fault: where it stands inside the value, and what is allowed there."""
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ")
    keys: list[str] = []
    for part in fault["loc"]:  # the parts that are keys of the value; pydantic's own names of branches are left out
        if isinstance(value, list) and isinstance(part, int):
            keys[-1:] = [f"{keys[-1]}[{part}]" if keys else f"[{part}]"]
            value, cls = value[part], _inside(cls, part)
        elif isinstance(value, dict) and (part in value or kind in _MISSING):
            keys.append(part)
            value, cls = value.get(part), (cls if kind in _UNKNOWN and part == fault["loc"][-1] else _inside(cls, part))
    *parents, last = keys or [""]
    where = "".join(f"{parent}: " for parent in parents)
    if kind in _UNKNOWN:
        known = sorted(field.name for field in dataclasses.fields(_record(cls)))
        return f"{where}unknown key '{last}'{did_you_mean(last, known)} (known: {', '.join(known)})"
    if kind in _MISSING:
        return f"{where}key '{last}' is missing; add it"
    if kind == "value_error":  # Wrong: of the whole record
        return f"{''.join(f'{key}: ' for key in keys)}{message}"
    if kind == "name":
        return f"{where}name '{fault['input']}' {message}"
    if kind in ("dict_type", "dataclass_type"):
        found = "nothing" if value is None else type(value).__name__
        return f"{where}{last}{': ' if last else ''}expected a mapping, found {found}"
    if kind in ("too_short", "string_too_short"):
        return f"{where}key '{last}' is empty; give one at least"
    hint = ""
    if kind == "literal_error":
        hint = did_you_mean(str(fault["input"]), re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    text = re.sub(r"^\w+ should", "must", message)
    return f"{where}key '{last}' {text}, found {shown(fault['input'])}{hint}"


def _record(cls: Any) -> Any:
    """The dataclass among a type's branches."""
    return next((branch for branch in (cls, *typing.get_args(cls)) if dataclasses.is_dataclass(branch)), cls)


def _inside(cls: Any, part: Any) -> Any:
    """The type of an item of a type: a dataclass's field, or what a list or dict holds; None where it is unknown."""
    if dataclasses.is_dataclass(cls):
        return typing.get_type_hints(cls).get(part)
    for branch in (cls, *typing.get_args(cls)):  # of a union the branch that has items
        if dataclasses.is_dataclass(branch):
            return _inside(branch, part)
        if typing.get_origin(branch) in (list, dict, tuple):
            return typing.get_args(branch)[-1]
    return None


def did_you_mean(name: str, known: Iterable[Any]) -> str:
    """The hint at the nearest known name, or nothing."""
    near = difflib.get_close_matches(str(name), [str(item) for item in known], 1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_known(names: Iterable[Any], known: Iterable[Any], where: str, source: Path | str) -> None:
    """Raise a UserError for a name that is not among those of ``source``, with the nearest one as a hint."""
    known = list(known)  # a list may be asked for anything, a mapping not for what cannot be its key
    for name in names:
        if name not in known:
            listed = ", ".join(map(str, known))
            raise UserError(f"{where}: unknown name '{name}'{did_you_mean(name, known)} (known in {source}: {listed})")


class _Loader(yaml.SafeLoader):
    """Refuses what YAML allows and nobody means: a key given twice, and a key that is no text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in seen:
                problem = "is given twice; keep one" if isinstance(key, str) else "is no text; put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} {problem}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Whole numbers as people write them: to YAML 1.1, 010 is eight and 1:30 ninety."""
    if not re.fullmatch(r"[-+]?(0|[1-9][\d_]*)", node.value):
        problem = f"{node.value} is no number in decimal; write it so, or put it in quotes"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.yaml_implicit_resolvers = {  # dates stay text
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_checked(cls: Any, path: Path | str) -> Any:
    """Make ``cls`` of a YAML file; a text that was read before is not checked again.

    Raises:
        UserError: as :func:`build` and :func:`read_yaml` do.
    """
    return _checked(cls, str(path), _text(path))


@lru_cache(maxsize=64)
def _checked(cls: Any, path: str, text: str) -> Any:
    return build(cls, _parse(text, path), path)


def read_yaml(path: Path | str) -> Any:
    """Read a YAML file; a missing or broken one is a UserError that names it."""
    return _parse(_text(path), path)


def _text(path: Path | str) -> str:
    try:
        found = Path(path).stat()
        if not S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            what = f"has {found.st_size:,} bytes, {MOST_BYTES:,} at most" if S_ISREG(found.st_mode) else "is no file"
            raise UserError(f"{path}: cannot be read as text: {what}")
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(item.stem for item in Path(path).parent.glob("*.yaml")))
        raise UserError(f"{path}: no such file (there: {known})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text: {error}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as text: {error.strerror}") from None


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values a value holds, those that aliases repeat counted each time."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_VALUES + 1  # of one that holds itself
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def _parse(text: str, path: Path | str) -> Any:
    try:
        value = yaml.load(text, _Loader)
        if _size(value, {}) > MOST_VALUES:
            raise UserError(f"{path}: its aliases make more than {MOST_VALUES:,} values; write less")
        return value
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
