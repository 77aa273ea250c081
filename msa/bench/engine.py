"""The whole engine: encoding, time to first token, time per token, and the shares of routing, fetching and decoding."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from msa.bench.measure import repeated
from msa.checkpoints import read
from msa.generation.generate import Interleave, Limits
from msa.memory.bank import Bank
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory, scans_of
from msa.ops.keys import Queries
from msa.ops.route import Winners
from msa_base.records import Question

COLUMNS = (
    "context_tokens", "documents", "n", "encode_tokens_per_s", "first_token_s", "first_token_p90_s", "token_s",
    "total_s", "routing_share", "fetch_share", "decode_share", "other_share",
)  # fmt: skip
SIZES = (16_384, 131_072, 1_000_000, 10_000_000)
ENCODED = 200  # documents


class TimedMemory(BankMemory):
    """A bank's memory that adds up the seconds of routing and of fetching keys and values."""

    spent: dict[str, float]

    def _timed(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = perf_counter()
        found = call(*arguments)
        self.spent[what] += perf_counter() - started
        return found

    def winners(self, layer: int, queries: Queries) -> Winners:
        return self._timed("routing", super().winners, layer, queries)

    def fetch(self, layer: int, winners: Winners) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._timed("fetch", super().fetch, layer, winners)


def measure(model_path: Path, bank_path: Path, threads: int, count: int) -> list[dict[str, Any]]:
    """One row for every context that the bank holds: ``count`` questions on its documents, one by one after a warm-up.

    Fetching runs beside the layer's own projections, so its share is of work, not of waiting. Decoding is generation of
    the citation and of the answer.
    """
    model, prompter = read.open_model(model_path, threads)
    bank = Bank.open(bank_path, Encoder(model, prompter, directory=model_path).signature)
    encoder = Encoder.of(bank, model, prompter)
    lengths = torch.cat([segment.lengths[segment.live] for segment in bank.segments]).cumsum(0)
    rate, rows = _encoding(encoder, bank), []
    for size in SIZES:
        documents = int((lengths <= size).sum())
        if size > 1.05 * int(lengths[-1]) or not documents:
            continue
        base = bank.prefix(documents)
        row = {"context_tokens": size, "documents": documents, "encode_tokens_per_s": rate}
        rows.append(row | _answers(model, prompter, base, count))
    return rows


def _encoding(encoder: Encoder, bank: Bank) -> float:
    """Tokens a second of encoding documents of the bank again."""
    documents = [bank.document(int(doc_id)) for doc_id in bank.doc_ids[:ENCODED]]
    seconds = repeated({"encode": lambda: encoder.segment(documents)}, 3)["encode"]
    return sum(document.num_tokens for document in documents) / statistics.median(seconds)


def _answers(model: Any, prompter: Any, base: Bank, count: int) -> dict[str, Any]:
    ids = base.doc_ids[torch.linspace(0, len(base) - 1, count + 1).long()].tolist()
    questions = [Question(str(doc_id), base.document(doc_id).text[:80], "The answer is", 16) for doc_id in ids]
    scans, spent = scans_of(base), {"routing": 0.0, "fetch": 0.0}
    engine = Interleave(model, prompter, Limits(max_rounds=1), lambda _, doc_id: base.document(doc_id))
    first, token, total, stages = [], [], [], {"cite": 0.0, "decode": 0.0}
    for number, question in enumerate(questions):
        memory = TimedMemory.plain(base, 1, model.config.top_k_documents, scans)
        memory.spent = spent if number else dict(spent)  # the first warms up
        trace = engine.answer([question], memory)[0]
        if number:
            first.append(trace.first_token_s)
            total.append(sum(trace.stage_s.values()))
            token.append((total[-1] - first[-1]) / max(1, len(prompter.text(trace.text))))
            for name in stages:
                stages[name] += trace.stage_s.get(name, 0.0)
    whole = sum(total)
    shares = {"routing": spent["routing"], "fetch": spent["fetch"], "decode": sum(stages.values())}
    return {
        "n": count, "first_token_s": statistics.median(first),
        "first_token_p90_s": sorted(first)[int(0.9 * len(first))],
        "token_s": statistics.median(token), "total_s": statistics.median(total),
        **{f"{name}_share": seconds / whole for name, seconds in shares.items()},
        "other_share": 1 - sum(shares.values()) / whole,
    }  # fmt: skip
