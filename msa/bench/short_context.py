"""Short context before and after a model became MSA: perplexity of real prose, and questions on text in the prompt.

    python -m msa.bench.short_context results/tiny/_models/backbone results/tiny/_models/msa \\
        --prose results/tiny/_data/prose/evaluation.parquet --task results/tiny/_data/scaling_facts/16K \\
        --corpus results/tiny/_data/_corpora/facts/corpus.parquet > short_context.json
    python -m reports.short_context short_context.json        the paired differences with their intervals

Both models work as plain decoders, without a memory, on the same passages and the same prompts (gold documents, then
the question). Prints one JSON object, with the value of each passage and question. A backbone whose tokenizer lacks
special tokens of the prompts is compared as `python -m msa.checkpoints convert` leaves it: that alone changes no text's
loss.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from msa.generation.reader import Reader
from msa.model.decoder import MSAModel
from msa.model.prompt import Prompter
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, add_threads, given_path
from msa_base.records import Document, Question
from msa_base.stage_records import ViewRecord
from msa_base.tables import read_corpus, read_questions, read_table, read_view


def passages(prompter: Prompter, path: Path, tokens: int, number: int) -> list[list[int]]:
    """``number`` rows of ``tokens`` tokens, each from another source file, evenly spread; a UserError if too few."""
    texts = [" ".join(row["sentences"]) for row in read_table("prose", path)]
    rows = [ids[:tokens] for ids in prompter.texts(texts) if len(ids) >= tokens]
    if len(rows) < number:
        enough = f"{len(rows)} sources have {tokens} tokens or more"
        raise UserError(f"{path}: {enough}; ask for fewer --passages or --tokens")
    return [rows[place * len(rows) // number] for place in range(number)]


@torch.no_grad()
def losses(model: MSAModel, rows: Sequence[list[int]], batch: int = 8) -> list[float]:
    """Mean next-token loss of each row, in nats."""
    found: list[float] = []
    for start in range(0, len(rows), batch):
        ids = torch.tensor(rows[start : start + batch], device=model.device)
        hidden, _ = model(ids, torch.arange(ids.shape[1], device=ids.device))
        logits = model.logits(hidden[:, :-1]).float().transpose(1, 2)
        found += F.cross_entropy(logits, ids[:, 1:], reduction="none").mean(1).tolist()
    return found


def questions_of(task: Path, corpus: Path, number: int) -> list[tuple[list[Document], Question, list[str]]]:
    """The first questions of a prepared task that have an answer, with their gold documents and answers.

    A UserError where there is none, or where the corpus lacks a gold document.
    """
    documents = ViewRecord.open(task / "view.json").base_documents
    view = read_view(task, read_corpus(corpus, documents))
    gold = {row["question_id"]: row for row in read_table("gold", task / "gold.parquet")}
    base = {document.doc_id: document for document in view.base}
    found = []
    for question in read_questions(task / "questions.parquet"):
        row = gold[question.question_id]
        if not row["answers"] or len(found) == number:
            continue
        documents = base | {document.doc_id: document for document in view.overlay(question).added}
        if missing := [doc_id for doc_id in row["gold_doc_ids"] if doc_id not in documents]:
            lacking = f"document {missing[0]} of {question.question_id} is not in {corpus}"
            raise UserError(f"{task}: {lacking}; name the task's corpus")
        found.append(([documents[doc_id] for doc_id in row["gold_doc_ids"]], question, row["answers"]))
    if not found:
        raise UserError(f"{task}: holds no question with an answer; name a prepared task and context")
    return found


def says(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of the answers as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) for answer in answers)


def compare(before: Reader, after: Reader, rows: list[list[int]], asked: list) -> dict[str, Any]:
    """Perplexity and short answers of two models; a UserError where their tokenizers differ."""
    if before.prompter.tokenizer.get_vocab() != after.prompter.tokenizer.get_vocab():
        differ = "the two models have different tokenizers, so their perplexities do not compare"
        raise UserError(f"{differ}; name a model and what it became")
    models = {"before": before, "after": after}
    nats = {name: losses(reader.model, rows) for name, reader in models.items()}
    result: dict[str, Any] = {
        "perplexity": {name: math.exp(statistics.fmean(values)) for name, values in nats.items()},
        # a uniform guess; a model that was never trained on prose may well be above it
        "perplexity_of_a_uniform_guess": before.model.config.vocab_size,
        "nats_per_token": nats,  # of each passage
        "passages": len(rows),
        "tokens": sum(map(len, rows)),
    }
    if asked:
        pairs = [(documents, question) for documents, question, _ in asked]
        right = {}
        for name, reader in models.items():
            replies = zip(reader.answer(pairs), asked, strict=True)
            right[name] = [float(says(reply.text, answers)) for reply, (_, _, answers) in replies]
        result["short_answers"] = {name: statistics.fmean(values) for name, values in right.items()}
        result["right"] = right  # 0 or 1 of each question
        result["questions"] = len(asked)
    return result


def main() -> None:
    """Compare two checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=given_path, help="the model before its conversion")
    parser.add_argument("after", type=given_path, help="the model that it became")
    parser.add_argument("--prose", type=given_path, required=True, help="evaluation.parquet of tasks.stages.sources")
    parser.add_argument("--task", type=given_path, help="a prepared task and context, for short questions")
    parser.add_argument("--corpus", type=given_path, help="its corpus.parquet")
    add_number(parser, "--passages", 64, "passages of prose (default: 64)")
    add_number(parser, "--tokens", 256, "tokens of a passage (default: 256)")
    add_number(parser, "--questions", 128, "questions at most (default: 128)")
    add_threads(parser, 1, "CPU threads (default: 1)")
    chosen = parser.parse_args()
    if (chosen.task is None) != (chosen.corpus is None):
        raise UserError("--task and --corpus belong together; name both or neither")
    if chosen.passages < 1 or chosen.tokens < 2 or chosen.questions < 1:
        raise UserError("--passages and --questions must be 1 or more, --tokens 2 or more")
    before, after = (Reader(path, chosen.threads) for path in (chosen.before, chosen.after))
    rows = passages(before.prompter, chosen.prose, chosen.tokens, chosen.passages)
    asked = questions_of(chosen.task, chosen.corpus, chosen.questions) if chosen.task else []
    print(json.dumps(compare(before, after, rows, asked), indent=1))


if __name__ == "__main__":
    run_command(main)
