"""Edges of the commands of msa: what makes no sense is one line and exit code 2, before anything runs."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from msa.bench import __main__ as bench
from msa.checkpoints import __main__ as checkpoints
from msa.checkpoints import write
from msa.generation import ask
from msa.memory import encode, sharded
from msa.training import train
from msa_base.errors import run_command

NUMBERS = {  # option -> commands that have it, and what it takes
    "--threads": ([encode, ask, sharded, train, bench], ["-1", "1025", "1e9", "", "two", "9" * 5000]),
    "--tokens": ([ask], ["0", "-3", "1000000000", "1e9", "nan"]),
    "--rounds": ([ask], ["0", str(2**70)]),
    "--segment-tokens": ([encode], ["0", "-5", str(2**70)]),
    "--processes": ([train], ["0", "-2", "1e3"]),
    "--seconds": ([bench], ["0", "nan", "inf", "-1"]),
    "--repetitions": ([bench], ["0", "x"]),
}
CONVERT = {
    "--seed": ["-1", str(2**70), "0.5"],
    "--pool-tokens": ["0", str(2**70)],
    "--top-k": ["-1", "1e3"],
    "--shard-gb": ["nan", "inf", "-inf", "0", "-1", "1e300", "x"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, tokenizer, documents):
    """A model, documents and their bank."""
    root = tmp_path_factory.mktemp("edges")
    write.save(model, root / "model")
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    lines = [json.dumps({"doc_id": document.doc_id, "text": document.text}) for document in documents]
    (root / "documents.jsonl").write_text("\n".join(lines))
    (root / "file").write_text("not a directory")
    return root


@pytest.fixture
def refused(monkeypatch, capsys):
    """What a command says where it refuses: one line, exit code 2."""

    def call(module, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run_command(module.main)
        said = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("encode:")]
        assert left.value.code == 2 and len(said) == 1 and said[0].startswith("error: "), said
        return said[0]

    return call


@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_have_ranges(refused, option):
    modules, values = NUMBERS[option]
    for module in modules:
        for value in values:
            assert f"{option} {value[:40]}: must be a" in refused(module, f"{option}={value}")


@pytest.mark.parametrize("option", CONVERT)
def test_numbers_of_convert_have_ranges(refused, option, tmp_path):
    for value in CONVERT[option]:
        assert f"{option} {value}: must be a" in refused(
            checkpoints, "convert", "a", tmp_path / "b", f"{option}={value}"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ids", ["", ",", "1,,2", "-1", "1.5", str(2**63), "9" * 5000, "¹", "1 2"])
def test_ids_are_whole_numbers(refused, place, ids):
    assert "give whole numbers from 0" in refused(encode, "remove", place / "bank", f"--ids={ids}")


def test_a_document_and_a_question_have_a_length(refused, place):
    long = place / "long.jsonl"
    for words, said in ((200_000, "more than the 262,144 of one document"), (40_000, "more than the model's window")):
        long.write_text(json.dumps({"doc_id": 3, "text": "alpha " * words}))
        message = refused(encode, "build", place / "long", "--model", place / "model", "--documents", long)
        assert said in message and "split it" in message
    build = ("build", place / "asked", "--model", place / "model", "--documents", place / "documents.jsonl")
    sys.argv = ["encode", *map(str, build)]
    encode.main()
    message = refused(ask, place / "asked", "--model", place / "model", "alpha " * 20_000)
    assert "with --tokens 64 needs 20,0" in message and "window is 16,384" in message


def test_text_of_the_command_line_is_unicode(refused, place):
    build = ("build", place / "bank", "--model", place / "model", "--documents", place / "documents.jsonl")
    sys.argv = ["encode", *map(str, build)]
    encode.main()
    for question in ("what \udcff", "\udce9"):
        assert "is not valid Unicode" in refused(ask, place / "bank", "--model", place / "model", question)
    prefix = ("--prefix", "is \udcff")
    assert "is not valid Unicode" in refused(ask, place / "bank", "--model", place / "model", "what", *prefix)


def test_a_bank_needs_a_path_in_utf8(refused, place):
    strange = place / "b\udcff"
    build = ("build", strange, "--model", place / "model", "--documents", place / "documents.jsonl")
    assert "the path is not valid UTF-8" in refused(encode, *build) and not strange.exists()


def test_an_output_below_a_file_is_named(refused, place):
    below, model = place / "file" / "below" / "bank", ("--model", place / "model")
    assert str(place / "file") in refused(encode, "build", below, *model, "--documents", place / "documents.jsonl")
    assert str(place / "file") in refused(checkpoints, "export", place / "model", below)
    assert str(place / "file") in refused(bench, "--quick", "--threads=1", "--out", below)
    for name in (below, place / "file"):
        assert str(name) in refused(ask, name, *model, "what")
        assert str(name) in refused(encode, "info", name)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_json_of_any_depth_is_refused(refused, place, tmp_path, model, tokenizer, name):
    write.save(model, tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text('{"eos_token_id":' + DEEP + "}")
    message = refused(ask, place / "bank", "--model", tmp_path, "what")
    assert name in message and len(message) < 2000


def test_json_of_any_depth_is_refused_elsewhere(refused, place, tmp_path):
    (tmp_path / "bank.json").write_text(DEEP)
    assert "bank.json" in refused(encode, "info", tmp_path)
    (tmp_path / "deep.jsonl").write_text('{"doc_id": 1, "text": ' + DEEP + "}")
    build = ("build", tmp_path / "new", "--model", place / "model", "--documents", tmp_path / "deep.jsonl")
    assert "deep.jsonl" in refused(encode, *build)
    assert "--tiers" in refused(sharded, tmp_path, "--tiers", DEEP)
    (tmp_path / "model.safetensors.index.json").write_text(DEEP)
    (tmp_path / "config.json").write_text("{}")
    assert "model.safetensors.index.json" in refused(checkpoints, "export", tmp_path, tmp_path / "other")


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    """The command line and torch's threads are as they were behind every test."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
