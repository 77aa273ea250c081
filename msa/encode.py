"""Encoding documents into a memory bank, in memory or segment by segment on disk (stage 1, paper section 3.2).

Build a bank, look at it, edit it. Documents come as a corpus.parquet or as JSON lines with ``doc_id`` and ``text``::

    python -m msa.encode build BANK --model MODEL --documents corpus.parquet --keys bfloat16 --content bfloat16
    python -m msa.encode add BANK --model MODEL --documents more.jsonl
    python -m msa.encode replace BANK --model MODEL --documents changed.jsonl
    python -m msa.encode remove BANK --ids 17,4
    python -m msa.encode compact BANK
    python -m msa.encode info BANK

A build that was interrupted goes on behind its last whole segment; an edit is made whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from configs.errors import UserError, run_command
from configs.records import Document
from configs.tables import read_corpus
from msa import checkpoint, router
from msa.bank import Bank, Segment, Signature, StoredLayer, Texts
from msa.config import ModelConfig
from msa.keys import DTYPES, Keys
from msa.model import MSAModel, PooledLayer
from msa.prompt import Prompter, pad_rows

CONTENT_DTYPES = ("float32", "bfloat16")
SEGMENT_TOKENS = 1 << 20


class Encoder:
    """Encodes documents with one model.

    Args:
        key_dtype, content_dtype: stored precisions of the routing keys and of the pooled K/V.
        batch_tokens: padded tokens encoded at once.
        precision: of the computation, "float32" or "bfloat16".
        directory: the model's checkpoint, whose digests sign the banks; None for banks that stay in memory.

    Raises:
        UserError: an unknown precision, or a model without routed layers.
    """

    def __init__(
        self, model: MSAModel, prompter: Prompter, key_dtype: str = "float32", content_dtype: str = "float32",
        batch_tokens: int = 2048, directory: Path | None = None, precision: str = "float32",
    ):
        if key_dtype not in DTYPES or content_dtype not in CONTENT_DTYPES:
            raise UserError(
                f"bank precisions {key_dtype!r} and {content_dtype!r}: keys take {', '.join(DTYPES)}; content {', '.join(CONTENT_DTYPES)}"
            )
        if not model.config.routed_layers:
            raise UserError(f"{directory or 'the model'}: has no routed layers; encode with an MSA checkpoint")
        if key_dtype == "float8" and not model.config.normalise_routing:
            raise UserError("bank precision 'float8' needs unit routing keys, which this model has not; use bfloat16 or int8")
        if precision not in CONTENT_DTYPES:
            raise UserError(f"encoding precision {precision!r} is unknown (known: {', '.join(CONTENT_DTYPES)})")
        self.model, self.prompter, self.batch_tokens, self.precision = model, prompter, batch_tokens, precision
        self.key_dtype, self.content_dtype = key_dtype, content_dtype
        self.signature = signature_of(model.config, directory, key_dtype, content_dtype, precision)

    @classmethod
    def of(cls, bank: Bank, model: MSAModel, prompter: Prompter) -> Encoder:
        """The encoder whose documents belong into a bank."""
        stored = bank.signature
        return cls(model, prompter, stored.key_dtype, stored.content_dtype, precision=stored.precision)

    def segment(self, documents: Sequence[Document], bar: tqdm | None = None) -> Segment:
        """Encode documents; order is kept.

        Raises:
            UserError: a document without text, or one longer than the model's window.
        """
        config = self.model.config
        wrapped = self.prompter.documents(documents)
        self._check(documents, wrapped)
        lengths = torch.tensor([len(tokens) for tokens in wrapped], dtype=torch.long)
        counts = router.chunk_counts(lengths, config.pool_tokens)
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        total, content = int(offsets[-1]), DTYPES[self.content_dtype]
        routing = [torch.empty(total, config.routing_width) for _ in config.routed_layers]
        contents = [torch.empty(total, 2, config.kv_heads, config.head_dim, dtype=content) for _ in config.routed_layers]

        @torch.no_grad()  # gradients and autocast are settings of a thread
        def encode(places: Tensor) -> int:
            ids, part = pad_rows([wrapped[place] for place in places.tolist()], self.prompter.pad), lengths[places]
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                encoded = self.model.encode(ids.to(self.model.device), part.to(self.model.device))
            encoded = [PooledLayer(*(tensor.cpu() for tensor in pooled.tensors())) for pooled in encoded]
            columns = torch.arange(encoded[0].routing.shape[1])
            real = columns < counts[places].unsqueeze(1)
            target = (offsets[places].unsqueeze(1) + columns)[real]
            for keys, store, pooled in zip(routing, contents, encoded, strict=True):
                keys[target] = pooled.routing[real].float()
                store[target, 0], store[target, 1] = pooled.keys[real].to(content), pooled.values[real].to(content)
            return int(part.sum())

        for tokens in _in_threads(encode, _batches(lengths, self.batch_tokens)):
            if bar is not None:
                bar.update(tokens)
        layers = [StoredLayer(Keys.store(keys, self.key_dtype), store) for keys, store in zip(routing, contents, strict=True)]
        ids = torch.tensor([document.doc_id for document in documents], dtype=torch.long)
        texts = Texts.of([document.text for document in documents])
        return Segment(ids, offsets, lengths, torch.ones(len(ids), dtype=torch.bool), layers, texts)

    def bank(self, documents: Sequence[Document]) -> Bank:
        """A bank in memory."""
        return Bank(self.signature, [self.segment(documents)] if len(documents) else [])

    def build(
        self, documents: Iterable[Document], directory: Path, corpus: str = "", total_tokens: int | None = None,
        segment_tokens: int = SEGMENT_TOKENS,
    ) -> Bank:
        """Encode a stream of documents into a bank on disk; what an interrupted build left is gone on with.

        Args:
            corpus: digest of the documents, kept in the manifest.
            total_tokens: for the progress bar.
            segment_tokens: documents' tokens of a segment, at least.

        Raises:
            UserError: another bank stands there, the documents are not those it began with, or one cannot be encoded.
        """
        bank = Bank.create(directory, self.signature, corpus)
        done = bank.doc_ids.tolist()
        stream = iter(documents)
        for doc_id in done:
            document = next(stream, None)
            if document is None or document.doc_id != doc_id:
                raise UserError(f"{directory}: the bank begun there is of other documents; delete it or build elsewhere")
        with tqdm(total=total_tokens, desc="encode", unit="token", unit_scale=True, mininterval=2) as bar:
            bar.update(sum(int(segment.lengths.sum()) for segment in bank.segments))
            bar.initial = bar.n  # the rate is of this run alone
            for part in _parts(stream, segment_tokens):
                started = perf_counter()
                segment = self.segment(part, bar)
                bank.add(segment, encode_s=round(perf_counter() - started, 3))
        return bank

    def _check(self, documents: Sequence[Document], wrapped: list[list[int]]) -> None:
        window = self.model.config.max_positions
        for document, tokens in zip(documents, wrapped, strict=True):
            if not document.text.strip():
                raise UserError(f"document {document.doc_id} has no text; give it some or leave it out")
            if window and len(tokens) > window:
                raise UserError(
                    f"document {document.doc_id} has {len(tokens):,} tokens, more than the model's window of {window:,}; split it"
                )


def signature_of(config: ModelConfig, source: Path | None, key_dtype: str, content_dtype: str, precision: str) -> Signature:
    """What a bank of this model can be used with; ``source`` is its checkpoint directory or GGUF file."""
    files: list[Path] = []
    if source is not None:
        files = [source] if source.is_file() else sorted([*source.glob("*.safetensors"), *source.glob("*.gguf"), source / "config.json"])
    tokenizer = [source / "tokenizer.json"] if source is not None and (source / "tokenizer.json").exists() else []
    return Signature(
        _digest(files), _digest(tokenizer), config.pool_tokens, config.routed_layers, config.kv_heads, config.head_dim,
        key_dtype, content_dtype, config.normalise_routing, precision,
    )


def _digest(files: list[Path]) -> str:
    """One digest of files, empty where there are none."""
    digest = hashlib.sha256()
    for file in files:
        if file.exists():
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest() if files else ""


def _in_threads(work: Callable[[Tensor], int], batches: Iterable[Tensor]) -> Iterator[int]:
    """Results of batches in order, one batch a thread: a small model's operations gain little from being split."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(work, batches)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, batches)
    torch.set_num_threads(threads)  # threads started from now on take the last setting


def _batches(lengths: Tensor, batch_tokens: int) -> Iterator[Tensor]:
    """Places of documents of like length, as many at once as fit; long documents alone."""
    order = lengths.argsort(stable=True)
    sizes, start = lengths[order].tolist(), 0
    while start < len(sizes):
        end = start + 1
        while end < len(sizes) and sizes[end] * (end - start + 1) <= batch_tokens:
            end += 1
        yield order[start:end]
        start = end


def _parts(documents: Iterator[Document], tokens: int) -> Iterator[list[Document]]:
    """Lists of documents with at least ``tokens`` tokens, but for the last."""
    part, size = [], 0
    for document in documents:
        part.append(document)
        size += document.num_tokens
        if size >= tokens:
            yield part
            part, size = [], 0
    if part:
        yield part


def read_documents(path: Path, prompter: Prompter) -> Sequence[Document]:
    """Documents of a corpus.parquet, or of JSON lines with ``doc_id`` and ``text``.

    Raises:
        UserError: the file is missing or broken; the message names the line.
    """
    if path.suffix == ".parquet":
        return read_corpus(path)
    documents = []
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON lines in UTF-8 ({error}); give a .parquet corpus or JSON lines") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            doc_id, text = row["doc_id"], row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: needs an object with 'doc_id' and 'text' ({error})") from None
        if not isinstance(doc_id, int) or doc_id < 0 or not isinstance(text, str):
            raise UserError(f"{path}, line {number}: 'doc_id' must be a whole number from 0 and 'text' a string")
        documents.append(Document(doc_id, text, 0))
    sizes = [len(tokens) for tokens in prompter.documents(documents)]
    return [replace(document, num_tokens=size) for document, size in zip(documents, sizes, strict=True)]


def main() -> None:
    """Build, inspect or edit a bank on disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "add", "replace", "remove", "compact", "info"))
    parser.add_argument("bank", type=Path, help="directory of the bank")
    parser.add_argument("--model", type=Path, help="checkpoint directory of the model that encodes (build, add, replace)")
    parser.add_argument("--documents", type=Path, help="corpus.parquet or JSON lines (build, add, replace)")
    parser.add_argument("--ids", default="", help="document ids, separated by commas (remove)")
    parser.add_argument("--keys", default="bfloat16", help=f"precision of routing keys: {', '.join(DTYPES)} (build; default: bfloat16)")
    parser.add_argument("--content", default="bfloat16", help=f"precision of content: {', '.join(CONTENT_DTYPES)} (build; default: bfloat16)")
    parser.add_argument("--precision", default="float32", choices=CONTENT_DTYPES, help="of the computation (build; default: float32)")
    parser.add_argument("--segment-tokens", type=int, default=SEGMENT_TOKENS, help=f"tokens of a segment (default: {SEGMENT_TOKENS:,})")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    chosen = parser.parse_args()
    if chosen.what in ("build", "add", "replace"):
        if chosen.model is None or chosen.documents is None:
            raise UserError(f"{chosen.what}: --model and --documents are missing; name the checkpoint and the documents to encode")
        _encode(chosen)
    else:
        bank = Bank.open(chosen.bank)
        if chosen.what == "remove":
            bank.remove(_ids(chosen.ids))
        elif chosen.what == "compact":
            bank.compact(chosen.segment_tokens)
    _describe(Bank.open(chosen.bank))


def _encode(chosen: argparse.Namespace) -> None:
    model, prompter = checkpoint.open_model(chosen.model, chosen.threads)
    documents = read_documents(chosen.documents, prompter)
    if chosen.what == "build":
        digest = hashlib.sha256(chosen.documents.read_bytes()).hexdigest()
        encoder = Encoder(model, prompter, chosen.keys, chosen.content, directory=chosen.model, precision=chosen.precision)
        total = sum(document.num_tokens for document in documents)
        encoder.build(documents, chosen.bank, digest, total, chosen.segment_tokens)
        return
    bank = Bank.open(chosen.bank, Encoder(model, prompter, directory=chosen.model).signature)
    (bank.add if chosen.what == "add" else bank.replace)(Encoder.of(bank, model, prompter).segment(documents))


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--ids {text!r}: give document ids as whole numbers separated by commas, such as 17,4") from None


def _describe(bank: Bank) -> None:
    signature = bank.signature
    removed = sum(int((~segment.live).sum()) for segment in bank.segments)
    tokens = sum(int(segment.lengths[segment.live].sum()) for segment in bank.segments)
    print(f"{bank.directory}: {len(bank):,} documents, {tokens:,} tokens, {len(bank.segments)} segments, {removed:,} removed documents")
    print(f"keys {signature.key_dtype}, content {signature.content_dtype}, {bank.nbytes:,} bytes, chunks of {signature.pool_tokens} tokens")
    print(f"layers {', '.join(map(str, signature.routed_layers))}; model {signature.model[:12] or 'unknown'}, tokenizer {signature.tokenizer[:12] or 'unknown'}")


if __name__ == "__main__":
    run_command(main)
