"""Mutants: faults put by cosmic-ray into the modules that make numbers, and whether the tests catch them.

    python -m tests.mutants                       all modules of cosmic-ray.toml (`make mutants`)
    python -m tests.mutants msa/ops/keys.py       some of them

No file is changed: a child process imports the mutated source in place of the module's own and runs the module's tests
up to the first failure. Annotations are left alone, since nothing reads them. Equal seeds draw equal mutants of equal
sources. Ends with 1 where fewer than ``ENOUGH`` of the mutants are caught.
"""

from __future__ import annotations

import ast
import difflib
import os
import random
import re
import signal
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from types import CodeType

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ENOUGH = 0.95  # of the mutants
# imported once, not once a mutant; first what sets the environment of tests
WARM = ("tests.conftest", "pandas", "pyarrow.parquet", "scipy.sparse", "scipy.stats", "tokenizers", "torch")
WARM += ("transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3")


class Mutated(SourceFileLoader):
    """Finds one module and loads it from a changed source."""

    def __init__(self, path: str, source: str) -> None:
        super().__init__(path.removesuffix(".py").replace("/", "."), str(Path(path).absolute()))
        self.source = source

    def find_spec(self, name: str, places: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, name: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Bare(ast.NodeTransformer):
    """Takes out annotations."""

    def visit(self, node: ast.AST) -> ast.AST:
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, ast.Constant(None))
        return self.generic_visit(node)


def _meaning(source: str) -> str | None:
    """What a source says beside its annotations; None where it is no Python (``if not x := y`` among the mutants)."""
    try:
        return ast.dump(_Bare().visit(ast.parse(source)))
    except SyntaxError:
        return None


def drawn(path: str, seed: int, places: int, exclude: list[str]) -> Iterator[tuple[str, int, str]]:
    """Some mutants of a module, one each of places drawn at random: operator, line, the whole source."""
    source, taken = Path(path).read_text(), set()
    same = (None, _meaning(source))
    found, nodes = [], list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        operator = get_operator(name)
        if not operator.arguments() and not any(re.match(one, name) for one in exclude):
            starts = (start for node in nodes for start, _ in operator().mutation_positions(node))
            found += [(name, number, start) for number, start in enumerate(starts)]
    random.Random(f"{seed} {path}").shuffle(found)
    for name, number, start in found:
        if start in taken:
            continue
        changed = mutate_code(source, get_operator(name)(), number)
        if _meaning(changed) not in same:
            taken.add(start)
            yield name, start[0], changed
        if len(taken) == places:
            return


def _tested(path: str, source: str, files: list[str], output: str) -> None:
    os.setsid()
    with open(output, "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.meta_path.insert(0, Mutated(path, source))
    code = pytest.main(["-x", "-p", "no:cacheprovider", "--tb=line", *files])
    sys.stdout.flush()
    os._exit(code)


def failure(path: str, source: str, files: list[str], seconds: float) -> str:
    """What first fails under a source of a module; empty where nothing does."""
    with tempfile.NamedTemporaryFile("r", errors="replace") as output:
        child = get_context("fork").Process(target=_tested, args=(path, source, files, output.name))
        child.start()
        child.join(seconds)
        if child.exitcode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.join()
            return "does not end"
        said = [line for line in output.read().splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
        return "" if child.exitcode == 0 else said[-1] if said else f"ends with {child.exitcode}"


def main(chosen: list[str]) -> int:
    """Draw, test and say; the exit status."""
    config = tomllib.loads(Path("cosmic-ray.toml").read_text())
    options, drawing, tests = config["cosmic-ray"], config["mutants"], config["mutants"]["tests"]
    exclude = options["filters"]["operators-filter"]["exclude-operators"]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in WARM:
        import_module(name)
    pytest.main(["--version"])  # its own modules, too
    caught = total = 0
    for path in chosen or tests:
        source, started = Path(path).read_text(), perf_counter()
        if wrong := failure(path, source, tests[path], options["timeout"]):
            sys.exit(f"error: {path}: its tests fail without a mutant: {wrong}")
        took = perf_counter() - started
        print(f"{path}: tests take {took:.0f} s", flush=True)
        for operator, line, changed in drawn(path, drawing["seed"], drawing["places"], exclude):
            found = failure(path, changed, tests[path], max(options["timeout"], 10 * took))
            caught, total = caught + bool(found), total + 1
            print(f"  {line}: {operator}: {found[:120] or 'SURVIVES'}", flush=True)
            if not found:
                lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0)
                print("\n".join(f"      {line}" for line in list(lines)[3:]), flush=True)
    print(f"{caught} of {total} mutants are caught (seed {drawing['seed']})")
    return int(caught < ENOUGH * total)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
