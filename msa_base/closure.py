"""What code a result depends on: digests of all that some functions reach, without comments and docstrings.

A start is a module (``baselines.bm25``) or one of its functions (``baselines.bm25:make``). From there names are
followed through the project's own modules and through plug-ins that lie outside site-packages. A function brings the
functions, classes and constants that it names, also by imports inside functions. Statements that run on import count
wherever the module is reached, and so do data files that the code names and that lie beside it (C sources, YAML).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import json
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from msa_base.seal import DIGITS, read_cache
from msa_base.tables import whole_file

# modules and packages that bring inputs in and carry outputs out, and cannot change what is in them
PLUMBING = (
    *(f"baselines.drivers.{name}" for name in ("evaluation", "index", "measure", "provenance", "run", "supervise")),
    "baselines.planning",
    "msa_base",
)
CONTENT = tuple(
    f"msa_base.{name}" for name in ("endpoint", "fields", "prompts", "records", "replies", "tables")
)  # but for these
ESTIMATES = {"estimate_cell", "estimate_index", "index_parts"}  # hooks of a plug-in that plans alone ask
PLUGINS = "baselines"  # its modules, and plug-ins elsewhere, open one another by name: strings of theirs count too
ON_IMPORT = "<on import>"
CHECKOUT = Path(__file__).parent.parent
KEPT = Path(__file__).parent / "__pycache__" / "closures.json"  # as Python keeps what it compiled
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_OF_PACKAGES = {"site-packages", "dist-packages"}  # folders of another interpreter's, which `.pth` files may name

Chain = tuple[str, ...]  # a name and the attributes behind it


@dataclass
class Module:
    """A source file: digest and names used, of each top-level name and of what runs on import."""

    digests: dict[str, str] = field(default_factory=dict)
    uses: dict[str, set[Chain]] = field(default_factory=lambda: defaultdict(set))
    imports: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # dotted names by local name
    words: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # strings that may name a plug-in
    data: set[Path] = field(default_factory=set)


def code(*starts: str, cut: tuple[tuple[str, str], ...] = ()) -> dict[str, str]:
    """A digest of what is reached in each module and data file, by its name.

    Args:
        starts: modules, or functions of modules (all of the module where it has no such name). Modules in
            site-packages do not count.
        cut: pairs of a module and one that is not reached from it, since nothing that starts here takes that way.
    """
    key = json.dumps([str(CHECKOUT), starts, cut])
    kept = read_cache(KEPT)
    if key not in kept or any(_stamp(path) != stamp for path, stamp in kept[key]["files"].items()):
        files, found = _follow(starts, cut)
        kept[key] = {"files": {str(path): _stamp(path) for path in {Path(__file__), *files}}, "code": found}
        with suppress(OSError), whole_file(KEPT) as temporary:  # an installed package may not be writable
            others = read_cache.__wrapped__(KEPT)  # as other commands have left it by now
            temporary.write_text(json.dumps(others | {key: kept[key]}))
    return kept[key]["code"]


def _stamp(path: Path | str) -> list[int]:
    with suppress(FileNotFoundError):
        found = Path(path).stat()
        return [found.st_size, found.st_mtime_ns]
    return []


def _follow(starts: Iterable[str], cut: Iterable[tuple[str, str]]) -> tuple[set[Path], dict[str, str]]:
    """The files that some starts reach, and the digests of what is reached in each."""
    reached: dict[str, set[str]] = defaultdict(set)
    named = (start.partition(":") for start in starts)
    waiting = [(module, function or None) for module, _, function in named if source(module) is not None]
    while waiting:
        name, unit = waiting.pop()
        module = read(source(name), name)
        units = {ON_IMPORT, *({unit} if unit in module.digests else () if unit == ON_IMPORT else module.digests)}
        for new in units - reached[name] - ESTIMATES:
            reached[name].add(new)
            for chain in module.uses[new]:
                reaches = resolved(name, module, chain)
                waiting += [item for item in reaches if not is_plumbing(item[0]) and (name, item[0]) not in cut]
            if name.rpartition(".")[0] == PLUGINS or _root(name.partition(".")[0]) != CHECKOUT:
                plugins = modules_named(sorted(module.words[new]), PLUGINS)
                waiting += [(plugin, None) for plugin in plugins if plugin != name]
        parent = name.rpartition(".")[0]
        if parent and ON_IMPORT not in reached[parent] and not is_plumbing(parent):
            waiting.append((parent, ON_IMPORT))
    files, found = set(), {}
    for name, units in reached.items():
        module = read(source(name), name)
        files |= {source(name), *module.data}
        if parts := [f"{unit} {module.digests[unit]}" for unit in sorted(units & module.digests.keys())]:
            found[name] = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]
        for path in module.data:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(_root(name.partition(".")[0])))] = content[:DIGITS]
    return files, dict(sorted(found.items()))


def modules_named(value: object, package: str) -> Iterator[str]:
    """The modules among the words of a configuration value: files of a package, or dotted plug-ins."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from modules_named(item, package)
    elif isinstance(value, str) and all(part.isidentifier() for part in value.split(".")):
        name = value if "." in value else f"{package}.{value}"
        if source(name) is not None:
            yield name


def is_plumbing(module: str) -> bool:
    """Whether a module is among those that change no result."""
    return module not in CONTENT and any(f"{module}.".startswith(f"{name}.") for name in PLUMBING)


def resolved(
    name: str, module: Module, chain: Chain, met: frozenset[tuple[str, str]] = frozenset()
) -> Iterator[tuple[str, str | None]]:
    """What a name used in a module may stand for: (module, its top-level name or None for all of it).

    ``met``: names of modules on the way here; modules that import a name from one another end it.
    """
    first, *rest = chain
    if (name, first) in met:
        return
    met |= {(name, first)}
    if first in module.digests:
        yield name, first
    for target in module.imports.get(first, ()):
        parts = [*target.split("."), *rest]
        for length in range(len(parts), 0, -1):
            found = ".".join(parts[:length])
            if source(found) is not None:
                inside = parts[length] if length < len(parts) else None
                there = read(source(found), found)
                if inside in there.imports and inside not in there.digests:
                    yield from resolved(found, there, (inside, *parts[length + 1 :]), met)
                    yield found, ON_IMPORT
                else:
                    yield found, inside if inside in there.digests else None
                break


@cache
def _root(top: str) -> Path | None:
    """The directory that holds a top-level package or module; None where it is not there, or is installed."""
    spec = importlib.machinery.PathFinder.find_spec(top)
    places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
    if not places or places[0] is None:
        return None
    root = Path(places[0]).absolute().parent
    is_ours = root == CHECKOUT and (root / top).is_dir() and (CHECKOUT / "msa_base").is_dir()
    is_installed = str(root).startswith(_INSTALLED) or bool(_OF_PACKAGES & set(root.parts))
    return root if is_ours or not is_installed else None


@cache
def source(name: str) -> Path | None:
    """The source file of a module that lies outside site-packages; None for any other name."""
    root = _root(name.partition(".")[0])
    if root is None:
        return None
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def read(path: Path, name: str) -> Module:
    """The parts of a source file."""
    tree = _Bare().visit(ast.parse(path.read_bytes(), str(path)))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    module = Module()
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        names = _defined(statement)
        for unit in names or [ON_IMPORT]:
            digest = hashlib.sha256(ast.dump(statement).encode()).hexdigest()
            module.digests[unit] = module.digests.get(unit, "") + digest
            module.uses[unit] |= set(_used(statement))
            module.words[unit] |= set(_words(statement))
        for decorator in getattr(statement, "decorator_list", []):  # it may register what it decorates
            module.uses[ON_IMPORT] |= {(names[0],) for chain in _used(decorator) if chain[0] in module.digests}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _bind(node, package, module.imports)
    for text in _words(tree):
        module.data |= set(_beside(path.parent, text))
    used = {chain[0] for chains in module.uses.values() for chain in chains}
    module.uses[ON_IMPORT] |= {(unused,) for unused in module.imports.keys() - used - {"annotations"}}
    return module


class _Bare(ast.NodeTransformer):
    """Takes out docstrings and the block that runs a module as a command."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "__name__ == '__main__'" else self.generic_visit(node)


def _defined(statement: ast.stmt) -> list[str]:
    """The top-level names that a statement defines and that are reached by name alone."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    flat = [item for target in targets for item in (target.elts if isinstance(target, ast.Tuple) else [target])]
    names = [item.id for item in flat if isinstance(item, ast.Name)]
    return names if len(names) == len(flat) and "_" not in names else []


def _used(node: ast.AST) -> Iterator[Chain]:
    """Names that are read in a piece of code, with the attributes behind them."""
    inner: set[int] = set()
    for item in ast.walk(node):  # outer attributes come before what they are taken of
        if isinstance(item, ast.Attribute | ast.Name) and id(item) not in inner:
            chain: list[str] = []
            while isinstance(item, ast.Attribute):
                chain.append(item.attr)
                item = item.value
                inner.add(id(item))
            if isinstance(item, ast.Name):
                yield item.id, *reversed(chain)


def _words(node: ast.AST) -> Iterator[str]:
    """The strings in a piece of code."""
    return (item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str))


def _bind(node: ast.Import | ast.ImportFrom, package: str, imports: dict[str, set[str]]) -> None:
    """Add the names that an import binds."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            imports[alias.asname or top].add(alias.name if alias.asname else top)
            imports[f"import {alias.name}"].add(alias.name)  # nobody uses this name: it may be for its effect
    else:
        parents = package.split(".")
        base = parents[: len(parents) - node.level + 1] if node.level else []
        origin = ".".join([*base, *filter(None, [node.module])])
        for alias in node.names:
            target = origin if alias.name == "*" else f"{origin}.{alias.name}"
            imports[alias.asname or alias.name].add(target)


def _beside(directory: Path, text: str) -> Iterable[Path]:
    """Data files of a directory that a string in the code names, or those of a folder that it names."""
    if not text or len(text) > 64 or "/" in text or text.startswith((".", "__")):  # what Python keeps is no source
        return
    path = directory / text
    if path.is_file() and path.suffix != ".py":
        yield path
    elif path.is_dir() and not any(path.glob("*.py")):
        yield from (file for file in sorted(path.rglob("*")) if file.is_file())
