"""MemAgent: a model reads the text chunk by chunk, rewrites one memory after each, and answers from the memory alone.

Source: MemAgent (BytedTsinghua-SIA/MemAgent at 76b7a65; RL-MemoryAgent-14B):

- The chunks are consecutive, without overlap, of 5,000 tokens by default. The memory starts as "No previous memory".
- Each chunk is one fresh message with instruction, problem, memory and section. The reply, at most 1,024 new tokens,
  replaces the memory. One more call answers from problem and memory.
- The calls of a question are sequential, ceil(T / chunk) + 1 of them (``Answer.rounds``), and all their tokens count.
  Questions advance side by side.

``released_messages`` sends the messages of the release's evaluation, which RL-MemoryAgent-14B needs, and reads replies
as it does: a reply is what stands behind ``</think>``, or as it came where there is no such tag, and the answer what
follows the last "the answer is" (none, which is wrong, where that is missing). Without it this differs:

- The messages are shorter and name the problem again behind the section (msa_base.prompts.memory_update). Thinking is
  taken away in every form, and a reply that holds nothing else leaves the memory as it was.
- The last call is the common reader's, with the memory as its one document, so that its answer continues the question's
  answer prefix and is extracted as every system's is.
- Decoding is as the model's entry says, greedy for models of this project.
- ``whole_documents`` ends a chunk between documents: a small model that reads a few hundred tokens at a time loses a
  needle that is cut in two.
- The model of the tiny profile learns the protocol from supervised traces (msa.training.traces), not by reinforcement.

What differs either way stands in docs/RIVALS.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter

from baselines.base import Estimate, PlannedCell, Resources, System, params_of
from baselines.parts.cost import reading
from baselines.parts.models import open_reader
from baselines.parts.reading import ReaderInput, TimeLimit, read_answer
from msa_base import prompts, replies
from msa_base.records import Answer, CorpusView, Document, Generation, Question
from msa_base.specs import SystemSpec
from msa_base.validate import Count, Tokens

NEEDS = ("model",)
PLANS_TIME = True  # a cell's status depends on the profile's limit
READS_ALL = True  # for every question anew, so it is tuned on a few banks
MARKS = ("<｜Assistant｜>", "<｜end▁of▁sentence｜>")  # of a chat template that some servers leave in a reply
PROBE_STEPS = 2  # chunks read before the speed is known; the first warms up


@dataclass(frozen=True)
class Params:
    """The release's limits."""

    chunk_tokens: Tokens = 5000
    memory_tokens: Count = 1024
    whole_documents: bool = False
    released_messages: bool = False


@dataclass
class ReadingState:
    """One question's way through its text."""

    sections: list[str]
    memory: str = prompts.NO_MEMORY
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    status: str = replies.OK  # of the first reply that was no whole one

    def update(self, memory: str, generation: Generation) -> None:
        """Let a reply's text replace the memory."""
        self.memory = memory
        self.status = generation.status if self.status == replies.OK else self.status
        self.input_tokens += generation.input_tokens
        self.output_tokens += generation.output_tokens
        self.seconds += generation.total_s


def sections(documents: Iterable[Document], params: Params) -> Iterator[str]:
    """Documents as text, a line each, in consecutive chunks; a document's tokens are shared out over its words."""
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
    """Refuses a cell whose time, at the speed of its own first chunks or of the last cell, would pass the limit."""

    reads_notes = True

    def __init__(self, params: Params, resources: Resources) -> None:
        self.params = params
        self.reader = open_reader(resources.model, resources.threads)
        self.models = {"reader": self.reader}
        self.limit = TimeLimit(resources.cell_limit_s)
        self._call_s = 0.0  # of the last batch, once there was one

    def ingest(self, view: CorpusView) -> None:
        """Nothing is read before it is known what is asked; a new cell's time starts."""
        self.limit.restart()

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        """Read every question's text, step by step, then answer from the memories."""
        started = perf_counter()
        texts = (view.documents(question) for question in questions)
        states = [ReadingState(list(sections(documents, self.params))) for documents in texts]
        calls = left = sum(len(state.sections) + 1 for state in states)
        self.limit.check(calls, self._call_s)
        for step in range(max(len(state.sections) for state in states)):
            step_started = perf_counter()
            reading = [(q, state) for q, state in zip(questions, states, strict=True) if step < len(state.sections)]
            self._read(step, reading)
            left -= len(reading)
            if step == PROBE_STEPS - 1:
                self.limit.check(left, (perf_counter() - step_started) / len(reading))
        answers = self._answers(questions, states)
        self._call_s = (perf_counter() - started) / calls
        return answers

    def _read(self, step: int, pairs: list[tuple[Question, ReadingState]]) -> None:
        released = self.params.released_messages
        wording = prompts.MEMAGENT_UPDATE.format if released else prompts.memory_update
        messages = [
            wording(problem=q.text.strip(), memory=state.memory, section=state.sections[step]) for q, state in pairs
        ]
        for (_, state), reply in zip(pairs, self.reader.generate(messages, self.params.memory_tokens), strict=True):
            found = replies.said(reply.text)
            lost = not found.text and (found.unfinished or reply.status != replies.OK)
            memory = behind_thinking(whole(reply)) if released else state.memory if lost else found.text.strip()
            state.update(memory, reply)

    def _answers(self, questions: list[Question], states: list[ReadingState]) -> list[Answer]:
        asked = list(zip(questions, states, strict=True))
        if self.params.released_messages:
            messages = [
                prompts.MEMAGENT_ANSWER.format(problem=q.text.strip(), memory=state.memory) for q, state in asked
            ]
            last = self.reader.generate(messages, self.params.memory_tokens)
            last = [replace(reply, text=released_answer(whole(reply))) for reply in last]
        else:
            last = self.reader.answer([([Document(0, state.memory, 0)], q) for q, state in asked])
        answers = []
        for (question, state), reply in zip(asked, last, strict=True):
            answer = read_answer(question, ReaderInput([], stage_s={"memory": state.seconds}), reply)
            answer.rounds = len(state.sections) + 1
            answer.input_tokens += state.input_tokens
            answer.output_tokens += state.output_tokens
            answer.status = state.status if answer.status == replies.OK else answer.status
            answers.append(answer)
        return answers


def whole(reply: Generation) -> str:
    """A reply as it came, thinking and all, which the release takes away by itself."""
    return reply.text if reply.whole is None else reply.whole


def behind_thinking(reply: str) -> str:
    """What stands behind the last closing think tag; a reply without one as it came (release: ``extract_solution``)."""
    return reply.rpartition(prompts.THINK_END)[2].strip() if prompts.THINK_END in reply else reply


def released_answer(reply: str) -> str:
    """The answer in a last reply: what follows the last "the answer is", without asterisks, marks of a template and
    full stops around it; empty where there is none (release: ``extract_answer``).

    A reply that has nothing behind its thinking is searched whole.
    """
    said = behind_thinking(reply.strip()) or reply
    _, found, text = said.replace("*", "").rpartition(prompts.MEMAGENT_ANSWER_MARK)
    for mark in MARKS:
        text = text.replace(mark, "")
    return text.strip().strip(".").strip() if found else ""


def estimate_cell(cell: PlannedCell) -> Estimate:
    """Every call reads a section, the memory and the problem twice, and writes as many tokens as an answer has."""
    params, work = params_of(Params, cell.spec), cell.work
    each = math.ceil(work.context_tokens / params.chunk_tokens) + 1
    prompt = min(params.chunk_tokens, work.context_tokens) + params.memory_tokens + 2 * work.question_tokens
    if work.prompt_tokens is not None:  # it ran: tokens are those of all calls of a question
        prompt, work = work.prompt_tokens / each, replace(work, answer_tokens=work.answer_tokens / each)
    calls = work.questions * each
    return reading(replace(cell, work=replace(work, questions=calls)), prompt, work.questions, calls)


def make(spec: SystemSpec, resources: Resources) -> MemoryAgent:
    return MemoryAgent(params_of(Params, spec), resources)
