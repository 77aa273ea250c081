"""Agent history recall (generated): which tool, which option, which step, out of a long log of an agent's decisions.

A document is one step of one job and carries real prose; the tail is the log of other jobs. Steps of a job differ in
number, tool and option alone, so a question is answered by the one step that it names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from configs.load import build
from configs.records import Document
from tasks import wording
from tasks.base import Cell, CorpusRequest, TaskRequest
from tasks.scaling import (
    Ask,
    HeadSpec,
    TailSpec,
    checked_heads,
    constant_floor,
    head_names,
    make_heads,
    prepare_heads,
    stream,
    tail_names,
)

STEP = "Job {entity}, step {step}: the agent called {tool} and chose option {option} because {reason}."
TOOLS = ("search", "browser", "compiler", "calculator", "database", "editor", "mail", "shell")
REASONS = (
    "it cost less",
    "it was ready first",
    "the other options failed",
    "the user had asked for it",
    "it had worked before",
    "nothing else was left",
)
QUESTIONS = {
    "option": ("Which option did the agent choose at step {step} of job {entity}?", "What was chosen in job {entity} at step {step}?"),
    "tool": ("Which tool did the agent call at step {step} of job {entity}?", "What did the agent call in job {entity} at step {step}?"),
    "step": ("At which step of job {entity} did the agent choose option {option}?", "When did job {entity} choose option {option}, at which step?"),
}  # fmt: skip
STEPS = 12


@dataclass(frozen=True)
class HistorySpec(HeadSpec):
    """Parameters: how many steps each job has."""

    steps: int = STEPS


def log(entity: str, steps: int, generator: random.Random) -> tuple[list[str], list[dict[str, str]]]:
    """The sentences of one job's steps in order, and what each step holds. Numbers of steps go up with gaps; options are distinct."""
    numbers = sorted(generator.sample(range(1, 20 * steps), steps))
    options: list[str] = []
    while len(options) < steps:
        option = wording.random_number(generator, 4)
        if option not in options:
            options.append(option)
    held = [
        {"step": str(number), "tool": generator.choice(TOOLS), "option": option}
        for number, option in zip(numbers, options, strict=True)
    ]
    return [STEP.format(entity=entity, reason=generator.choice(REASONS), **item) for item in held], held


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream the logs of other jobs (tasks.base.CorpusModule)."""
    spec: TailSpec = build(TailSpec, dict(request.params), request.where)
    generator = random.Random(f"{spec.seed}/{request.name}/logs")
    names = tail_names(spec, generator, request.where)
    yield from stream(request, spec, (log(name, STEPS, generator)[0] for name in names))


def history_head(steps: int, limit: int, generator: random.Random) -> tuple[list[str], list[Ask]]:
    """The logs of a few jobs and a question of each kind on every step."""
    sentences: list[str] = []
    asks = []
    for entity in head_names(generator, max(1, limit // steps)):
        texts, held = log(entity, steps, generator)
        for index, item in enumerate(held, start=len(sentences)):
            for kind, questions in QUESTIONS.items():
                question = generator.choice(questions).format(entity=entity, **item)
                asks.append(Ask(question, [item[kind]], [index]))
        sentences += texts
    return sentences, asks


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of the agent history task (tasks.base.TaskModule)."""
    spec = checked_heads(request, HistorySpec, steps=1)
    heads = make_heads(request, spec, partial(history_head, spec.steps))
    yield from prepare_heads(request, spec, heads, floor=constant_floor(heads))
