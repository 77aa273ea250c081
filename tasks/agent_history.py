"""Agent history recall (generated): which tool, which option, which step, out of a long log of an agent's decisions.

A document is one step of one job and carries real prose; the tail is the log of other jobs. Steps of a job differ in
number, tool and option alone, so a question is answered by the one step that it names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from msa_base.records import Document
from msa_base.validate import Count
from tasks.base import CorpusRequest, PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.entities import CorpusParams, entity_corpus, head_names
from tasks.parts.heads import Ask, HeadParams, Part, prepare_heads

STEP = "Job {entity}, step {step}: the agent called {tool} and chose option {option} because {reason}."
TOOLS = ("search", "browser", "compiler", "calculator", "database", "editor", "mail", "shell")
REASONS = (
    *("it cost less", "it was ready first", "the other options failed", "the user had asked for it"),
    *("it had worked before", "nothing else was left"),
)
QUESTIONS = {
    "option": ("Which option did the agent choose at step {step} of job {entity}?",
    "What was chosen in job {entity} at step {step}?"),
    "tool": ("Which tool did the agent call at step {step} of job {entity}?",
    "What did the agent call in job {entity} at step {step}?"),
    "step": ("At which step of job {entity} did the agent choose option {option}?",
    "When did job {entity} choose option {option}, at which step?"),
}  # fmt: skip
STEPS = 12
__all__ = ["CorpusParams", "Params", "make_corpus", "prepare"]


@dataclass(frozen=True)
class Params(HeadParams):
    """Parameters: how many steps each job has."""

    steps: Count = STEPS


def log(entity: str, steps: int, generator: random.Random) -> tuple[list[str], list[dict[str, str]]]:
    """The sentences of one job's steps in order, and what each step holds; steps are numbered with gaps."""
    numbers = sorted(generator.sample(range(1, 20 * steps), steps))
    options: dict[str, None] = {}  # each once, in the order of drawing
    while len(options) < steps:
        options[wording.random_number(generator, 4)] = None
    held = [
        {"step": str(number), "tool": generator.choice(TOOLS), "option": option}
        for number, option in zip(numbers, options, strict=True)
    ]
    return [STEP.format(entity=entity, reason=generator.choice(REASONS), **item) for item in held], held


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    return entity_corpus(request, "logs", lambda names, generator: log(next(names), STEPS, generator)[0])


def history_head(steps: int, limit: int, generator: random.Random) -> Iterator[Part]:
    """The logs of a few jobs and a question of each kind on every step."""
    for entity in head_names(generator, max(1, limit // steps)):
        texts, held = log(entity, steps, generator)
        yield (
            texts,
            [
                Ask(generator.choice(questions).format(entity=entity, **item), [item[kind]], [place])
                for place, item in enumerate(held)
                for kind, questions in QUESTIONS.items()
            ],
        )


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    params = request.read(Params)
    return prepare_heads(request, params, partial(history_head, params.steps), floor=None)
