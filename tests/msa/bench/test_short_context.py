"""Short-context ability: perplexity and short answers of two models on the same texts."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from msa.bench import short_context
from msa.checkpoints import read, write
from msa.checkpoints.convert import convert
from msa.model.decoder import MSAModel
from msa_base.errors import run_command
from msa_base.records import Document, Question
from msa_base.seal import MadeFrom
from msa_base.stage_records import ViewRecord
from msa_base.tables import write_table
from tests.small_model import small_config

TEXT = ["alpha is the number for beta.", "what is the answer for gamma delta?", "return all related documents."]


@pytest.fixture
def place(tmp_path, tokenizer):
    """A backbone, another of the same shape, MSA made of the first, prose and a prepared task."""
    config = small_config(tokenizer.get_vocab_size())
    for seed, name in enumerate(("backbone", "other")):
        torch.manual_seed(seed)
        write.save(MSAModel(config), tmp_path / name)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    convert(tmp_path / "backbone", tmp_path / "msa")
    rows = [{"source": f"s{n}", "sentences": [*TEXT[n % 3 :], *TEXT]} for n in range(6)]
    write_table("prose", [*rows, {"source": "short", "sentences": ["alpha."]}], tmp_path / "prose.parquet")
    documents = [Document(number, f"alpha {number} beta", 5) for number in (101, 102, 103)]
    write_table("corpus", [vars(document) for document in documents[:2]], tmp_path / "corpus.parquet")
    task = tmp_path / "task"
    questions = [Question(f"q{n}", "what is alpha", "The answer is", 4, "o" if n else None) for n in range(3)]
    write_table("questions", [vars(question) for question in questions], task / "questions.parquet")
    write_table("overlays", [{"overlay_id": "o", **vars(documents[2])}], task / "overlays.parquet")
    gold = [("q0", ["1"], [101]), ("q1", ["2"], [103]), ("q2", [], [])]
    write_table(
        "gold",
        [dict(zip(("question_id", "answers", "gold_doc_ids"), row, strict=True)) for row in gold],
        task / "gold.parquet",
    )
    view = ViewRecord(made_from=MadeFrom(), corpus="prose", base_documents=2, context_tokens=99)
    view.write(task / "view.json")
    return tmp_path


@pytest.fixture
def command(place, monkeypatch, capsys):
    """The command on two models: exit code, stdout, stderr."""

    def run(before: str, after: str, *further: str) -> tuple[int, str, str]:
        words = [str(place / before), str(place / after), "--prose", str(place / "prose.parquet"), *further]
        monkeypatch.setattr(sys, "argv", ["msa.bench.short_context", *words])
        with pytest.raises(SystemExit) as done:
            run_command(short_context.main)
        return done.value.code, *capsys.readouterr()

    return run


def test_a_conversion_without_training_changes_nothing(place, command) -> None:
    code, out, _ = command(
        "backbone",
        "msa",
        "--passages",
        "4",
        "--tokens",
        "12",
        "--task",
        str(place / "task"),
        "--corpus",
        str(place / "corpus.parquet"),
    )
    found = json.loads(out)
    assert code == 0 and found["passages"] == 4 and found["tokens"] == 48
    assert found["perplexity"]["before"] == pytest.approx(found["perplexity"]["after"], rel=1e-5)
    assert found["nats_per_token"]["before"] == pytest.approx(found["nats_per_token"]["after"], abs=1e-5)
    assert found["questions"] == 2  # the one without an answer is left out
    assert found["short_answers"]["before"] == found["short_answers"]["after"]
    assert found["right"]["before"] == found["right"]["after"] and set(found["right"]["after"]) <= {0.0, 1.0}


def test_another_model_differs_and_the_loss_is_the_models_own(place, command, prompter) -> None:
    _, out, _ = command("backbone", "other", "--passages", "6", "--tokens", "10")
    found = json.loads(out)
    model, own = read.open_model(place / "backbone", 1)
    rows = short_context.passages(own, place / "prose.parquet", 10, 6)
    assert [len(row) for row in rows] == [10] * 6
    expected = []
    for row in rows:
        hidden, _ = model(torch.tensor([row]), torch.arange(10))
        shares = model.logits(hidden)[0].log_softmax(-1)
        expected.append(-sum(shares[place, row[place + 1]].item() for place in range(9)) / 9)
    assert found["perplexity"]["before"] == pytest.approx(math.exp(sum(expected) / 6), rel=1e-4)
    assert math.exp(sum(found["nats_per_token"]["before"]) / 6) == pytest.approx(found["perplexity"]["before"])
    assert found["nats_per_token"]["after"] != found["nats_per_token"]["before"]
    assert "short_answers" not in found


def test_bad_input_is_named(place, command, tokenizer) -> None:
    assert "ask for fewer --passages" in command("backbone", "msa", "--passages", "7", "--tokens", "10")[2]
    assert "belong together" in command("backbone", "msa", "--task", "x")[2]
    assert "--tokens 2 or more" in command("backbone", "msa", "--tokens", "1")[2]
    (place / "corpus.parquet").unlink()
    write_table("corpus", [vars(Document(7, "x", 1))], place / "corpus.parquet")
    code, _, error = command(
        "backbone",
        "msa",
        "--passages",
        "2",
        "--tokens",
        "9",
        "--task",
        str(place / "task"),
        "--corpus",
        str(place / "corpus.parquet"),
    )
    assert code == 2 and "document 101 of q0 is not in" in error
    content = json.loads((place / "msa" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["omega"] = vocabulary.pop("alpha")
    (place / "msa" / "tokenizer.json").write_text(json.dumps(content))
    (place / "msa" / "seal.json").unlink()
    assert "different tokenizers" in command("backbone", "msa", "--passages", "2", "--tokens", "9")[2]


@pytest.mark.parametrize(("text", "right"), [("it is 12.", True), ("123", False), ("", False), ("Twelve, 12", True)])
def test_an_answer_counts_as_a_whole_word(text, right) -> None:
    assert short_context.says(text, ["12"]) == right
