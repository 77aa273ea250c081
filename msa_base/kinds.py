"""The module that a ``kind`` of the configuration names: how it is found, and whether it trains a model."""

from __future__ import annotations

import importlib
import importlib.util
import re
from functools import cache
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from msa_base.errors import UserError
from msa_base.validate import did_you_mean

PRETRAINED = "pretrained"  # msa.checkpoints.pretrained: weights that somebody fetched


def module_name(kind: str, package: str) -> str:
    """The module that a ``kind`` names: dotted names as they stand, others inside ``package``."""
    return kind if "." in kind else f"{package}.{kind}"


def import_kind(kind: str, package: str, where: str) -> ModuleType:
    """Import the module that ``kind`` names.

    Raises:
        UserError: no such module; ``where`` (file and entry) leads the message, the nearest module of the same folder
            ends it.
    """
    name = module_name(kind, package)
    try:
        if not is_module_name(name):
            raise ModuleNotFoundError(name=name)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        near = did_you_mean(kind, [*kinds_of(package), *kinds_of(kind.partition(".")[0]), PRETRAINED])
        raise UserError(
            f"{where}: kind '{kind}': there is no module {name}{near} (name a file of {package.replace('.', '/')}/"
            " or an installed module)"
        ) from None


def is_module_name(name: str) -> bool:
    """Whether this can be a module's full name: words with dots between."""
    return all(part.isidentifier() for part in name.split("."))


def kinds_of(package: str) -> list[str]:
    """The modules of a package by their own names, and all below it with dots between."""
    found = importlib.util.find_spec(package) if is_module_name(package) else None
    folders = list((found and found.submodule_search_locations) or ())
    files = [file.relative_to(Path(folder).parent) for folder in folders for file in Path(folder).rglob("*.py")]
    return [module.name for module in iter_modules(folders)] + [".".join(file.with_suffix("").parts) for file in files]


@cache
def trains(kind: str) -> bool:
    """Whether a model's ``kind`` names a trainer: ``TRAINS = True`` is a line of its module.

    A trainer's ``python -m MODULE ... --model NAME --threads N`` leaves a checkpoint and train.jsonl.
    """
    try:
        found = importlib.util.find_spec(kind) if "." in kind and is_module_name(kind) else None
    except ModuleNotFoundError:
        return False
    is_source = found is not None and (found.origin or "").endswith(".py")
    return is_source and re.search(r"^TRAINS = True\b", Path(found.origin).read_text(), re.MULTILINE) is not None


def holds_checkpoint(kind: str) -> bool:
    """Whether a model of this kind is a checkpoint; any other is a reference to one that lives elsewhere."""
    return kind == PRETRAINED or trains(kind)
