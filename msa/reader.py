"""A plain reader: the backbone as an ordinary LM over documents in its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from configs.records import Document, Question
from msa import checkpoint
from msa.decode import Session
from msa.prompt import Row

BATCH_TOKENS = 16384  # padded prompt tokens read at once


@dataclass(frozen=True)
class Generation:
    """One answer and its cost; seconds are this question's share of its batch."""

    text: str
    input_tokens: int
    output_tokens: int
    first_token_s: float
    total_s: float
    truncated: bool = False


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

    @torch.no_grad()
    def answer(self, pairs: list[tuple[list[Document], Question]]) -> list[Generation]:
        """Answer each question from its own documents, in batches of prompts of similar length."""
        rows = [self.prompter.reading(documents, q.text, q.answer_prefix) for documents, q in pairs]
        result: list[Generation | None] = [None] * len(pairs)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
        while order:
            batch = [order.pop()]
            while order and (len(batch) + 1) * len(rows[batch[0]].ids) <= BATCH_TOKENS:
                batch.append(order.pop())
            started = perf_counter()
            session = Session(self.model, [rows[number] for number in batch], self.prompter.pad, len(self.prompter.head))
            questions = [pairs[number][1] for number in batch]
            lengths = [len(rows[number].ids) for number in batch]
            for number, generation in zip(batch, self._decode(session, questions, lengths, started), strict=True):
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
            generation = self._decode(session, [question], [len(prefix.ids) + len(row.ids)], started)[0]
            result.append(
                Generation(
                    generation.text, generation.input_tokens, generation.output_tokens,
                    generation.first_token_s + share, generation.total_s + share, generation.truncated,
                )
            )
        return result

    def _decode(self, session: Session, questions: list[Question], lengths: list[int], started: float) -> list[Generation]:
        first = perf_counter() - started
        tokens = session.greedy(self.prompter.im_end, [question.max_new_tokens for question in questions])
        share = len(questions)
        total = perf_counter() - started
        return [
            Generation(
                self.prompter.tokenizer.decode(row), length, len(row), first / share, total / share,
                truncated=len(row) >= question.max_new_tokens,
            )
            for row, length, question in zip(tokens, lengths, questions, strict=True)
        ]
