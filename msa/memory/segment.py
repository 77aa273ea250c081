"""Segments: encoded documents, chunk after chunk, in memory or mapped from a safetensors file.

Shape legend: N documents, T chunks, G KV heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msa.ops.keys import Keys
from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.seal import file_digest
from msa_base.tables import whole_file

MEND = "delete the bank and build it again"


@dataclass
class StoredLayer:
    """What one routed layer keeps: routing keys, and content [T, 2, G, D] (pooled keys, pooled values)."""

    routing: Keys
    content: Tensor

    def __getitem__(self, chunks: slice | Tensor) -> StoredLayer:
        return StoredLayer(self.routing[chunks], self.content[chunks])


@dataclass
class Texts:
    """Documents' text in one piece of memory: UTF-8 ``data``, ``offsets`` [N + 1]."""

    data: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Join texts."""
        encoded = [text.encode() for text in texts]
        sizes = torch.tensor([0, *map(len, encoded)], dtype=torch.long)
        return cls(torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8), sizes.cumsum(0))

    def __getitem__(self, place: int) -> str:
        return bytes(self.data[self.offsets[place] : self.offsets[place + 1]].numpy()).decode()

    def trimmed(self) -> Texts:
        """The same texts without data of others around them."""
        return Texts(self.data[int(self.offsets[0]) : int(self.offsets[-1])], self.offsets - self.offsets[0])


@dataclass
class Segment:
    """Encoded documents, chunk after chunk: a prefix of a segment is the segment of a prefix of its documents.

    ``doc_ids``, ``lengths`` (tokens of the wrapped document) and ``live`` (False: removed) [N]; ``offsets`` [N + 1]:
    first chunk of each document; ``file``: its name in the bank's directory, if it lies there; ``origin``: the file
    that it is mapped from, and that file's sha256.
    """

    doc_ids: Tensor
    offsets: Tensor
    lengths: Tensor
    live: Tensor
    layers: list[StoredLayer]
    texts: Texts
    file: str = ""
    origin: tuple[Path, str] | None = None

    def __len__(self) -> int:
        return len(self.doc_ids)

    @property
    def nbytes(self) -> int:
        """Bytes of what answering reads: keys, content and the tables of documents; not the text."""
        tables = self.doc_ids.nbytes + self.offsets.nbytes + self.lengths.nbytes
        return tables + sum(layer.routing.nbytes + layer.content.nbytes for layer in self.layers)

    def between(self, low: int, high: int) -> Segment:
        """Documents ``low`` to ``high``, removed ones counted, sharing storage."""
        first, last = int(self.offsets[low]), int(self.offsets[high])
        return Segment(
            self.doc_ids[low:high],
            self.offsets[low : high + 1] - first,
            self.lengths[low:high],
            self.live[low:high],
            [layer[first:last] for layer in self.layers],
            Texts(self.texts.data, self.texts.offsets[low : high + 1]),
            origin=self.origin,
        )

    def select(self, places: Tensor) -> Segment:
        """Some documents in the order given, copied."""
        counts = self.offsets.diff()[places]
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        chunks = chunk_numbers(self.offsets[places], counts)
        texts = Texts.of([self.texts[place] for place in places.tolist()])
        layers = [layer[chunks] for layer in self.layers]
        return Segment(self.doc_ids[places], offsets, self.lengths[places], self.live[places], layers, texts)

    @staticmethod
    def join(parts: list[Segment]) -> Segment:
        """Segments one after another, copied; at least one."""
        texts = [part.texts.trimmed() for part in parts]
        zero = torch.zeros(1, dtype=torch.long)
        sizes = torch.cat([zero, *(text.offsets.diff() for text in texts)])
        layers = [
            StoredLayer(Keys.join([layer.routing for layer in stack]), torch.cat([layer.content for layer in stack]))
            for stack in zip(*(part.layers for part in parts), strict=True)
        ]
        return Segment(
            torch.cat([part.doc_ids for part in parts]),
            torch.cat([zero, *(part.offsets.diff() for part in parts)]).cumsum(0),
            torch.cat([part.lengths for part in parts]),
            torch.cat([part.live for part in parts]),
            layers,
            Texts(torch.cat([text.data for text in texts]), sizes.cumsum(0)),
        )

    def document(self, place: int) -> Document:
        return Document(int(self.doc_ids[place]), self.texts[place], int(self.lengths[place]))

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole; removal marks stand in the manifest."""
        texts = self.texts.trimmed()
        tensors = {"doc_ids": self.doc_ids, "offsets": self.offsets, "lengths": self.lengths}
        tensors |= {"text": texts.data, "text_offsets": texts.offsets}
        for number, layer in enumerate(self.layers):
            tensors[f"{number}.routing"], tensors[f"{number}.content"] = layer.routing.values, layer.content
            if layer.routing.scale is not None and layer.routing.scale.dim():
                tensors[f"{number}.routing_scale"] = layer.routing.scale
        with whole_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)

    @classmethod
    def open(cls, path: Path, layers: int, sha256: str = "") -> Segment:
        """Map what :meth:`save` wrote, to be read when needed; a UserError where the file is not whole.

        The tables of documents are checked for meaning here; ``sha256`` is for :meth:`verify`, which reads the rest.
        """
        try:
            with safe_open(path, "pt") as content:
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            stored = []
            for number in range(layers):
                keys = Keys.read(tensors[f"{number}.routing"], tensors.get(f"{number}.routing_scale"))
                stored.append(StoredLayer(keys, tensors[f"{number}.content"]))
            ids, texts = tensors["doc_ids"], Texts(tensors["text"], tensors["text_offsets"])
            live = torch.ones(len(ids), dtype=torch.bool)
            segment = cls(ids, tensors["offsets"], tensors["lengths"], live, stored, texts, path.name, (path, sha256))
            if fault := segment._fault():
                raise ValueError(fault)
            return segment
        except FileNotFoundError:
            raise UserError(f"{path}: no such file, but the bank's manifest names it; {MEND}") from None
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not a whole segment ({error}); {MEND}") from None
        except KeyError as error:
            raise UserError(f"{path}: tensor {error} is missing; {MEND}") from None

    def _fault(self) -> str:
        """What the tables of documents and the shapes contradict; empty where they agree."""
        tables = {"offsets": self.offsets, "text_offsets": self.texts.offsets, "lengths": self.lengths}
        if any(table.dtype != torch.long or table.dim() != 1 for table in (self.doc_ids, *tables.values())):
            return "tables of documents are not rows of whole numbers"
        if [len(table) - len(self) for table in tables.values()] != [1, 1, 0]:
            return "tables of documents differ in length"
        ends = (self.offsets, len(self.layers[0].content)), (self.texts.offsets, len(self.texts.data))
        for table, end in ends:
            if int(table[0]) != 0 or int(table[-1]) > end or bool((table.diff() < 0).any()):
                return "offsets point outside"
        chunks = int(self.offsets[-1])
        for layer in self.layers:
            rows = [layer.routing.values, layer.content]
            rows += [layer.routing.scale] if layer.routing.scale is not None and layer.routing.scale.dim() else []
            if [len(row) for row in rows] != [chunks] * len(rows) or layer.content.shape[1] != 2:
                return "keys and content differ from the table of chunks"
        return ""

    def verify(self) -> None:
        """Read the whole file that this is mapped from; a UserError where it is not as it was written."""
        if self.origin is not None:
            path, sha256 = self.origin
            if file_digest(path) != sha256:
                raise UserError(f"{path}: was changed after it was written; {MEND}")


def chunk_numbers(first: Tensor, sizes: Tensor) -> Tensor:
    """Numbers of the chunks of documents that begin at chunk ``first`` and have ``sizes`` chunks [documents]."""
    return torch.repeat_interleave(first - sizes.cumsum(0) + sizes, sizes) + torch.arange(int(sizes.sum()))
