"""Reranking by query likelihood: how probable a decoder finds the question behind a document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from msa.checkpoints import read
from msa.generation.reader import by_length
from msa.model.prompt import pad_rows
from msa.ops import precision
from msa.ops.finite import finite
from msa_base.records import Document

BATCH_TOKENS = 4096  # padded tokens scored at once


class QueryLikelihood:
    """Scores pairs of a question and a document by the mean log-probability of the question's tokens behind the
    document; the arguments are :func:`read.open_model`'s.

    Any language model can (Ponte and Croft 1998; Sachan et al. 2022); training with the objective ``ask`` makes one
    good at it.
    """

    def __init__(self, directory: Path | str, threads: int = 0):
        self.model, self.prompter = read.open_model(directory, threads)
        self.precision = precision.choose("reranking", "auto", self.model.device)

    @torch.no_grad()
    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        """Scores [N] float32; only differences between documents of one question mean anything."""
        openings = [self.prompter.asking(document).ids for _, document in pairs]
        questions = self.prompter.texts([question for question, _ in pairs])
        rows = [[*opening, *question] for opening, question in zip(openings, questions, strict=True)]
        result, device = np.zeros(len(rows), np.float32), self.model.device
        for batch in by_length([len(row) for row in rows], BATCH_TOKENS):
            ids = pad_rows([rows[number] for number in batch], self.prompter.pad).to(device)
            starts, ends = ([len(part[number]) for number in batch] for part in (openings, rows))
            columns = torch.arange(ids.shape[1], device=device)
            first, end = (torch.tensor(places, device=device).unsqueeze(1) for places in (starts, ends))
            is_question = (columns >= first) & (columns < end)
            with precision.autocast(self.precision, device):
                hidden, _ = self.model(ids, columns)
                logits = self.model.logits(hidden[:, :-1][is_question[:, 1:]])
            logs = finite(logits, "logits").float().log_softmax(-1)
            each = torch.zeros(is_question.shape, device=device)
            each[is_question] = logs.gather(1, ids[is_question].unsqueeze(1)).squeeze(1)
            result[batch] = (each.sum(1) / is_question.sum(1).clamp(min=1)).cpu().numpy()
        return result
