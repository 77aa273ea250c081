"""A plain reader: the backbone as an ordinary LM over documents in its prompt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from msa.checkpoints import read
from msa.generation.decode import Session
from msa.model.prompt import Row
from msa_base.records import Document, Generation, Question
from msa_base.replies import OK, THINKING, UNFINISHED, Losses, said
from msa_base.seal import checkpoint_digest

BATCH_TOKENS = 16384  # padded prompt tokens read at once


class Reader:
    """Answers questions from documents given as text, greedily; the arguments are :func:`read.open_reader`'s."""

    def __init__(self, directory: Path | str, threads: int = 0):
        self.model, self.prompter = read.open_reader(directory, threads)
        self.directory, self._losses = Path(directory), Losses()

    @cached_property
    def identity(self) -> str:
        """The digest of what writes: weights, configuration and tokenizer."""
        return checkpoint_digest(self.directory)

    def pop_usage(self) -> dict[str, Any]:
        """What was lost or repaired of its texts since this was last asked."""
        return self._losses.pop_usage()

    def prompt_tokens(self, documents: list[Document], question: Question) -> int:
        return len(self.prompter.reading(documents, question.text, question.answer_prefix).ids)

    def answer(self, pairs: list[tuple[list[Document], Question]]) -> list[Generation]:
        """Answer each question from its own documents, in batches of prompts of similar length."""
        rows = [self.prompter.reading(documents, q.text, q.answer_prefix) for documents, q in pairs]
        return self._continue(rows, [question.max_new_tokens for _, question in pairs])

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[Generation]:
        """Reply to each prompt, a user's message, in batches of prompts of similar length."""
        rows = [self.prompter.message(prompt) for prompt in prompts]
        return self._continue(rows, [max_new_tokens] * len(rows))

    @torch.no_grad()
    def _continue(self, rows: list[Row], limits: list[int]) -> list[Generation]:
        result: list[Generation | None] = [None] * len(rows)
        for batch in by_length([len(row.ids) for row in rows]):
            started = perf_counter()
            prompts = [rows[number] for number in batch]
            session = Session(self.model, prompts, self.prompter.pad, len(self.prompter.head))
            found = self._decode(session, [limits[n] for n in batch], [row.ids for row in prompts], started)
            for number, generation in zip(batch, found, strict=True):
                result[number] = generation
        return result

    @torch.no_grad()
    def answer_shared(self, documents: list[Document], questions: list[Question]) -> list[Generation]:
        """Answer questions over one long context: what their prompts share is read once, and its time shared out."""
        started = perf_counter()
        rows = [self.prompter.reading(documents, q.text, q.answer_prefix).ids for q in questions]
        most = min(map(len, rows)) - 1  # one question alone still has a last token to go on behind
        prefix = os.path.commonprefix(rows)[:most]  # noqa: RUF071 of lists, not of paths
        shared = Session(self.model, [Row().add(prefix)], self.prompter.pad, len(self.prompter.head))
        share = (perf_counter() - started) / len(questions)
        result = []
        for question, ids in zip(questions, rows, strict=True):
            started = perf_counter()
            session = shared.rows([0])
            session.feed([ids[len(prefix) :]])
            generation = self._decode(session, [question.max_new_tokens], [ids], started)[0]
            seconds = {"first_token_s": generation.first_token_s + share, "total_s": generation.total_s + share}
            result.append(replace(generation, **seconds))
        return result

    def _decode(
        self, session: Session, limits: list[int], prompts: list[list[int]], started: float
    ) -> list[Generation]:
        first = (perf_counter() - started) / len(limits)
        tokens = session.greedy(self.prompter.ends, limits)
        total, result = (perf_counter() - started) / len(limits), []
        for row, prompt, limit in zip(tokens, prompts, limits, strict=True):
            text = self.prompter.decode(row)
            found = said(text)
            status, whole = UNFINISHED if found.unfinished else OK, text if found.thought else None
            self._losses.add(status, [THINKING] if found.thought else [])
            cost = {"truncated": len(row) >= limit, "prompt": prompt, "status": status, "whole": whole}
            result.append(Generation(found.text, len(prompt), len(row), first, total, **cost))
        return result


def by_length(lengths: list[int], batch_tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, the longest first. A batch has at most ``batch_tokens`` padded tokens,
    unless one row alone has more.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        batch = [order.pop()]
        while order and (len(batch) + 1) * lengths[batch[0]] <= batch_tokens:
            batch.append(order.pop())
        yield batch
