"""The commands around a bank: build, edit, ask, alone and as one of two ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from msa.checkpoints import write
from msa.generation import ask
from msa.memory import encode, parallel
from msa_base.errors import run_command


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command's main in this process as a shell would; what it printed, on stderr where it fails."""
    threads = torch.get_num_threads()

    def call(module, *arguments, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run_command(module.main)
        said = capsys.readouterr()
        assert left.value.code == (2 if fails else 0), said.err
        return said.err if fails else said.out

    yield call
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, tokenizer, documents):
    root = tmp_path_factory.mktemp("commands")
    write.save(model, root / "model")
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    lines = [json.dumps({"doc_id": document.doc_id, "text": document.text}) for document in documents]
    (root / "documents.jsonl").write_text("\n".join(lines[:7]))
    (root / "more.jsonl").write_text("\n".join(lines[7:]))
    (root / "changed.jsonl").write_text(json.dumps({"doc_id": documents[0].doc_id, "text": "alpha is the answer"}))
    return root


def test_a_bank_is_built_edited_and_asked(place, documents, run, monkeypatch):
    bank, model = place / "bank", ("--model", place / "model")
    said = run(encode, "build", bank, *model, "--documents", place / "documents.jsonl", "--segment-tokens", 60)
    assert "7 documents" in said and "keys bfloat16" in said
    assert "9 documents" in run(encode, "add", bank, *model, "--documents", place / "more.jsonl")
    assert "1 removed" in run(encode, "replace", bank, *model, "--documents", place / "changed.jsonl")
    assert "8 documents" in run(encode, "remove", bank, "--ids", documents[3].doc_id)
    assert "0 removed" in run(encode, "compact", bank)
    question = (bank, *model, "what is alpha", "number", "--json", "--tokens", 6, "--threads", 1)

    def answers(*more: str) -> list[dict]:
        return [json.loads(line) for line in run(ask, *question, *more).splitlines()]

    alone = answers()
    assert [one["question"] for one in alone] == ["what is alpha", "number"]
    assert all(documents[3].doc_id not in ids for one in alone for ids in one["routed"].values())
    assert answers("--keys", "host", "--content", "disk", "--scan", "int8") == alone
    # two ranks as torchrun starts them; the leader is this process
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(parallel._free_port())}
    other = subprocess.Popen(
        [sys.executable, "-m", "msa.generation.ask", *map(str, question)], env={**os.environ, **ranks, "RANK": "1"}
    )
    for name, value in {**ranks, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert answers() == alone and other.wait(timeout=60) == 0


def test_bad_input_is_named(place, run):
    (place / "bad.jsonl").write_text('{"doc_id": 1, "text": "alpha"}\n{"doc_id": 2}\n')
    model = ("--model", place / "model")
    said = run(encode, "build", place / "none", *model, "--documents", place / "bad.jsonl", fails=True)
    assert "bad.jsonl, line 2" in said and not (place / "none").exists()
    assert "holds no bank" in run(ask, place / "none", *model, "what", fails=True)
    assert "--model and --documents are missing" in run(encode, "build", place / "none", fails=True)


# dies at the worst moment: the sixth segment is written, the manifest does not name it yet
KILLED = """
import os, signal, sys
from msa.memory import bank, encode
whole = bank.Manifest.write
def write(manifest, directory):
    if len(manifest.segments) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(manifest, directory)
bank.Manifest.write = write
encode.main()
"""


def test_a_killed_build_goes_on_behind_its_last_whole_segment(place, run):
    lines = [json.dumps({"doc_id": number, "text": f"the number for alpha is {number}"}) for number in range(200)]
    (place / "many.jsonl").write_text("\n".join(lines))
    bank = place / "killed"
    build = ("build", bank, "--model", place / "model", "--documents", place / "many.jsonl", "--segment-tokens", 100)
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    died = subprocess.run([sys.executable, "-c", KILLED, *map(str, build)], capture_output=True, env=here, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    kept = [entry["file"] for entry in json.loads((bank / "bank.json").read_text())["segments"]]
    assert len(kept) == 5 and len(list(bank.glob("segment-*"))) == 6
    written = {file: (bank / file).stat().st_mtime_ns for file in kept}
    assert "200 documents" in run(encode, *build)
    assert all((bank / file).stat().st_mtime_ns == at for file, at in written.items())
    assert not list(bank.glob(".*")) and len(list(bank.glob("segment-*"))) > len(kept)
