"""Measurements of the memory engine here; every figure is a median of interleaved repetitions in one process.

    python -m msa.bench.memory encode --model MODEL --documents corpus.parquet
    python -m msa.bench.memory slope BANK --model MODEL
    python -m msa.bench.memory open BANK
    python -m msa.bench.memory replace BANK --model MODEL
    python -m msa.bench.memory overlay BANK --model MODEL
    python -m msa.bench.memory ranks BANK --model MODEL --ranks 2 --threads 2

encode: rate against the plain matrix products of the same shapes; slope: how encoding time grows with the memory; open:
how long a bank takes to open; replace: one document against building the bank again; overlay: planted documents against
encoding them alone; ranks: a sharded bank against a whole one on the same cores. Each prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from msa.bench.measure import repeated
from msa.checkpoints import read
from msa.generation.generate import Interleave, Limits
from msa.memory import sharded
from msa.memory.bank import MANIFEST, Bank
from msa.memory.encode import Encoder, read_documents
from msa.memory.parallel import joined
from msa.memory.routed import BankMemory, scans_of
from msa.memory.tiers import Tiers, placed
from msa.ops.precision import PRECISIONS, PRODUCTS
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, add_threads, given_path
from msa_base.records import Question
from msa_base.tables import read_json

SMALLEST_PREFIX, PREFIX_STEP = 1 << 16, 4  # tokens, and how much the next prefix is larger


def summary(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians in seconds, and how many repetitions they are of."""
    medians = {f"{name}_s": statistics.median(seconds) for name, seconds in times.items()}
    return medians | {"n": len(next(iter(times.values())))}


def encode(chosen: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of encoding, and the share of the speed at which this machine multiplies the same matrices."""
    model, prompter = read.open_model(chosen.model, chosen.threads)
    encoder = Encoder(model, prompter, "bfloat16", "bfloat16", precision=chosen.precision)
    documents = list(read_documents(chosen.documents, prompter)[: chosen.number])
    tokens = sum(document.num_tokens for document in documents)
    products = _products(model, encoder.batch_tokens, PRODUCTS[encoder.precision])
    turns = max(1, round(tokens / encoder.batch_tokens))

    def floor() -> None:
        for _ in range(turns):
            for left, right, out in products:
                torch.mm(left, right, out=out)

    result = summary(repeated({"encode": lambda: encoder.segment(documents), "floor": floor}, chosen.repetitions))
    result["floor_s"] *= tokens / (turns * encoder.batch_tokens)  # of the tokens that were encoded
    return result | {
        "tokens": tokens, "tokens_per_s": tokens / result["encode_s"],
        "share_of_floor": result["floor_s"] / result["encode_s"],
        "precision": encoder.precision, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _products(model: Any, tokens: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Operands of the document tower's projections for a batch of tokens, up to the last routed layer's keys."""
    config, products = model.config, []
    last, chunks = config.routed_layers[-1], tokens // config.pool_tokens
    for index, layer in enumerate(model.model.layers[: last + 1]):
        attention, mlp = layer.self_attn, layer.mlp
        weights = [(attention.k_proj, tokens)]
        if index < last:
            wide = (attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            weights += [(linear, tokens) for linear in wide] + [(attention.v_proj, tokens)]
        if index in config.routed_layers:
            weights += [(attention.router_k_proj[0], chunks), (attention.v_proj, chunks)]
        for linear, rows in weights:
            weight = linear.weight.detach().to(dtype)
            left = torch.randn(rows, weight.shape[1]).to(dtype)
            products.append((left, weight.T, torch.empty(rows, weight.shape[0], dtype=dtype)))
    return products


def slope(chosen: argparse.Namespace) -> dict[str, Any]:
    """Log-log slope of encoding seconds against tokens: small prefixes encoded again, large ones as built."""
    model, prompter = read.open_model(chosen.model, chosen.threads)
    bank = Bank.open(chosen.bank)
    encoder, seconds = Encoder.of(bank, model, prompter), _build_seconds(chosen.bank)
    sizes = [int(segment.lengths.sum()) for segment in bank.segments]
    ends = torch.cat([segment.lengths for segment in bank.segments]).cumsum(0)
    jobs, tokens = {}, SMALLEST_PREFIX
    while tokens < sizes[0]:
        count = int(torch.searchsorted(ends, tokens)) + 1
        documents = [bank.document(int(doc_id)) for doc_id in bank.doc_ids[:count]]
        jobs[int(ends[count - 1])] = lambda documents=documents: encoder.segment(documents)
        tokens *= PREFIX_STEP
    times = repeated(jobs, chosen.repetitions) if jobs else {}
    points = [(size, statistics.median(spent)) for size, spent in times.items()]
    counts = {PREFIX_STEP**power for power in range(16) if PREFIX_STEP**power < len(sizes)} | {len(sizes)}
    points += [(sum(sizes[:count]), sum(seconds[:count])) for count in sorted(counts)]
    if len(points) < 3:
        raise UserError(f"{chosen.bank}: {sum(sizes):,} tokens give no slope; build a bank of 256K tokens at least")
    fitted = np.polyfit(*np.log(np.array(points, dtype=float)).T, 1)[0]
    return {"slope": float(fitted), "tokens": [size for size, _ in points], "seconds": [spent for _, spent in points]}


def _build_seconds(bank: Path) -> list[float]:
    """Seconds that encoding each segment of a bank took, by its manifest; 0 of what an edit made."""
    seconds = [entry.get("encode_s", 0.0) for entry in read_json(bank / MANIFEST)["segments"]]
    if not any(seconds):
        fault = "no segment has 'encode_s'; build the bank with `python -m msa.memory.encode build`"
        raise UserError(f"{bank / MANIFEST}: {fault}")
    return seconds


def open_bank(chosen: argparse.Namespace) -> dict[str, Any]:
    """Seconds until a bank is ready for questions."""
    started = perf_counter()
    bank = Bank.open(chosen.bank)
    bank.locate([0])
    return {"open_s": perf_counter() - started, "documents": len(bank), "bytes": bank.nbytes}


def replace_one(chosen: argparse.Namespace) -> dict[str, Any]:
    """Replacing one document (encoded, written, the manifest renewed) against the seconds that building took."""
    model, prompter = read.open_model(chosen.model, chosen.threads)
    built_s = sum(_build_seconds(chosen.bank))
    with tempfile.TemporaryDirectory(dir=chosen.bank.parent) as directory:
        copy = Path(directory) / "bank"
        shutil.copytree(chosen.bank, copy, copy_function=lambda source, target: Path(target).hardlink_to(source))
        bank = Bank.open(copy)
        encoder = Encoder.of(bank, model, prompter)
        document = bank.document(int(bank.doc_ids[len(bank) // 2]))
        changed = replace(document, text=f"{document.text} It was changed.")
        result = summary(repeated({"replace": lambda: bank.replace(encoder.segment([changed]))}, chosen.repetitions))
        tokens = sum(int(segment.lengths[segment.live].sum()) for segment in bank.segments)
    return result | {"rebuild_s": built_s, "times_cheaper": built_s / result["replace_s"], "tokens": tokens}


def overlay(chosen: argparse.Namespace) -> dict[str, Any]:
    """Making documents part of a question's memory against encoding them alone."""
    model, prompter = read.open_model(chosen.model, chosen.threads)
    bank = Bank.open(chosen.bank)
    encoder, scans = Encoder.of(bank, model, prompter), scans_of(bank)
    some = [bank.document(int(doc_id)) for doc_id in bank.doc_ids[: chosen.number]]
    planted = [replace(document, doc_id=10**9 + number) for number, document in enumerate(some)]
    ids, seen = [[document.doc_id for document in planted]], torch.ones(1, len(planted), dtype=torch.bool)

    def plant() -> None:
        BankMemory(bank, encoder.segment(planted), seen, ids, 16, scans)

    result = summary(repeated({"overlay": plant, "encode": lambda: encoder.segment(planted)}, chosen.repetitions))
    return result | {"documents": len(planted), "ratio": result["overlay_s"] / result["encode_s"]}


def ranks(chosen: argparse.Namespace) -> dict[str, Any]:
    """Answering over a bank sharded over ranks against one process, with the same cores in all."""
    model, prompter = read.open_model(chosen.model, chosen.threads)
    bank = Bank.open(chosen.bank, Encoder(model, prompter, directory=chosen.model).signature)
    ids = bank.doc_ids[torch.linspace(0, len(bank) - 1, chosen.number).long()].tolist()
    questions = [Question(str(doc_id), bank.document(doc_id).text[:80], "The answer is", 8) for doc_id in ids]
    top_k, tiers = model.config.top_k_documents, Tiers(keys="host", content="disk")
    threads = max(1, chosen.threads // chosen.ranks)

    def answers(memory: BankMemory, threads: int) -> list[list[int]]:
        torch.set_num_threads(threads)
        interleave = Interleave(model, prompter, Limits(max_rounds=1), lambda _, doc_id: bank.document(doc_id))
        return [trace.cited for trace in interleave.answer(questions, memory)]

    whole = placed(bank, tiers, model.device)
    alone = BankMemory.plain(whole, len(ids), top_k, scans_of(whole))
    command = sharded.command(chosen.bank, {"keys": "host", "content": "disk"}, threads)
    with joined(chosen.ranks, command) if chosen.ranks > 1 else nullcontext():
        shard, scans = sharded.hold(bank, tiers, model.device)
        shared = sharded.ShardedMemory.plain(shard, len(ids), top_k, scans)
        same = answers(alone, chosen.threads) == answers(shared, threads)
        jobs = {"one": lambda: answers(alone, chosen.threads), "sharded": lambda: answers(shared, threads)}
        result = summary(repeated(jobs, chosen.repetitions))
        sharded.stop()
    held, full = (sum(layer.routing.nbytes for s in of.segments for layer in s.layers) for of in (shard, bank))
    found = {"same_documents": same, "key_share_of_a_rank": held / full}
    return result | {"ratio": result["sharded_s"] / result["one_s"], **found}


WORK = {"encode": encode, "slope": slope, "open": open_bank, "replace": replace_one, "overlay": overlay, "ranks": ranks}
NEEDS = {"encode": ("model", "documents"), "open": ("bank",)}  # the others: a bank and its model


def main() -> None:
    """Take one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WORK)
    parser.add_argument("bank", type=given_path, nargs="?", help="directory of a bank (not for encode)")
    parser.add_argument("--model", type=given_path, help="checkpoint directory (not for open)")
    parser.add_argument("--documents", type=given_path, help="corpus.parquet or JSON lines (encode)")
    add_number(parser, "--number", 32, "documents or questions (default: 32)")
    add_number(parser, "--repetitions", 5, "repetitions of each job (default: 5)")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="of encoding (default: the fastest)")
    add_number(parser, "--ranks", 2, "processes (default: 2)")
    add_threads(parser, 2, "CPU threads in all (default: 2)")
    chosen = parser.parse_args()
    for name in NEEDS.get(chosen.what, ("bank", "model")):
        if getattr(chosen, name) is None:
            raise UserError(f"{chosen.what}: {'the bank' if name == 'bank' else f'--{name}'} is missing; see --help")
    print(json.dumps({"what": chosen.what, **WORK[chosen.what](chosen)}))


if __name__ == "__main__":
    run_command(main)
