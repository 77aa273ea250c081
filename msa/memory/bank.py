"""Memory banks: encoded documents in segments, in memory or mapped from disk, that can be added to, edited and cut.

A bank directory holds bank.json (the manifest) and segments (safetensors). A change writes new files first and the
manifest last, so that a bank is always whole: an interrupted build goes on behind its last segment.

Shape legend: N documents.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from msa.memory.segment import MEND, Segment
from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.seal import Record, file_digest

MANIFEST = "bank.json"


@dataclass(frozen=True)
class Signature:
    """What made a bank: it opens only for a model and tokenizer that agree.

    ``model`` and ``tokenizer`` are digests of the files that encoded it (empty for a bank that only lives in memory).
    ``unit_keys``: heads of routing keys are unit vectors, as the paper has them and some released models do not.
    ``routing_heads``: of a routing key, where they are not the KV heads (0).
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
    routing_heads: int = 0

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
    An edit never changes a list of segments that stands, so a :meth:`snapshot` can be asked while the bank is edited,
    by one writer at a time.
    """

    signature: Signature
    segments: list[Segment]
    directory: Path | None = None
    corpus: str = ""
    _index: tuple[list[Segment], Tensor, Tensor] | None = field(default=None, repr=False)

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
        nothing = torch.zeros(0, dtype=torch.long)
        return torch.cat([nothing, *(segment.doc_ids[segment.live] for segment in self.segments)])

    def snapshot(self) -> Bank:
        """The bank as it stands, in memory, sharing storage: no edit of either reaches the other."""
        return Bank(self.signature, self.segments, None, self.corpus)

    def prefix(self, documents: int) -> Bank:
        """The first live documents, sharing storage; a UserError where there are fewer."""
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
        """The documents of one of ``ranks`` contiguous shards with about equal numbers of chunks."""
        zero = torch.zeros(1, dtype=torch.long)
        ends = torch.cat([zero, *(segment.offsets.diff() for segment in self.segments)]).cumsum(0)
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
        return self._locate(self.segments, doc_ids)

    def _locate(self, segments: list[Segment], doc_ids: Sequence[int]) -> list[tuple[int, int] | None]:
        if not segments:
            return [None] * len(doc_ids)
        index = self._index
        if index is None or index[0] is not segments:  # an edit came since, or comes just now
            ids = torch.cat([segment.doc_ids for segment in segments])
            live = torch.cat([segment.live for segment in segments]).nonzero().squeeze(1)
            order = live[ids[live].argsort()]
            index = self._index = segments, ids[order], order
        _, ids, order = index
        wanted = torch.tensor(list(doc_ids), dtype=torch.long)
        places = torch.searchsorted(ids, wanted)
        starts = torch.tensor([0, *map(len, segments)]).cumsum(0)
        found: list[tuple[int, int] | None] = [None] * len(wanted)
        for asked, (doc_id, place) in enumerate(zip(wanted.tolist(), places.tolist(), strict=True)):
            if place < len(ids) and int(ids[place]) == doc_id:
                row = int(order[place])
                number = int(torch.searchsorted(starts, row, right=True)) - 1
                found[asked] = number, row - int(starts[number])
        return found

    def document(self, doc_id: int) -> Document | None:
        segments = self.segments
        found = self._locate(segments, [doc_id])[0]
        return None if found is None else segments[found[0]].document(found[1])

    def add(self, segment: Segment, **numbers: float) -> None:
        """Add documents of new ids (else a UserError) at the end; the manifest keeps ``numbers`` beside them."""
        ids = _distinct_ids(segment, "add")
        taken = [doc_id for doc_id, found in zip(ids, self.locate(ids), strict=True) if found is not None]
        if taken:
            raise UserError(f"document id {taken[0]} is in the bank already; use `replace`")
        self._write([*self.segments, segment], **numbers)

    def remove(self, doc_ids: Sequence[int]) -> None:
        """Remove documents; a UserError where an id is not in the bank."""
        self._write(self._without(doc_ids))

    def replace(self, segment: Segment) -> None:
        """Replace documents by encoded ones of the same ids, which go to the end; a UserError for an unknown id."""
        self._write([*self._without(_distinct_ids(segment, "replace")), segment])

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
        groups: list[list[Segment]] = [[]]
        for segment in self.segments:
            if sum(int(part.lengths.sum()) for part in groups[-1]) >= segment_tokens:
                groups.append([])
            live = segment.live.nonzero().squeeze(1)
            groups[-1].append(segment if len(live) == len(segment) else segment.select(live))
        fresh = [parts[0] if len(parts) == 1 else Segment.join(parts) for parts in groups if parts]
        self._write([segment for segment in fresh if len(segment)])

    def _write(self, segments: list[Segment], **numbers: float) -> None:
        """Make segments the bank's, on disk first where it has a directory."""
        if self.directory is not None:
            manifest = Manifest.of(self.directory)
            known, entries = {entry["file"]: entry for entry in manifest.segments}, []
            for place, segment in enumerate(segments):
                if not segment.file:
                    path = self.directory / manifest.next_file(entries)
                    segment.save(path)
                    # from here on mapped, so that a bank larger than memory can be built
                    sha256 = file_digest(path)
                    segment = replace(Segment.open(path, len(segment.layers), sha256), live=segment.live)
                    sizes = {"chunks": int(segment.offsets[-1]), "tokens": int(segment.lengths.sum()), **numbers}
                    segments[place] = segment
                    known[segment.file] = {"file": segment.file, "sha256": sha256, "documents": len(segment), **sizes}
                entries.append(known[segment.file] | {"removed": (~segment.live).nonzero().squeeze(1).tolist()})
            manifest.model_copy(update={"segments": entries}).write(self.directory / MANIFEST)
            for file in known.keys() - {entry["file"] for entry in entries}:
                (self.directory / file).unlink(missing_ok=True)
        self.segments = segments

    @classmethod
    def create(cls, directory: Path, signature: Signature, corpus: str = "") -> Bank:
        """An empty bank on disk, or what an interrupted build left there; a UserError where another bank stands."""
        directory = Path(directory)
        if os.fsencode(directory) != str(directory).encode(errors="replace"):
            raise UserError(f"{str(directory)!a}: the path is not valid UTF-8, which segments need; name another")
        for left in directory.glob(".*.tmp"):  # of a writer that was killed
            left.unlink()
        if (directory / MANIFEST).exists():
            bank = cls.open(directory, signature)
            if bank.signature != signature or bank.corpus != corpus:
                where = directory / MANIFEST
                raise UserError(f"{where}: a bank of another corpus or precision; delete it or build elsewhere")
            return bank
        directory.mkdir(parents=True, exist_ok=True)
        Manifest(signature=signature, corpus=corpus, segments=[]).write(directory / MANIFEST)
        return cls(signature, [], directory, corpus)

    def verify(self) -> None:
        """Read every file that the bank is mapped from; a UserError names one that is not as it was written."""
        mapped = {segment.origin: segment for segment in self.segments if segment.origin is not None}
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(Segment.verify, mapped.values()))

    @classmethod
    def open(cls, directory: Path, signature: Signature | None = None, verify: bool = True) -> Bank:
        """Map a bank from disk.

        Args:
            signature: of the model that will use it.
            verify: read every segment once and hold it against its sha256 in the manifest. Who reads a shard alone
                verifies that.

        Raises:
            UserError: it is not whole, not as it was written, or does not fit the ``signature``.
        """
        directory = Path(directory)
        manifest = Manifest.of(directory)
        if signature is not None:
            manifest.signature.check(signature, str(directory / MANIFEST))
        segments = []
        for entry in manifest.segments:
            path, layers = directory / entry["file"], len(manifest.signature.routed_layers)
            segment = Segment.open(path, layers, entry["sha256"])
            if (len(segment), int(segment.offsets[-1])) != (entry["documents"], entry["chunks"]):
                raise UserError(f"{path}: not the segment that {MANIFEST} names; {MEND}")
            if entry["removed"]:
                segment.live[torch.tensor(entry["removed"])] = False
            segments.append(segment)
        bank = cls(manifest.signature, segments, directory, manifest.corpus)
        if verify:
            bank.verify()
        return bank


class Manifest(Record):
    """bank.json: what encoded the bank, and its segments with their removed places."""

    FORMAT: ClassVar[int] = 2
    MEND: ClassVar[str] = MEND

    signature: Signature
    corpus: str
    segments: list[dict[str, Any]]

    @classmethod
    def of(cls, directory: Path) -> Manifest:
        """The checked manifest of a directory."""
        path = directory / MANIFEST
        if not path.exists():
            raise UserError(f"{path}: {directory} holds no bank; make one with `python -m msa.memory.encode build`")
        return cls.read(path)

    def next_file(self, entries: list[dict]) -> str:
        """A file name that neither the manifest nor ``entries`` use."""
        used = [int(entry["file"].split("-")[1].split(".")[0]) for entry in [*self.segments, *entries]]
        return f"segment-{max(used, default=-1) + 1:05d}.safetensors"


def _distinct_ids(segment: Segment, purpose: str) -> list[int]:
    ids = segment.doc_ids.tolist()
    if len(set(ids)) < len(ids):
        twice = next(doc_id for doc_id, count in Counter(ids).items() if count > 1)
        raise UserError(f"document id {twice} occurs twice in the documents to {purpose}")
    return ids
