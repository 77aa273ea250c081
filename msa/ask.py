"""Ask a bank on disk.

One process, or a bank sharded over two::

    python -m msa.ask BANK --model MODEL "What is the annual budget of Ripe Brace?"
    torchrun --nproc-per-node 2 -m msa.ask BANK --model MODEL "What is the annual budget of Ripe Brace?"

Prints the answer and the documents it was read from; ``--json`` prints one object a question.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from configs.errors import UserError, run_command
from configs.records import Question
from msa import checkpoint, parallel, sharded
from msa.bank import Bank
from msa.encode import Encoder
from msa.generate import Interleave, Limits, Trace
from msa.memory import BankMemory, scans_of
from msa.ops import dispatch
from msa.tiers import TIERS, Tiers, placed


def answer(texts: list[str], chosen: argparse.Namespace, ranks: int) -> list[Trace]:
    """Answer questions as the leader of ``ranks`` processes."""
    model, prompter = checkpoint.open_model(chosen.model, chosen.threads)
    bank = Bank.open(chosen.bank, Encoder(model, prompter, directory=chosen.model).signature)
    questions = [Question(str(number), text, chosen.prefix, chosen.tokens) for number, text in enumerate(texts)]
    nothing, nobody = torch.zeros(len(texts), 0, dtype=torch.bool), [[] for _ in texts]
    top_k = model.config.top_k_documents
    if ranks > 1:
        shard, scans = sharded.own_shard(bank, _tiers(chosen), model.device)
        memory: BankMemory = sharded.ShardedMemory(shard, None, nothing, nobody, top_k, scans, len(bank))
    else:
        settled = _tiers(chosen).fitted(bank, model.device)
        bank_here = placed(bank, settled, model.device)
        memory = BankMemory(bank_here, None, nothing, nobody, top_k, scans_of(bank_here, settled.scan))
    limits = Limits(max_rounds=chosen.rounds)
    traces = Interleave(model, prompter, limits, lambda _, doc_id: bank.document(doc_id)).answer(questions, memory)
    if ranks > 1:
        sharded.stop()
    return traces


def _tiers(chosen: argparse.Namespace) -> Tiers:
    return Tiers(chosen.keys, chosen.content, chosen.scan)


def main() -> None:
    """Answer the questions of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path, help="directory of the bank (python -m msa.encode build)")
    parser.add_argument("questions", nargs="+", help="one or more questions")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory of the model that encoded it")
    parser.add_argument("--rounds", type=int, default=3, help="retrieval rounds at most (default: 3)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer at most (default: 64)")
    parser.add_argument("--prefix", default="The answer is", help="opening of the answer (default: 'The answer is')")
    parser.add_argument("--keys", default="auto", choices=("auto", *TIERS), help="tier of the routing keys (default: by fit)")
    parser.add_argument("--content", default="auto", choices=("auto", *TIERS), help="tier of the content (default: by fit)")
    parser.add_argument("--scan", help="precision of a coarser first pass over the keys, such as int8")
    parser.add_argument("--kernels", default="auto", choices=dispatch.CHOICES, help="what computes (default: auto, the machine's best)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of each process (default: torch's choice)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a question")
    chosen = parser.parse_args()
    if min(chosen.rounds, chosen.tokens) < 1:
        raise UserError("--rounds and --tokens must be 1 or more")
    dispatch.use(chosen.kernels)
    with parallel.joined() as (rank, ranks):
        if rank:
            sharded.serve(Bank.open(chosen.bank), _tiers(chosen))
            return
        for text, trace in zip(chosen.questions, answer(chosen.questions, chosen, ranks), strict=True):
            if chosen.json:
                found = {"question": text, "answer": trace.text, "documents": trace.cited, "routed": trace.routed, "status": trace.status}
                print(json.dumps(found))
            else:
                read = ", ".join(f"[{doc_id}]" for doc_id in trace.cited) or "no document"
                print(f"{text}\n  {trace.text}\n  read: {read} ({sum(trace.stage_s.values()):.2f} s)")


if __name__ == "__main__":
    run_command(main)
