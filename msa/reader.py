"""A plain reader: the backbone as an ordinary LM over documents in its prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from configs.records import Document, Generation, Question
from msa import checkpoint
from msa.decode import Session
from msa.prompt import Row

BATCH_TOKENS = 16384  # padded prompt tokens read at once


class Reader:
    """Answers questions from documents given as text, greedily.

    Args:
        directory: checkpoint with tokenizer.json.
        threads: CPU threads; 0 leaves torch's choice.
    """

    def __init__(self, directory: Path | str, threads: int = 0):
        self.model, self.prompter = checkpoint.open_model(directory, threads)

    def prompt_tokens(self, documents: list[Document], question: Question) -> int:
        """Tokens of the whole prompt."""
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
            session = Session(self.model, [rows[number] for number in batch], self.prompter.pad, len(self.prompter.head))
            found = self._decode(session, [limits[number] for number in batch], [rows[number].ids for number in batch], started)
            for number, generation in zip(batch, found, strict=True):
                result[number] = generation
        return result

    @torch.no_grad()
    def answer_shared(self, documents: list[Document], questions: list[Question]) -> list[Generation]:
        """Answer questions over one long context, which is read once; its time is shared out among them."""
        started = perf_counter()
        prefix = self.prompter.reading_documents(documents)
        shared = Session(self.model, [prefix], self.prompter.pad, len(self.prompter.head))
        share = (perf_counter() - started) / len(questions)
        result = []
        for question in questions:
            started = perf_counter()
            session = shared.rows([0])
            row = self.prompter.add_reader_question(Row(), question.text, question.answer_prefix)
            session.feed([row.ids])
            generation = self._decode(session, [question.max_new_tokens], [prefix.ids + row.ids], started)[0]
            seconds = {"first_token_s": generation.first_token_s + share, "total_s": generation.total_s + share}
            result.append(replace(generation, **seconds))
        return result

    def _decode(self, session: Session, limits: list[int], prompts: list[list[int]], started: float) -> list[Generation]:
        first = perf_counter() - started
        tokens = session.greedy(self.prompter.im_end, limits)
        share = len(limits)
        total = perf_counter() - started
        return [
            Generation(
                self.prompter.tokenizer.decode(row), len(prompt), len(row), first / share, total / share,
                truncated=len(row) >= limit, prompt=prompt,
            )
            for row, prompt, limit in zip(tokens, prompts, limits, strict=True)
        ]


def by_length(lengths: list[int], batch_tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Places of rows in batches of similar length, the longest first, of at most ``batch_tokens`` padded tokens where they can."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        batch = [order.pop()]
        while order and (len(batch) + 1) * lengths[batch[0]] <= batch_tokens:
            batch.append(order.pop())
        yield batch
