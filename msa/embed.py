"""A bi-encoder on the backbone: mean-pooled final states, for dense retrieval on equal terms with MSA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msa.keys import fast_bfloat16
from msa.loss import auxiliary_loss
from msa.model import MSAModel
from msa.prompt import pad_rows
from msa.samples import Batch


def embed(model: MSAModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors [N, E] float32: mean over masked tokens [N, L] of the final hidden states."""
    hidden, _ = model(ids, torch.arange(ids.shape[1], device=ids.device))
    weights = mask.unsqueeze(-1).float()
    return F.normalize((hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


def contrastive_loss(model: MSAModel, batch: Batch, temperature: float) -> tuple[Tensor, dict[str, float]]:
    """InfoNCE of questions against the documents of the step's bank: the loss that MSA's routers get.

    Rows of later rounds embed question and fetched text, as MSA routes with them.
    """
    columns = torch.arange(batch.documents.shape[1])
    documents = embed(model, batch.documents, columns < batch.lengths.unsqueeze(1))
    questions = torch.cat([embed(model, group.ids, group.routing) for group in batch.groups])
    positives = torch.cat([group.positives for group in batch.groups])
    countable = torch.cat([group.countable for group in batch.groups])
    scores = (questions @ documents.T).masked_fill(~countable, -torch.inf)
    loss = auxiliary_loss(scores, positives, temperature, countable)
    hits = positives.gather(1, scores.argmax(-1, keepdim=True)).float().mean()
    return loss, {"aux_loss": loss.item(), "recall@1": hits.item()}


class Embedder:
    """Embeds texts with a trained bi-encoder.

    Args:
        directory: checkpoint with tokenizer.json.
        threads: CPU threads; 0 leaves torch's choice.
    """

    def __init__(self, directory: Path | str, threads: int = 0):
        from msa import checkpoint

        self.model, self.prompter = checkpoint.open_model(directory, threads)

    def documents(self, documents: list, batch: int = 32) -> np.ndarray:
        """Unit vectors [N, E] float32 of :class:`configs.records.Document` items."""
        return self._embed([(ids, 0, len(ids)) for ids in self.prompter.documents(documents)], batch)

    def queries(self, questions: list[str], batch: int = 32) -> np.ndarray:
        """Unit vectors [Q, E] float32 of question texts."""
        rows = []
        for question in questions:
            row = self.prompter.opening(question)
            rows.append((row.ids, len(self.prompter.head), self.prompter.question_end(row)))
        return self._embed(rows, batch)

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
            with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
                result[chosen] = embed(self.model, ids.to(device), pooled.to(device)).cpu().numpy()
        return result
