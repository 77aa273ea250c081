"""A bi-encoder on the backbone: mean-pooled final states, for dense retrieval on equal terms with MSA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msa.checkpoints import read
from msa.model.decoder import MSAModel
from msa.model.prompt import pad_rows
from msa.ops import precision
from msa.ops.finite import finite


def embed(model: MSAModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors [N, E] float32: mean over masked tokens [N, L] of the final hidden states."""
    hidden, _ = model(ids, torch.arange(ids.shape[1], device=ids.device))
    weights = mask.unsqueeze(-1).float()
    return F.normalize((hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


class Embedder:
    """Embeds texts with a trained bi-encoder; the arguments are :func:`read.open_model`'s."""

    def __init__(self, directory: Path | str, threads: int = 0):
        self.model, self.prompter = read.open_model(directory, threads)
        self.precision = precision.choose("embedding", "auto", self.model.device)

    def documents(self, documents: list, batch: int = 32) -> np.ndarray:
        """Unit vectors [N, E] float32 of :class:`msa_base.records.Document` items."""
        return self._embed([(ids, 0, len(ids)) for ids in self.prompter.documents(documents)], batch)

    def queries(self, questions: list[str], batch: int = 32) -> np.ndarray:
        """Unit vectors [Q, E] float32 of question texts."""
        rows, head = [self.prompter.opening(question) for question in questions], len(self.prompter.head)
        return self._embed([(row.ids, head, self.prompter.question_end(row)) for row in rows], batch)

    @torch.no_grad()
    def _embed(self, rows: list[tuple[list[int], int, int]], batch: int) -> np.ndarray:
        """Embed rows of (ids, first pooled token, end of pooled tokens), sorted by length to waste no padding."""
        result = np.empty((len(rows), self.model.config.hidden_size), np.float32)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number][0]))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            ids = pad_rows([rows[number][0] for number in chosen], self.prompter.pad)
            columns = torch.arange(ids.shape[1])
            first, end = (torch.tensor([rows[number][side] for number in chosen]).unsqueeze(1) for side in (1, 2))
            pooled, device = (columns >= first) & (columns < end), self.model.device
            with precision.autocast(self.precision, device):
                vectors = embed(self.model, ids.to(device), pooled.to(device))
            result[chosen] = finite(vectors, "embeddings").cpu().numpy()
        return result
