"""The commands around a bank: build, edit, ask, alone and under torchrun."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from msa import checkpoint


def run(*arguments, fails: bool = False) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=180)
    assert (done.returncode == 2) if fails else (done.returncode == 0), done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, tokenizer, documents):
    root = tmp_path_factory.mktemp("commands")
    checkpoint.save(model, root / "model")
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    lines = [json.dumps({"doc_id": document.doc_id, "text": document.text}) for document in documents]
    (root / "documents.jsonl").write_text("\n".join(lines[:7]))
    (root / "more.jsonl").write_text("\n".join(lines[7:]))
    (root / "changed.jsonl").write_text(json.dumps({"doc_id": documents[0].doc_id, "text": "alpha is the answer"}))
    return root


def test_a_bank_is_built_edited_and_asked(place, documents):
    bank, model = place / "bank", ("--model", place / "model")
    said = run("-m", "msa.encode", "build", bank, *model, "--documents", place / "documents.jsonl", "--segment-tokens", 60)
    assert "7 documents" in said and "keys bfloat16" in said
    assert "9 documents" in run("-m", "msa.encode", "add", bank, *model, "--documents", place / "more.jsonl")
    assert "1 removed" in run("-m", "msa.encode", "replace", bank, *model, "--documents", place / "changed.jsonl")
    assert "8 documents" in run("-m", "msa.encode", "remove", bank, "--ids", documents[3].doc_id)
    assert "0 removed" in run("-m", "msa.encode", "compact", bank)
    question = ("what is alpha", "number", "--json", "--tokens", 6, "--threads", 1)
    alone = [json.loads(line) for line in run("-m", "msa.ask", bank, *model, *question).splitlines()]
    assert [one["question"] for one in alone] == ["what is alpha", "number"]
    assert all(documents[3].doc_id not in ids for one in alone for ids in one["routed"].values())
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    both = [json.loads(line) for line in run(*torchrun, "-m", "msa.ask", bank, *model, *question).splitlines()]
    assert both == alone
    tiers = ("--keys", "host", "--content", "disk", "--scan", "int8")
    assert [json.loads(line) for line in run("-m", "msa.ask", bank, *model, *question, *tiers).splitlines()] == alone


def test_bad_input_is_named(place):
    (place / "bad.jsonl").write_text('{"doc_id": 1, "text": "alpha"}\n{"doc_id": 2}\n')
    model = ("--model", place / "model")
    said = run("-m", "msa.encode", "build", place / "none", *model, "--documents", place / "bad.jsonl", fails=True)
    assert "bad.jsonl, line 2" in said and not (place / "none").exists()
    assert "holds no bank" in run("-m", "msa.ask", place / "none", *model, "what", fails=True)
    assert "--model and --documents are missing" in run("-m", "msa.encode", "build", place / "none", fails=True)


def test_a_killed_build_goes_on_behind_its_last_whole_segment(place):
    lines = [json.dumps({"doc_id": number, "text": f"the number for alpha is {number}"}) for number in range(4000)]
    (place / "many.jsonl").write_text("\n".join(lines))
    bank = place / "killed"
    build = ("-m", "msa.encode", "build", bank, "--model", place / "model", "--documents", place / "many.jsonl", "--segment-tokens", 500)
    process = subprocess.Popen([sys.executable, *map(str, build)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list(bank.glob("segment-*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = {entry["file"]: entry for entry in json.loads((bank / "bank.json").read_text())["segments"]}
    assert len(kept) >= 4
    written = {file: (bank / file).stat().st_mtime_ns for file in kept}
    assert "4,000 documents" in run(*build)
    assert all((bank / file).stat().st_mtime_ns == at for file, at in written.items())
    assert not list(bank.glob(".*")) and len(list(bank.glob("segment-*"))) > len(kept)
