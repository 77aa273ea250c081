"""Ask a bank on disk.

One process, or a bank sharded over two::

    python -m msa.generation.ask BANK --model MODEL "What is the annual budget of Ripe Brace?"
    torchrun --nproc-per-node 2 -m msa.generation.ask BANK --model MODEL "What is the annual budget of Ripe Brace?"

Prints the answer and the documents it was read from; ``--json`` prints one object a question.
"""

from __future__ import annotations

import argparse
import json

from msa.checkpoints import read
from msa.generation.generate import Interleave, Limits, Trace
from msa.memory import parallel, sharded
from msa.memory.bank import Bank
from msa.memory.encode import LONGEST, Encoder
from msa.memory.routed import BankMemory, scans_of
from msa.memory.tiers import TIERS, Tiers, placed
from msa.ops import dispatch
from msa.ops.keys import DTYPES
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, add_threads, given_path
from msa_base.records import Question


def answer(texts: list[str], chosen: argparse.Namespace, ranks: int) -> list[Trace]:
    """Answer questions as the leader of ``ranks`` processes."""
    model, prompter = read.open_model(chosen.model, chosen.threads)
    signature = Encoder(model, prompter, directory=chosen.model).signature
    bank = Bank.open(chosen.bank, signature, verify=ranks == 1)  # else each rank verifies its own shard
    questions = [Question(str(number), text, chosen.prefix, chosen.tokens) for number, text in enumerate(texts)]
    top_k, window = model.config.top_k_documents, model.config.max_positions or LONGEST
    for text in texts:
        if (needed := len(prompter.opening(text).ids) + chosen.tokens) > window:
            where = f"the question {text[:40]!r} with --tokens {chosen.tokens}"
            raise UserError(f"{where} needs {needed:,} tokens, the model's window is {window:,}; shorten one")
    if ranks > 1:
        shard, scans = sharded.hold(bank, _tiers(chosen), model.device)
        memory: BankMemory = sharded.ShardedMemory.plain(shard, len(texts), top_k, scans)
    else:
        tiers = _tiers(chosen).fitted(bank, model.device)
        base = placed(bank, tiers, model.device)
        memory = BankMemory.plain(base, len(texts), top_k, scans_of(base, tiers.scan))
    limits = Limits(max_rounds=chosen.rounds)
    traces = Interleave(model, prompter, limits, lambda _, doc_id: bank.document(doc_id)).answer(questions, memory)
    if ranks > 1:
        sharded.stop()
    return traces


def _tiers(chosen: argparse.Namespace) -> Tiers:
    return Tiers(chosen.keys, chosen.content, chosen.scan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=given_path, help="directory of the bank (python -m msa.memory.encode build)")
    parser.add_argument("questions", nargs="+", help="one or more questions")
    parser.add_argument(
        "--model", type=given_path, required=True, help="checkpoint directory of the model that encoded it"
    )
    add_number(parser, "--rounds", 3, "retrieval rounds at most (default: 3)", most=100)
    add_number(parser, "--tokens", 64, "tokens of an answer at most (default: 64)", most=LONGEST)
    parser.add_argument("--prefix", default="The answer is", help="opening of the answer (default: 'The answer is')")
    for part, said in (("keys", "routing keys"), ("content", "content")):
        choices, told = ("auto", *TIERS), f"tier of the {said} (default: by fit)"
        parser.add_argument(f"--{part}", default="auto", choices=choices, help=told)
    told = "precision of a coarser first pass over the keys, such as int8"
    parser.add_argument("--scan", choices=tuple(DTYPES), help=told)
    parser.add_argument(
        "--kernels", default="auto", choices=dispatch.CHOICES, help="what computes (default: auto, the machine's best)"
    )
    add_threads(parser, 0, "CPU threads of each process (default: 0, torch's choice)", least=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object a question")
    chosen = parser.parse_args()
    dispatch.use(chosen.kernels)
    with parallel.joined() as (rank, ranks):
        if rank:
            sharded.serve(Bank.open(chosen.bank, verify=False), _tiers(chosen))
            return
        for text, trace in zip(chosen.questions, answer(chosen.questions, chosen, ranks), strict=True):
            if chosen.json:
                found = {"question": text, "answer": trace.text, "documents": trace.cited, "routed": trace.routed}
                print(json.dumps({**found, "status": trace.status}))
            else:
                read = ", ".join(f"[{doc_id}]" for doc_id in trace.cited) or "no document"
                print(f"{text}\n  {trace.text}\n  read: {read} ({sum(trace.stage_s.values()):.2f} s)")


if __name__ == "__main__":
    run_command(main)
