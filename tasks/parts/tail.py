"""The growing tail of a corpus on disk: ids and token counts in memory, texts read on demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.tables import read_arrow, unavailable
from tasks.parts.chunking import SHORT_ID_DOCUMENTS, SHORT_IDS


class UnavailableData(Exception):
    """Data that this machine lacks: the message names the path and the command that would fetch it.

    A corpus without its data is written empty, with this reason; every cell over it becomes `unavailable_data`.
    """


class Tail:
    """A corpus file of which a context takes the leading documents."""

    def __init__(self, path: Path | str) -> None:
        """Open a corpus.parquet. Raises UserError: no corpus. UnavailableData: written empty for lack of data."""
        self.path = Path(path)
        if reason := unavailable(self.path):
            raise UnavailableData(reason)
        table = read_arrow("corpus", self.path, ["doc_id", "num_tokens"])
        self.doc_ids: np.ndarray = table["doc_id"].to_numpy()
        self.ends: np.ndarray = np.cumsum(table["num_tokens"].to_numpy(), dtype=np.int64)
        if not len(self.ends):
            raise UserError(f"{path}: holds no documents; delete it and run the same command again")

    @property
    def id_documents(self) -> int:
        """A corpus size that gives ids as long as this tail's (tasks.parts.chunking.id_range)."""
        return SHORT_ID_DOCUMENTS if self.doc_ids.max() > SHORT_IDS[1] else 0

    def prefix(self, num_tokens: int) -> int:
        """The largest number of leading documents with at most ``num_tokens`` in all."""
        return int(np.searchsorted(self.ends, num_tokens, side="right"))

    def tokens(self, num_documents: int | None = None) -> int:
        """Tokens of the leading documents; of all without a number."""
        number = len(self.ends) if num_documents is None else num_documents
        return int(self.ends[number - 1]) if number else 0

    def at(self, token: int) -> int:
        """Index of the document that holds a token position."""
        return int(np.searchsorted(self.ends, token, side="right"))

    def take(self, indices: set[int]) -> dict[int, Document]:
        """Documents by index, in order; the others pass by and are not kept."""
        found, start, wanted = {}, 0, np.array(sorted(indices), dtype=np.int64)
        with pq.ParquetFile(self.path) as file:  # one thread: where no other can be started, Arrow waits for ever
            for batch in file.iter_batches(use_threads=False):
                first, last = np.searchsorted(wanted, [start, start + len(batch)])
                rows = batch.take(pa.array(wanted[first:last] - start)).to_pylist()
                found |= {int(index): Document(**row) for index, row in zip(wanted[first:last], rows, strict=True)}
                start += len(batch)
        return found
