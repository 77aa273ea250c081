"""Memory banks: encoded documents in segments, in memory or mapped from disk, that can be added to, edited and cut.

A bank directory holds bank.json (the manifest) and segments (safetensors). A change writes new files first and the
manifest last, so that a bank is always whole: an interrupted build goes on behind its last segment.

Shape legend: N documents, T chunks, G KV heads, D head_dim, W = G * D.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from configs.errors import UserError
from configs.records import Document
from configs.tables import read_json, whole_file, write_json
from msa.keys import Keys

MANIFEST = "bank.json"
FORMAT = 1


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

    ``doc_ids``, ``lengths`` (tokens of the wrapped document) and ``live`` (False: removed) [N]; ``offsets`` [N + 1] first
    chunk of each document; ``file`` is its name in the bank's directory, if it lies there.
    """

    doc_ids: Tensor
    offsets: Tensor
    lengths: Tensor
    live: Tensor
    layers: list[StoredLayer]
    texts: Texts
    file: str = ""

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
            self.doc_ids[low:high], self.offsets[low : high + 1] - first, self.lengths[low:high], self.live[low:high],
            [layer[first:last] for layer in self.layers], Texts(self.texts.data, self.texts.offsets[low : high + 1]),
        )

    def take(self, places: Tensor) -> Segment:
        """Some documents in the order given, copied."""
        counts = self.offsets.diff()[places]
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        starts = self.offsets[places] - offsets[:-1]
        chunks = torch.repeat_interleave(starts, counts) + torch.arange(int(offsets[-1]))
        texts = Texts.of([self.texts[place] for place in places.tolist()])
        layers = [layer[chunks] for layer in self.layers]
        return Segment(self.doc_ids[places], offsets, self.lengths[places], self.live[places], layers, texts)

    @staticmethod
    def join(parts: list[Segment]) -> Segment:
        """Segments one after another, copied; at least one."""
        counts = torch.cat([part.offsets.diff() for part in parts])
        texts = [part.texts.trimmed() for part in parts]
        sizes = torch.cat([text.offsets.diff() for text in texts])
        zero = torch.zeros(1, dtype=torch.long)
        layers = [
            StoredLayer(Keys.join([layer.routing for layer in stack]), torch.cat([layer.content for layer in stack]))
            for stack in zip(*(part.layers for part in parts), strict=True)
        ]
        return Segment(
            torch.cat([part.doc_ids for part in parts]), torch.cat((zero, counts.cumsum(0))),
            torch.cat([part.lengths for part in parts]), torch.cat([part.live for part in parts]),
            layers, Texts(torch.cat([text.data for text in texts]), torch.cat((zero, sizes.cumsum(0)))),
        )

    def document(self, place: int) -> Document:
        """The text of a document."""
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
    def open(cls, path: Path, layers: int) -> Segment:
        """Map what :meth:`save` wrote; nothing is read before it is needed.

        Raises:
            UserError: the file is missing, truncated or lacks a tensor.
        """
        try:
            with safe_open(path, "pt") as content:
                names = set(content.keys())
                tensors = {name: content.get_tensor(name) for name in names}
            stored = [
                StoredLayer(Keys.read(tensors[f"{n}.routing"], tensors.get(f"{n}.routing_scale")), tensors[f"{n}.content"])
                for n in range(layers)
            ]
            ids = tensors["doc_ids"]
            texts = Texts(tensors["text"], tensors["text_offsets"])
            live = torch.ones(len(ids), dtype=torch.bool)
            return cls(ids, tensors["offsets"], tensors["lengths"], live, stored, texts, path.name)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file, but the bank's manifest names it; build the bank again") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: not a whole segment ({error}); build the bank again") from None
        except KeyError as error:
            raise UserError(f"{path}: tensor {error} is missing; build the bank again") from None


@dataclass(frozen=True)
class Signature:
    """What a bank can be used with: a bank opens only where all of these agree.

    ``model`` and ``tokenizer`` are digests of the files that encoded it (empty for a bank that only lives in memory).
    ``unit_keys``: heads of routing keys are unit vectors, as the paper has them and some released models do not.
    ``precision`` is that of the encoder's computation, which every later document is encoded with too.
    """

    model: str
    tokenizer: str
    pool_tokens: int
    routed_layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    key_dtype: str
    content_dtype: str
    unit_keys: bool = True
    precision: str = "float32"

    def check(self, other: Signature, where: str) -> None:
        """Raise a UserError that names the first difference; precisions are the bank's own and may differ."""
        for name, mine in asdict(self).items():
            theirs = getattr(other, name)
            if name not in ("key_dtype", "content_dtype", "precision") and mine != theirs:
                raise UserError(
                    f"{where}: {name} of the bank is {mine!r}, of the model {theirs!r};"
                    " open it with the model that encoded it, or build a bank with this one"
                )


@dataclass
class Bank:
    """A memory bank: segments in order. A prefix of a bank is a bank.

    ``directory`` is None for a bank that lives in memory alone; edits of one with a directory are written at once.
    """

    signature: Signature
    segments: list[Segment]
    directory: Path | None = None
    corpus: str = ""
    _index: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Live documents."""
        return sum(int(segment.live.sum()) for segment in self.segments)

    @property
    def nbytes(self) -> int:
        """Bytes of what answering reads."""
        return sum(segment.nbytes for segment in self.segments)

    @property
    def doc_ids(self) -> Tensor:
        """Ids of the live documents in order [N]."""
        return torch.cat([segment.doc_ids[segment.live] for segment in self.segments] or [torch.zeros(0, dtype=torch.long)])

    def prefix(self, documents: int) -> Bank:
        """The first live documents, sharing storage.

        Raises:
            UserError: there are fewer.
        """
        segments, left = [], documents
        for segment in self.segments:
            if not left:
                break
            live = segment.live.cumsum(0)
            if int(live[-1]) > left:
                segment = segment.between(0, int(torch.searchsorted(live, left)) + 1)
            segments.append(segment)
            left -= int(segment.live.sum())
        if left:
            raise UserError(f"{self.directory or 'the bank'}: holds {len(self):,} documents, not {documents:,}")
        return Bank(self.signature, segments, None, self.corpus)

    def shard(self, rank: int, ranks: int) -> Bank:
        """The documents of one of ``ranks`` contiguous shards with equal numbers of chunks, as near as documents allow."""
        ends = torch.cat([torch.zeros(1, dtype=torch.long), *(segment.offsets.diff() for segment in self.segments)]).cumsum(0)
        cuts = torch.searchsorted(ends, torch.tensor([int(ends[-1]) * place // ranks for place in (rank, rank + 1)]))
        first, last = int(cuts[0]), int(cuts[1]) if rank + 1 < ranks else len(ends) - 1
        parts, start = [], 0
        for segment in self.segments:
            low, high = max(first - start, 0), min(last - start, len(segment))
            if low < high:
                parts.append(segment.between(low, high))
            start += len(segment)
        return Bank(self.signature, parts, None, self.corpus)

    def locate(self, doc_ids: Sequence[int]) -> list[tuple[int, int] | None]:
        """Segment and place of live documents by id, None where there is none."""
        if not self.segments:
            return [None] * len(doc_ids)
        if self._index is None:
            ids = torch.cat([segment.doc_ids for segment in self.segments])
            live = torch.cat([segment.live for segment in self.segments]).nonzero().squeeze(1)
            order = live[ids[live].argsort()]
            self._index = ids[order], order
        ids, order = self._index
        wanted = torch.tensor(list(doc_ids), dtype=torch.long)
        places = torch.searchsorted(ids, wanted)
        starts = torch.tensor([0, *map(len, self.segments)]).cumsum(0)
        found: list[tuple[int, int] | None] = []
        for doc_id, place in zip(wanted.tolist(), places.tolist(), strict=True):
            if place == len(ids) or int(ids[place]) != doc_id:
                found.append(None)
                continue
            row = int(order[place])
            number = int(torch.searchsorted(starts, row, right=True)) - 1
            found.append((number, row - int(starts[number])))
        return found

    def document(self, doc_id: int) -> Document | None:
        """Text of a live document, or None."""
        found = self.locate([doc_id])[0]
        return None if found is None else self.segments[found[0]].document(found[1])

    # --- editing -----------------------------------------------------------------------------------------------

    def add(self, segment: Segment, **numbers: float) -> None:
        """Add encoded documents behind the others; ``numbers`` are kept in the manifest beside them.

        Raises:
            UserError: an id is there already, or twice in the addition.
        """
        ids = segment.doc_ids.tolist()
        if len(set(ids)) < len(ids):
            raise UserError(f"document id {_twice(ids)} occurs twice in the documents to add")
        taken = [doc_id for doc_id, found in zip(ids, self.locate(ids), strict=True) if found is not None]
        if taken:
            raise UserError(f"document id {taken[0]} is in the bank already; use `replace`")
        self._write([*self.segments, segment], **numbers)

    def remove(self, doc_ids: Sequence[int]) -> None:
        """Remove documents.

        Raises:
            UserError: an id is not in the bank.
        """
        self._write(self._without(doc_ids))

    def replace(self, segment: Segment) -> None:
        """Exchange documents for encoded ones of the same ids, which stand behind the others from then on.

        Raises:
            UserError: an id is not in the bank, or twice in the replacement.
        """
        ids = segment.doc_ids.tolist()
        if len(set(ids)) < len(ids):
            raise UserError(f"document id {_twice(ids)} occurs twice in the documents to replace")
        self._write([*self._without(ids), segment])

    def _without(self, doc_ids: Sequence[int]) -> list[Segment]:
        segments = list(self.segments)
        changed: dict[int, list[int]] = {}
        for doc_id, found in zip(doc_ids, self.locate(doc_ids), strict=True):
            if found is None:
                raise UserError(f"document id {doc_id} is not in the bank")
            changed.setdefault(found[0], []).append(found[1])
        for number, places in changed.items():
            live = segments[number].live.clone()
            live[places] = False
            segments[number] = replace(segments[number], live=live)
        return segments

    def compact(self, segment_tokens: int = 1 << 20) -> None:
        """Rewrite a bank without its removed documents, in segments of about ``segment_tokens``."""
        fresh, waiting = [], []
        for segment in self.segments:
            kept = segment if bool(segment.live.all()) else segment.take(segment.live.nonzero().squeeze(1))
            waiting.append(kept)
            if sum(int(part.lengths.sum()) for part in waiting) >= segment_tokens:
                fresh.append(waiting[0] if len(waiting) == 1 else Segment.join(waiting))
                waiting = []
        if waiting:
            fresh.append(waiting[0] if len(waiting) == 1 else Segment.join(waiting))
        self._write([segment for segment in fresh if len(segment)])

    def _write(self, segments: list[Segment], **numbers: float) -> None:
        """Make segments the bank's, on disk first where it has a directory."""
        if self.directory is not None:
            manifest = Manifest.read(self.directory)
            known, entries = {entry["file"]: entry for entry in manifest.segments}, []
            for place, segment in enumerate(segments):
                if not segment.file:
                    path = self.directory / manifest.next_file(entries)
                    segment.save(path)
                    # from here on mapped, so that a bank larger than memory can be built
                    segment = replace(Segment.open(path, len(segment.layers)), live=segment.live)
                    segments[place], known[segment.file] = segment, _entry(segment) | numbers
                entries.append(known[segment.file] | {"removed": (~segment.live).nonzero().squeeze(1).tolist()})
            manifest.segments = entries
            manifest.write(self.directory)
            for file in known.keys() - {entry["file"] for entry in entries}:
                (self.directory / file).unlink(missing_ok=True)
        self.segments, self._index = segments, None

    # --- disk --------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, directory: Path, signature: Signature, corpus: str = "") -> Bank:
        """An empty bank on disk, or the one that an interrupted build left there.

        Raises:
            UserError: a bank of another model, tokenizer, shape, precision or corpus stands there.
        """
        directory = Path(directory)
        for left in directory.glob(".*.tmp"):  # of a writer that was killed
            left.unlink()
        if (directory / MANIFEST).exists():
            bank = cls.open(directory, signature)
            mine = bank.signature
            if mine != signature or bank.corpus != corpus:
                raise UserError(f"{directory / MANIFEST}: a bank of another corpus or precision stands here; delete it or build elsewhere")
            return bank
        directory.mkdir(parents=True, exist_ok=True)
        Manifest(signature, corpus, []).write(directory)
        return cls(signature, [], directory, corpus)

    @classmethod
    def open(cls, directory: Path, signature: Signature | None = None) -> Bank:
        """Map a bank from disk.

        Args:
            signature: of the model that will use it; checked where given.

        Raises:
            UserError: no bank, a truncated or missing segment, or a bank of another model, tokenizer or shape.
        """
        directory = Path(directory)
        manifest = Manifest.read(directory)
        if signature is not None:
            manifest.signature.check(signature, str(directory / MANIFEST))
        segments = []
        for entry in manifest.segments:
            segment = Segment.open(directory / entry["file"], len(manifest.signature.routed_layers))
            if (len(segment), int(segment.offsets[-1])) != (entry["documents"], entry["chunks"]):
                raise UserError(f"{directory / entry['file']}: not the segment that {MANIFEST} names; build the bank again")
            if entry["removed"]:
                segment.live[torch.tensor(entry["removed"])] = False
            segments.append(segment)
        return cls(manifest.signature, segments, directory, manifest.corpus)


@dataclass
class Manifest:
    """bank.json: what encoded the bank, and its segments with their removed places."""

    signature: Signature
    corpus: str
    segments: list[dict]

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read and check bank.json."""
        path = directory / MANIFEST
        if not path.exists():
            raise UserError(f"{path}: no such file: {directory} holds no bank; make one with `python -m msa.encode build`")
        content = read_json(path)
        try:
            if content["format"] != FORMAT:
                raise UserError(f"{path}: key 'format' is {content['format']!r}, this version reads {FORMAT}; build the bank again")
            values = content["signature"]
            signature = Signature(**{**values, "routed_layers": tuple(values["routed_layers"])})
            for entry in content["segments"]:
                entry["file"], entry["documents"], entry["chunks"], entry["removed"]
            return cls(signature, content["corpus"], content["segments"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a bank's manifest ({type(error).__name__}: {error}); build the bank again") from None

    def write(self, directory: Path) -> None:
        """Write bank.json, whole."""
        content = {"format": FORMAT, "signature": asdict(self.signature), "corpus": self.corpus, "segments": self.segments}
        write_json(content, directory / MANIFEST)

    def next_file(self, entries: list[dict]) -> str:
        """A file name that neither the manifest nor ``entries`` use."""
        used = [int(entry["file"].split("-")[1].split(".")[0]) for entry in [*self.segments, *entries]]
        return f"segment-{max(used, default=-1) + 1:05d}.safetensors"


def _entry(segment: Segment) -> dict:
    """What the manifest says of a segment."""
    tokens, chunks = int(segment.lengths.sum()), int(segment.offsets[-1])
    return {"file": segment.file, "documents": len(segment), "chunks": chunks, "tokens": tokens}


def _twice(ids: Iterable[int]) -> int:
    seen: set[int] = set()
    return next(doc_id for doc_id in ids if doc_id in seen or seen.add(doc_id))
