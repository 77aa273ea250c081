"""Training time against context: a step of MSA and one of full attention, the same model, repeated.

    python -m msa.bench.training_time --out results/training-time.csv
    python -m msa.bench.training_time --out /tmp/t.csv --contexts 1024 2048 4096 --repeats 3

A step is forward and backward of one question of 128 tokens over a context. MSA encodes the context as documents of 256
tokens, routes and attends to what it chose; full attention reads it in front of the question. Rows that are there are
not measured again; delete the file to start afresh. Seconds of the processor count too, since others may share it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from time import perf_counter, process_time

import torch
from tqdm import tqdm

from msa.bench.rows import read, write
from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel
from msa.model.initialise import initialise
from msa.model.losses import IGNORE
from msa.training.objectives import next_token
from msa.training.samples import Batch, Group, Phase
from msa_base.errors import UserError, run_command
from msa_base.machine import processor
from msa_base.options import add_number, add_threads, given_path

SYSTEMS = ("msa", "full_attention")
CONTEXTS = (2048, 4096, 8192, 16384)
COLUMNS = ("system", "context_tokens", "repeat", "seconds", "processor_seconds", "parameters", "processor", "threads")
DOCUMENT_TOKENS, QUESTION_TOKENS, TARGETS = 256, 128, 32
SHAPE = ModelConfig(
    vocab_size=2048, hidden_size=256, intermediate_size=512, layers=4, query_heads=8, kv_heads=2, head_dim=32
)
ROUTED = replace(SHAPE, routed_layers=(2, 3), pool_tokens=64, top_k_documents=16)
PHASE = Phase("timed", "memory", "none", 1, 1)


@dataclass(frozen=True)
class Timed:
    """What is timed: one system at one context."""

    system: str
    context_tokens: int

    def model(self) -> MSAModel:
        torch.manual_seed(0)
        return initialise(ROUTED if self.system == "msa" else SHAPE, 1.0)

    def batch(self) -> Batch:
        """One question over random documents, the first of which is the right one."""
        draw = torch.Generator().manual_seed(self.context_tokens)
        documents = torch.randint(
            5, SHAPE.vocab_size, (self.context_tokens // DOCUMENT_TOKENS, DOCUMENT_TOKENS), generator=draw
        )
        question = torch.randint(5, SHAPE.vocab_size, (1, QUESTION_TOKENS), generator=draw)
        routed = self.system == "msa"
        ids = question if routed else torch.cat((documents.flatten().unsqueeze(0), question), 1)
        targets = torch.full_like(ids, IGNORE)
        targets[:, -TARGETS - 1 : -1] = ids[:, -TARGETS:]
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, : QUESTION_TOKENS // 2] = routed
        group = Group(ids, targets, mask, torch.arange(ids.shape[1]), torch.ones(1, 1, dtype=torch.bool), ids.numel())
        if not routed:
            return Batch([group])
        group.positives = torch.zeros(1, len(documents), dtype=torch.bool)
        group.positives[0, 0] = True
        group.countable = torch.ones_like(group.positives)
        return Batch([group], documents, torch.full((len(documents),), DOCUMENT_TOKENS))


def measure(case: Timed, repeats: int) -> list[tuple[float, float]]:
    """Seconds, and those of processors, of each step; one before them warms up."""
    model, batch, found = case.model(), case.batch(), []
    for _ in range(repeats + 1):
        model.zero_grad(set_to_none=True)
        start, spent = perf_counter(), process_time()
        next_token(model, batch, PHASE, ROUTED.aux_temperature)
        found.append((perf_counter() - start, process_time() - spent))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=given_path, required=True, help="CSV that is written, or gone on with")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="tokens; multiples of 256")
    add_number(parser, "--repeats", 5, "timings of each context (default: 5)")
    add_threads(parser, 1, "CPU threads (default: 1)")
    chosen = parser.parse_args()
    if wrong := [context for context in chosen.contexts if context < DOCUMENT_TOKENS or context % DOCUMENT_TOKENS]:
        raise UserError(f"--contexts {wrong[0]}: must be a multiple of {DOCUMENT_TOKENS}")
    torch.set_num_threads(chosen.threads)
    rows = read(chosen.out, COLUMNS)
    there = {(row["system"], int(row["context_tokens"])) for row in rows}
    cases = [Timed(system, context) for context in sorted(chosen.contexts) for system in SYSTEMS]
    for case in tqdm([case for case in cases if (case.system, case.context_tokens) not in there], desc="training time"):
        size, where = sum(p.numel() for p in case.model().parameters()), processor()
        for repeat, (seconds, spent) in enumerate(measure(case, chosen.repeats)):
            values = case.system, case.context_tokens, repeat, seconds, spent, size, where, torch.get_num_threads()
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        write(chosen.out, rows, COLUMNS)
    print(f"{chosen.out}: {len(rows)} timings")


if __name__ == "__main__":
    run_command(main)
