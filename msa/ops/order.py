"""The order of a bank's document ids, computed once a bank: equal scores go to the lowest id.

Shape legend: N documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DocumentOrder:
    """``by_id``: positions in the bank by rising id, int64 [N]; ``rank``: place of each document in that order, int32 [N]."""

    by_id: Tensor
    rank: Tensor


def document_order(doc_ids: Tensor) -> DocumentOrder:
    """The order of ids [N]; of equal ids the first in the bank comes first."""
    by_id = doc_ids.argsort(stable=True)
    rank = torch.empty(len(doc_ids), dtype=torch.int32, device=doc_ids.device)
    rank[by_id] = torch.arange(len(doc_ids), dtype=torch.int32, device=doc_ids.device)
    return DocumentOrder(by_id, rank)
