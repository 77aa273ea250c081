"""What a cell asks of a system: documents, questions and tokens, from its own answers or prepared data, else assumed.

Assumed are the constants below; a plan says which of its rows rest on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from configs import prompts
from configs.load import Experiment
from configs.paths import Paths
from configs.records import Answer
from msa.plan import Documents

DOCUMENT_TOKENS = 96  # of a corpus entry without `document_tokens`: its module's default budget
QUESTION_TOKENS, REQUEST_TOKENS, ANSWER_TOKENS = 32, 40, 16


@dataclass(frozen=True)
class Workload:
    """One cell; token counts are means over its questions.

    ``overlay`` holds the documents of all ``overlays``. ``question_tokens`` route; ``request_tokens`` ask for the answer
    behind fetched text. ``prompt_tokens`` is what the prompts of a question held in all its rounds, and ``longest_tokens``
    the most that any question's did: known once it ran. ``corpus`` is the whole tail, which every cell reads, however little
    of it is its ``base``.
    ``fresh``: the system meets the overlays here first.
    """

    questions: int
    base: Documents
    overlay: Documents
    overlays: int
    question_tokens: float = QUESTION_TOKENS
    request_tokens: float = REQUEST_TOKENS
    answer_tokens: float = ANSWER_TOKENS
    rounds: float = 1
    prompt_tokens: float | None = None
    longest_tokens: float | None = None
    fresh: bool = True
    source: str = "assumed"  # assumed | prepared | ran
    corpus: Documents | None = None

    @property
    def context_tokens(self) -> float:
        """What one question sees."""
        return self.base.tokens + self.overlay.tokens / max(1, self.overlays)

    @property
    def document_tokens(self) -> float:
        """Tokens of a document on average."""
        return (self.base.tokens + self.overlay.tokens) / max(1, len(self.base) + len(self.overlay))


def corpus_documents(experiment: Experiment, paths: Paths, corpus: str) -> Documents:
    """The whole tail that an index is built over: the corpus's own lengths where it stands, else the largest context."""
    path = paths.corpus(corpus)
    if path.exists():
        return _read_corpus(path, path.stat().st_mtime_ns)
    largest = max(experiment.contexts[context] for context in experiment.profile.contexts)
    return Documents.even(largest, _document_tokens(experiment, corpus))


def _document_tokens(experiment: Experiment, corpus: str) -> int:
    return int(experiment.corpora[corpus].params.get("document_tokens", DOCUMENT_TOKENS))


@cache
def _read_corpus(path: Path, changed: int) -> Documents:
    """Lengths and bytes of text, without holding the text."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from configs.tables import read_arrow

    lengths = read_arrow("corpus", path, ["doc_id", "num_tokens"])["num_tokens"].to_numpy()
    batches = pq.ParquetFile(path).iter_batches(columns=["text"])
    return Documents(lengths, sum(pc.sum(pc.binary_length(batch["text"])).as_py() or 0 for batch in batches))


def workload(experiment: Experiment, paths: Paths, system: str, task: str, context: str) -> Workload:
    """What a cell asks."""
    spec, cap = experiment.tasks[task], experiment.systems[system].max_questions
    questions = min(experiment.profile.tasks[task], cap or experiment.profile.tasks[task])
    found = _assumed(experiment.contexts[context], questions, spec.params, _document_tokens(experiment, spec.corpus))
    prepared = paths.prepared(task, context)
    if (prepared / "view.json").exists() and paths.corpus(spec.corpus).exists():
        tail = corpus_documents(experiment, paths, spec.corpus)
        found = replace(found, **_prepared(prepared, (prepared / "view.json").stat().st_mtime_ns, tail, paths.tokenizer))
    # heads recur from context to context, needles are planted anew
    found = replace(found, corpus=corpus_documents(experiment, paths, spec.corpus), fresh=context == experiment.profile.contexts[0] or "head_tokens" not in spec.params)
    ran = [paths.cell(system, task, context, seed) / "predictions.jsonl" for seed in experiment.profile.seeds]
    return next((_ran(found, path) for path in ran if path.exists() and path.stat().st_size), found)


def _assumed(context_tokens: int, questions: int, params: dict[str, Any], document_tokens: int) -> Workload:
    """Heads of a task share its questions; without heads each question has its own needles, a document each."""
    if "head_tokens" in params:
        overlays, tokens = params.get("replicates", 1), params["head_tokens"]
    else:
        overlays, tokens = questions, document_tokens * params.get("num_keys", 1) * params.get("num_values", 1)
    base = Documents.even(context_tokens - tokens, document_tokens)
    return Workload(questions, base, Documents.even(overlays * tokens, document_tokens), overlays)


@cache
def _prepared(cell: Path, changed: int, tail: Documents, tokenizer: Path) -> dict[str, Any]:
    """What the prepared data of a task at a context say, for all systems."""
    from configs.tables import read_arrow, read_json, read_questions

    rows = read_arrow("overlays", cell / "overlays.parquet", ["overlay_id", "num_tokens"])
    number = read_json(cell / "view.json")["base_documents"]
    overlay = rows["num_tokens"].to_numpy()
    found = {
        "base": Documents(tail.lengths[:number], tail.text_bytes * number // max(1, len(tail))),
        "overlay": Documents(overlay, int(overlay.sum()) * tail.text_bytes // max(1, tail.tokens)),
        "overlays": len(set(rows["overlay_id"].to_pylist())),
        "source": "prepared",
    }
    questions = read_questions(cell / "questions.parquet")
    if tokenizer.exists() and questions:
        asked = [prompts.question(item.text) for item in questions]
        requests = [f"{prompts.REPEAT_QUESTION}{q.text}{prompts.GIVE_ANSWER}{q.answer_prefix}" for q in questions]
        found["question_tokens"] = _mean_tokens(tokenizer, asked)
        found["request_tokens"] = _mean_tokens(tokenizer, requests)
    return found


def _mean_tokens(tokenizer: Path, texts: list[str]) -> float:
    return float(np.mean([len(found.ids) for found in _open(tokenizer).encode_batch_fast(texts, add_special_tokens=False)]))


@cache
def _open(tokenizer: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer))


@lru_cache(8)
def answers_of(predictions: Path) -> list[Answer]:
    """A cell's answers."""
    from configs.tables import read_predictions

    return read_predictions(predictions)


def _ran(found: Workload, predictions: Path) -> Workload:
    answers = answers_of(predictions)
    means = {
        field: float(np.mean([getattr(answer, name) for answer in answers]))
        for field, name in (("prompt_tokens", "input_tokens"), ("answer_tokens", "output_tokens"), ("rounds", "rounds"))
    }
    longest = max(answer.input_tokens for answer in answers)
    return replace(found, questions=len(answers), longest_tokens=longest, **means, source="ran")
