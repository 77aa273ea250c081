"""MemAgent: a model reads the whole text chunk by chunk, rewrites one memory after each, and answers from the memory alone.

Source: MemAgent (BytedTsinghua-SIA/MemAgent; RL-MemoryAgent-14B).

Kept: consecutive chunks without overlap, 5,000 tokens by default; a memory that starts as "No previous memory"; one fresh
message for each chunk with instruction, problem, memory and section, whose reply, at most 1,024 new tokens behind any
closing think tag, replaces the memory; one more call that answers from problem and memory. Calls of a question are
sequential, ceil(T / chunk) + 1 of them (``Answer.rounds``), and all their tokens count. Questions advance side by side.

``released_messages`` sends the released messages to the letter, and takes the text behind the last "the answer is" as the
answer (none: an empty answer, which is wrong), which RL-MemoryAgent-14B needs.

Changed: without it the messages are shorter, and name the problem again behind the section (configs.prompts.memory_update); the
last call is then the common reader's with the memory as its one document, so that its answer continues the question's answer
prefix and is extracted as every system's is. Decoding is as the model's entry says: greedy for models of this project
(published: temperature 0.7, top-p 0.95). Tokens are those of the corpus's
tokenizer, and a chunk ends between words; ``whole_documents`` ends it between documents, which a small model that reads a few
hundred tokens at a time needs: a needle cut in two is lost to it. The model of the tiny profile learns the protocol from
supervised traces (msa.traces) in place of reinforcement learning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from baselines.base import Resources, System, read_params
from baselines.estimate import NOT_ESTIMATED, Estimate, reading_cell
from baselines.models import open_reader, take_usage
from baselines.planning import TimeLimit
from baselines.workload import Workload
from configs import prompts
from configs.errors import UserError
from configs.load import SystemSpec
from configs.records import Answer, CorpusView, Document, Generation, Question
from msa.config import ModelConfig

PLANS_TIME = True  # a cell's status depends on the profile's limit
READS_ALL = True  # for every question anew, so it is tuned on a few banks
PROBE_STEPS = 2  # chunks read before the speed is known; the first warms up


@dataclass(frozen=True)
class Params:
    """The published limits."""

    chunk_tokens: int = 5000
    memory_tokens: int = 1024
    whole_documents: bool = False
    released_messages: bool = False

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1 or self.memory_tokens < 1:
            raise UserError(f"chunk_tokens {self.chunk_tokens} and memory_tokens {self.memory_tokens}: set both to 1 or more")


@dataclass
class Trace:
    """One question's way through its text."""

    sections: list[str]
    memory: str = prompts.NO_MEMORY
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    memories: list[str] = field(default_factory=list)

    def take(self, generation: Generation) -> None:
        """Let a reply replace the memory."""
        self.memory = prompts.without_thinking(generation.text)
        self.memories.append(self.memory)
        self.input_tokens += generation.input_tokens
        self.output_tokens += generation.output_tokens
        self.seconds += generation.total_s


def sections(documents: Iterable[Document], params: Params) -> Iterator[str]:
    """The text of some documents, a line each, in consecutive chunks; a document's tokens spread evenly over its words."""
    lines: list[str] = []
    room = float(params.chunk_tokens)
    for document in documents:
        words = re.findall(r"\s*\S+", document.text) or [document.text]
        each = document.num_tokens / len(words)
        if params.whole_documents and lines and room < document.num_tokens <= params.chunk_tokens:
            yield "\n".join(lines)
            lines, room = [], float(params.chunk_tokens)
        while words:
            fit = min(len(words), int(room / each + 1e-9)) if each else len(words)
            if fit == 0 and lines:
                yield "\n".join(lines)
                lines, room = [], float(params.chunk_tokens)
                continue
            fit = max(fit, 1)  # a word longer than a chunk stands alone
            lines.append("".join(words[:fit]))
            words, room = words[fit:], room - fit * each
    if lines:
        yield "\n".join(lines)


class MemoryAgent(System):
    """Refuses a cell whose planned time, at the speed of its own first chunks or of the last cell, passes the profile's limit."""

    reads_notes = True

    def __init__(self, params: Params, resources: Resources) -> None:
        self.params = params
        self.reader = open_reader(resources.model, resources.threads)
        self.limit = TimeLimit(resources.cell_limit_s)
        self.traces: dict[str, Trace] = {}  # of the last batch, by question
        self._call_s = 0.0  # of the last batch, once there was one

    def ingest(self, view: CorpusView) -> None:
        """Nothing is read before it is known what is asked; a new cell's time starts."""
        self.limit.restart()

    def take_usage(self) -> dict[str, Any]:
        """What a served model cost."""
        return take_usage(reader=self.reader)

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        """Read every question's text, step by step, then answer from the memories."""
        started = perf_counter()
        traces = [Trace(list(sections(view.documents(question), self.params))) for question in questions]
        self.traces = {question.question_id: trace for question, trace in zip(questions, traces, strict=True)}
        calls = left = sum(len(trace.sections) + 1 for trace in traces)
        self.limit.check(calls, self._call_s)
        for step in range(max(len(trace.sections) for trace in traces)):
            step_started = perf_counter()
            reading = [(q, trace) for q, trace in zip(questions, traces, strict=True) if step < len(trace.sections)]
            self._read(step, reading)
            left -= len(reading)
            if step == PROBE_STEPS - 1:
                self.limit.check(left, (perf_counter() - step_started) / len(reading))
        answers = self._answers(questions, traces)
        self._call_s = (perf_counter() - started) / calls
        return answers

    def _read(self, step: int, pairs: list[tuple[Question, Trace]]) -> None:
        wording = prompts.MEMAGENT_UPDATE.format if self.params.released_messages else prompts.memory_update
        messages = [
            wording(problem=question.text, memory=trace.memory, section=trace.sections[step]) for question, trace in pairs
        ]
        replies = self.reader.generate(messages, self.params.memory_tokens)
        for (_, trace), reply in zip(pairs, replies, strict=True):
            trace.take(reply)

    def _answers(self, questions: list[Question], traces: list[Trace]) -> list[Answer]:
        if self.params.released_messages:
            messages = [
                prompts.MEMAGENT_ANSWER.format(problem=question.text, memory=trace.memory)
                for question, trace in zip(questions, traces, strict=True)
            ]
            replies = [_extracted(reply) for reply in self.reader.generate(messages, self.params.memory_tokens)]
        else:
            pairs = [([Document(0, trace.memory, 0)], question) for question, trace in zip(questions, traces, strict=True)]
            replies = self.reader.answer(pairs)
        return [
            Answer(
                question.question_id,
                generation.text,
                rounds=len(trace.sections) + 1,
                input_tokens=trace.input_tokens + generation.input_tokens,
                output_tokens=trace.output_tokens + generation.output_tokens,
                first_token_s=trace.seconds + generation.first_token_s,
                total_s=trace.seconds + generation.total_s,
                truncated=generation.truncated,
                prompt=generation.prompt,
                stage_s={
                    "memory": trace.seconds,
                    "read": generation.first_token_s,
                    "decode": generation.total_s - generation.first_token_s,
                },
            )
            for question, trace, generation in zip(questions, traces, replies, strict=True)
        ]


def _extracted(reply: Generation) -> Generation:
    """A reply of the released model, its answer as text: what follows the last "the answer is", without asterisks."""
    _, mark, text = prompts.without_thinking(reply.text).replace("*", "").rpartition(prompts.MEMAGENT_ANSWER_MARK)
    return replace(reply, text=text.strip().strip(".").strip() if mark else "")


def estimate_cell(spec: SystemSpec, config: ModelConfig | None, work: Workload, dtype: str) -> Estimate:
    """What a cell costs: every call reads a section, the memory and the problem twice, and decodes as an answer does."""
    if config is None or work.questions < 1:
        return NOT_ESTIMATED
    params = read_params(Params, spec.params, "systems.yaml: params of kind 'memory_agent'")
    each = math.ceil(work.context_tokens / params.chunk_tokens) + 1
    prompt = min(params.chunk_tokens, work.context_tokens) + params.memory_tokens + 2 * work.question_tokens
    if work.prompt_tokens is not None:  # it ran: tokens are those of all calls of a question
        prompt, work = work.prompt_tokens / each, replace(work, answer_tokens=work.answer_tokens / each)
    calls = work.questions * each
    return reading_cell(config, replace(work, questions=calls), dtype, prompt, work.questions, calls)


def make(spec: SystemSpec, resources: Resources) -> MemoryAgent:
    """Open the model."""
    return MemoryAgent(read_params(Params, spec.params, "systems.yaml: params of kind 'memory_agent'"), resources)
