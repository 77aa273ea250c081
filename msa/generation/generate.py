"""Generation with Memory Interleave: retrieve ids, read their text, route again, answer (paper section 3.5).

Every round is one prefill over question and fetched text, which is routed once; ids, or the end of retrieval and then
the answer, are decoded behind it. Training cuts the same rows into single-step samples (msa.training.samples).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import torch

from msa.generation.decode import Session
from msa.memory.routed import BankMemory
from msa.model.decoder import MSAModel, Selection
from msa.model.prompt import Prompter, Row
from msa_base.records import Document, Question


@dataclass(frozen=True)
class Limits:
    """Bounds of Memory Interleave.

    ``constrain_ids`` lets only ids of routed documents be generated; ``routing_prior`` adds that multiple of their log
    probability under routing to the LM's, token by token (0: the LM alone).
    """

    max_rounds: int = 3
    max_ids: int = 4
    max_fetched_tokens: int = 512
    constrain_ids: bool = True
    routing_prior: float = 4.0


@dataclass
class Trace:
    """One question on its way to an answer.

    ``routed`` maps "layer{i}" (and "round{r}/layer{i}") to ranked ids. ``left_out`` were cited, but their text was not
    fetched for want of room (``max_fetched_tokens``). ``prompt`` is what was read before the answer, memory aside.
    """

    question: Question
    row: Row
    cited: list[int] = field(default_factory=list)
    routed: dict[str, list[int]] = field(default_factory=dict)
    rounds: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    fetched_tokens: int = 0
    text: str = ""
    status: str = "ok"
    retrieving: bool = True
    truncated: bool = False
    left_out: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    first_token_s: float = 0.0
    stage_s: dict[str, float] = field(default_factory=dict)


class Interleave:
    """Answers batches of questions over a memory.

    Args:
        fetch: original text of a document by (question, id), or None where the question's corpus has no such id.
    """

    def __init__(
        self, model: MSAModel, prompter: Prompter, limits: Limits, fetch: Callable[[Question, int], Document | None]
    ):
        self.model, self.prompter, self.limits, self.fetch = model, prompter, limits, fetch

    @torch.no_grad()
    def answer(self, questions: list[Question], memory: BankMemory) -> list[Trace]:
        """Answer a batch; times of a trace are its share of the batch."""
        started = perf_counter()
        traces = [Trace(question, self.prompter.opening(question.text)) for question in questions]
        number, waiting = 0, list(range(len(traces)))
        while waiting:  # the round behind the last one answers all that are left
            waiting = self._round(number, traces, waiting, memory, started)
            number += 1
        return traces

    def _round(
        self, number: int, traces: list[Trace], waiting: list[int], memory: BankMemory, started: float
    ) -> list[int]:
        """One prefill of the waiting questions; those that end retrieval are answered, the others are returned."""
        active = [traces[index] for index in waiting]
        clock = _Clock(active)
        rows, head = [trace.row for trace in active], len(self.prompter.head)
        session = Session(self.model, rows, self.prompter.pad, head, memory.rows(waiting))
        clock.stage("route")
        for place, trace in enumerate(active):
            trace.input_tokens += len(trace.row.ids)
            for layer, selection in zip(self.model.config.routed_layers, session.selections, strict=True):
                ids = [doc_id for doc_id in selection.documents[place].tolist() if doc_id >= 0]
                trace.routed[f"layer{layer}" if number == 0 else f"round{number + 1}/layer{layer}"] = ids
        going = [p for p, trace in enumerate(active) if trace.retrieving and number < self.limits.max_rounds]
        ending = sorted(set(range(len(active))) - set(going))
        if going:
            part = session.rows(going)
            priors = [self._prior(session.selections[-1], place) for place in going]
            tokens = self._ids(part, [active[place] for place in going], priors, number)
            clock.stage("cite")
            for place, generated in zip(going, tokens, strict=True):
                if generated[:1] == [self.prompter.end_of_retrieve]:
                    ending.append(place)
                    active[place].output_tokens += 1
                else:
                    self._extend(active[place], generated)
            clock.stage("fetch")
        if ending:
            ending.sort()
            self._finish(session.rows(ending), [active[place] for place in ending], clock, started, len(traces))
        return [index for place, index in enumerate(waiting) if place not in set(ending)]

    def _prior(self, selection: Selection, row: int) -> dict[int, float]:
        """Log probability of each document that the last routed layer chose: the softmax of its scores / tau.

        It is the distribution that the auxiliary loss trains, and of all routers the last has read the question
        furthest.
        """
        shares = (selection.scores[row] / self.model.temperature).log_softmax(-1).tolist()
        pairs = zip(selection.documents[row].tolist(), shares, strict=True)
        return {doc_id: share for doc_id, share in pairs if doc_id >= 0}

    def _ids(
        self, session: Session, traces: list[Trace], priors: list[dict[int, float]], number: int
    ) -> list[list[int]]:
        """Generated citation tokens of a round, or just the end-of-retrieve token."""
        limit = 1 + self.limits.max_ids * 8
        if not self.limits.constrain_ids:
            return _free(session, self.prompter, limit)
        automata = []
        for trace, prior in zip(traces, priors, strict=True):
            # a round's candidates are its own routed documents that were not read yet
            left = {doc_id: p for doc_id, p in prior.items() if doc_id not in trace.cited}
            spelled = {tuple(self.prompter.text(f"[{doc_id}]")): p for doc_id, p in left.items()}
            automata.append(Citations(self.prompter, spelled, self.limits.max_ids, number > 0))
        result: list[list[int]] = [[] for _ in traces]
        while True:
            log_probs = session.logits.log_softmax(-1)
            best = []
            for row, automaton in enumerate(automata):
                weights = {
                    t: float(log_probs[row, t]) + self.limits.routing_prior * p for t, p in automaton.allowed().items()
                }
                best.append(max(weights, key=weights.get))
                if not automaton.done:
                    automaton.advance(best[-1])
                    result[row].append(best[-1])
            if all(automaton.done for automaton in automata):
                return result
            session.feed([[token] for token in best])

    def _extend(self, trace: Trace, tokens: list[int]) -> None:
        """Append a round's citation and the text of its documents; a wrong citation ends retrieval."""
        trace.output_tokens += len(tokens)
        trace.rounds += 1
        cited, documents = self._parse(tokens), []
        for doc_id in dict.fromkeys(cited):
            if doc_id in trace.cited:
                continue
            document = self.fetch(trace.question, doc_id)
            if document is None:
                trace.status = "unknown_id"
            elif trace.fetched_tokens + document.num_tokens > self.limits.max_fetched_tokens:
                trace.left_out.append(doc_id)
            else:
                documents.append(document)
                trace.cited.append(doc_id)
                trace.fetched_tokens += document.num_tokens
        if not cited:
            trace.status = "malformed_ids"
        trace.retrieving = bool(documents) and trace.status == "ok"
        if documents:
            trace.row.add(self.prompter.citation([document.doc_id for document in documents]))
            if self.prompter.released:
                documents.sort(key=lambda document: document.doc_id)
            self.prompter.add_fetched(trace.row, documents)

    def _parse(self, tokens: list[int]) -> list[int]:
        text = "".join(self.prompter.decode(tokens).split())
        return [int(found) for found in re.findall(r"\[(\d{1,18})\]", text)][: self.limits.max_ids]

    def _finish(self, session: Session, traces: list[Trace], clock: _Clock, started: float, batch: int) -> None:
        """Read the repeated question and decode the answers."""
        prompter = self.prompter
        requests = []
        for trace in traces:
            row = Row().add([prompter.end_of_retrieve])
            requests.append(prompter.add_answer_request(row, trace.question.text, trace.question.answer_prefix).ids)
            trace.input_tokens += len(requests[-1])
            trace.prompt = trace.row.ids + requests[-1]
        session.feed(requests)
        first = (perf_counter() - started) / batch
        tokens = session.greedy(prompter.ends, [trace.question.max_new_tokens for trace in traces])
        for trace, generated in zip(traces, tokens, strict=True):
            trace.first_token_s = first
            trace.text = prompter.decode(generated)
            trace.output_tokens += len(generated)
            trace.truncated = len(generated) >= trace.question.max_new_tokens
        clock.stage("decode")


class Citations:
    """The automaton of constrained citations: ids of a candidate list, each once, then the end token.

    Args:
        candidates: token spellings of ``[id]`` with their log priors.
        may_end: whether end-of-retrieve may come in place of the first id.
    """

    def __init__(self, prompter: Prompter, candidates: dict[tuple[int, ...], float], max_ids: int, may_end: bool):
        self.end, self.stop = prompter.end_of_retrieve, prompter.object_ref_end
        self.left, self.max_ids, self.may_end = dict(candidates), max_ids, may_end
        self.prefix: tuple[int, ...] = ()
        self.count = 0
        self.done = False

    def allowed(self) -> dict[int, float]:
        """Tokens that may come next with their log priors given the spelling so far; the stop token once done.

        The LM alone decides whether another id comes: the end tokens and the opening bracket have the same prior, 0.
        """
        if self.done:
            return {self.stop: 0.0}
        at, shares = len(self.prefix), {}
        for spelled, prior in self.left.items() if self.count < self.max_ids else ():
            if spelled[:at] == self.prefix:
                shares[spelled[at]] = shares.get(spelled[at], 0.0) + math.exp(prior)
        total = sum(shares.values())
        tokens = {token: math.log(share / total) for token, share in shares.items()}
        if not self.prefix:
            if self.count or not tokens:
                tokens[self.stop] = 0.0
            if self.may_end and not self.count:
                tokens[self.end] = 0.0
        return tokens

    def advance(self, token: int) -> None:
        """Advance by a token of :meth:`allowed`."""
        if token in (self.end, self.stop):
            self.done = True
            return
        self.prefix += (token,)
        if self.prefix in self.left:
            del self.left[self.prefix]
            self.prefix = ()
            self.count += 1


def _free(session: Session, prompter: Prompter, limit: int) -> list[list[int]]:
    """Unconstrained citation tokens, up to and with the first end token."""
    result: list[list[int]] = [[] for _ in range(len(session.logits))]
    ends = {prompter.object_ref_end, prompter.end_of_retrieve, *prompter.ends}
    while True:
        best = session.logits.argmax(-1).tolist()
        open_rows = 0
        for row, token in zip(result, best, strict=True):
            if not row or (row[-1] not in ends and len(row) < limit):
                row.append(token)
            open_rows += row[-1] not in ends and len(row) < limit
        if not open_rows:
            return result
        session.feed([[token] for token in best])


class _Clock:
    """Adds the time between stages to every trace of a round, as its share."""

    def __init__(self, traces: list[Trace]):
        self.traces, self.last = traces, perf_counter()

    def stage(self, name: str) -> None:
        before, self.last = self.last, perf_counter()
        for trace in self.traces:
            trace.stage_s[name] = trace.stage_s.get(name, 0.0) + (self.last - before) / len(self.traces)
