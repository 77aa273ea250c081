"""The wheel stands alone: every module of msa imports without the checkout, and a question is answered."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from msa.checkpoints import write
from msa.generation.generate import Interleave, Limits
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa_base.records import Question

ROOT = Path(__file__).parents[2]
QUESTION = "what is the number for alpha"
DISTRIBUTIONS = {"yaml": "pyyaml"}  # modules whose distribution has another name
SCRIPT = """
import importlib, json, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import msa
from msa.ops.dispatch import has_triton
for module in pkgutil.walk_packages(msa.__path__, "msa."):
    if not module.name.endswith("__main__") and ("triton" not in module.name or has_triton()):
        importlib.import_module(module.name)
from msa.checkpoints.read import open_model
from msa.generation.generate import Interleave, Limits
from msa.memory.encode import Encoder, read_documents
from msa.memory.routed import BankMemory
from msa_base.records import Question
from pathlib import Path
model, prompter = open_model(sys.argv[2])
bank = Encoder(model, prompter).bank(read_documents(Path(sys.argv[3]), prompter))
memory = BankMemory.plain(bank, 1, model.config.top_k_documents)
engine = Interleave(model, prompter, Limits(), lambda _, doc_id: bank.document(doc_id))
trace = engine.answer([Question("0", sys.argv[4], "The answer is", 8)], memory)[0]
loaded = sorted(name for name, module in sys.modules.items() if name.startswith(("msa.", "msa_base.")))
print(json.dumps({"files": [msa.__file__], "loaded": loaded, "text": trace.text, "routed": trace.routed}))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel of the present source, unpacked."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("msa", "msa_base", "tasks", "configs"):
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for file in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", target, "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target


@pytest.fixture(scope="module")
def alone(unpacked, tmp_path_factory, model, tokenizer, documents) -> dict:
    """What a process says that has the unpacked wheel and not the checkout."""
    place = tmp_path_factory.mktemp("elsewhere")
    write.save(model, place / "model")
    tokenizer.save(str(place / "model" / "tokenizer.json"))
    lines = [json.dumps({"doc_id": document.doc_id, "text": document.text}) for document in documents]
    (place / "documents.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-I", "-c", SCRIPT, unpacked, place / "model", place / "documents.jsonl", QUESTION]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_answers_as_the_checkout_does(alone, unpacked, model, prompter, documents):
    assert alone["files"] == [str(unpacked / "msa" / "__init__.py")]
    bank = Encoder(model, prompter).bank(documents)
    memory = BankMemory.plain(bank, 1, model.config.top_k_documents)
    engine = Interleave(model, prompter, Limits(), lambda _, doc_id: bank.document(doc_id))
    trace = engine.answer([Question("0", QUESTION, "The answer is", 8)], memory)[0]
    assert (alone["text"], alone["routed"]) == (trace.text, trace.routed) and trace.routed


def test_it_holds_msa_and_what_msa_stands_on_alone(unpacked):
    tops = {path.name for path in unpacked.iterdir() if not path.name.endswith((".whl", ".dist-info"))}
    assert tops == {"msa", "msa_base"}
    assert (unpacked / "msa" / "ops" / "routing.c").read_bytes() == (ROOT / "msa" / "ops" / "routing.c").read_bytes()


def test_what_its_modules_import_is_declared(alone):
    declared = {
        re.match(r"[\w-]+", requirement)[0].replace("-", "_").lower()
        for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    imported = set()
    for name in alone["loaded"]:
        path = ROOT / f"{name.replace('.', '/')}.py"
        if path.exists():
            for node in ast.parse(path.read_text()).body:  # what is imported inside functions may be absent
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"msa", "msa_base", "triton"}
    assert {"torch", "tokenizers", "safetensors"} <= foreign
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} <= declared
