"""Reranking by query likelihood: how probable a decoder finds the question behind a document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from configs.records import Document
from msa.keys import fast_bfloat16
from msa.prompt import pad_rows
from msa.reader import by_length

BATCH_TOKENS = 4096  # padded tokens scored at once


class QueryLikelihood:
    """Scores pairs of a question and a document by the mean log-probability of the question's tokens behind the document.

    Any language model can (Ponte and Croft 1998; Sachan et al. 2022); training with the objective ``ask`` makes one good at it.

    Args:
        directory: checkpoint with tokenizer.json.
        threads: CPU threads; 0 leaves torch's choice.
    """

    def __init__(self, directory: Path | str, threads: int = 0):
        from msa import checkpoint

        self.model, self.prompter = checkpoint.open_model(directory, threads)

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
            asked = (columns >= first) & (columns < end)
            with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
                hidden, _ = self.model(ids, columns)
                logits = self.model.logits(hidden[:, :-1][asked[:, 1:]])
            logs = logits.float().log_softmax(-1)
            each = torch.zeros(asked.shape, device=device)
            each[asked] = logs.gather(1, ids[asked].unsqueeze(1)).squeeze(1)
            result[batch] = (each.sum(1) / asked.sum(1).clamp(min=1)).cpu().numpy()
        return result
