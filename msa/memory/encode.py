"""Encoding documents into a memory bank, in memory or segment by segment on disk (stage 1, paper section 3.2).

Build a bank, look at it, edit it. Documents come as a corpus.parquet or as JSON lines with ``doc_id`` and ``text``::

    python -m msa.memory.encode build BANK --model MODEL --documents corpus.parquet --keys bfloat16 --content bfloat16
    python -m msa.memory.encode add BANK --model MODEL --documents more.jsonl
    python -m msa.memory.encode replace BANK --model MODEL --documents changed.jsonl
    python -m msa.memory.encode remove BANK --ids 17,4
    python -m msa.memory.encode compact BANK
    python -m msa.memory.encode info BANK

A build that was interrupted goes on behind its last whole segment; an edit is made whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from msa.checkpoints import read
from msa.memory.bank import Bank, Signature
from msa.memory.segment import Segment, StoredLayer, Texts
from msa.model import router
from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel, PooledLayer
from msa.model.prompt import Prompter, pad_rows
from msa.ops.finite import finite
from msa.ops.keys import DTYPES, Keys
from msa.ops.precision import PRECISIONS, autocast, choose
from msa_base.blank import is_blank
from msa_base.documents import MAX_ID
from msa_base.documents import read_documents as documents_of
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, add_threads, given_path
from msa_base.records import Document
from msa_base.seal import file_digest

CONTENT_DTYPES = ("float32", "bfloat16")
SEGMENT_TOKENS = 1 << 20
LONGEST = 1 << 14  # tokens of a document where config.json says no window: attention is quadratic in them


class Encoder:
    """Encodes documents with one model.

    Args:
        key_dtype, content_dtype: stored precisions of the routing keys and of the pooled K/V.
        batch_tokens: padded tokens encoded at once.
        precision: of the products, one of :data:`msa.ops.precision.PRECISIONS`; the bank records what ``auto`` became.
        directory: the model's checkpoint, whose digests sign the banks; None for banks that stay in memory.

    Raises:
        UserError: an unknown precision, or a model without routed layers.
    """

    def __init__(
        self,
        model: MSAModel,
        prompter: Prompter,
        key_dtype: str = "float32",
        content_dtype: str = "float32",
        batch_tokens: int = 1024,
        directory: Path | None = None,
        precision: str = "auto",
    ):
        if key_dtype not in DTYPES or content_dtype not in CONTENT_DTYPES:
            known = f"keys take {', '.join(DTYPES)}; content {', '.join(CONTENT_DTYPES)}"
            raise UserError(f"bank precisions {key_dtype!r} and {content_dtype!r}: {known}")
        if not model.config.routed_layers:
            raise UserError(f"{directory or 'the model'}: has no routed layers; encode with an MSA checkpoint")
        if key_dtype == "float8" and not model.config.normalise_routing:
            raise UserError("bank precision 'float8' needs unit routing keys, which this model lacks; use bfloat16")
        self.model, self.prompter, self.batch_tokens = model, prompter, batch_tokens
        self.precision = choose("encoding", precision, model.device)
        self.key_dtype, self.content_dtype = key_dtype, content_dtype
        self.signature = signature_of(model.config, directory, key_dtype, content_dtype, self.precision)

    @classmethod
    def of(cls, bank: Bank, model: MSAModel, prompter: Prompter) -> Encoder:
        """The encoder whose documents belong into a bank."""
        stored = bank.signature
        return cls(model, prompter, stored.key_dtype, stored.content_dtype, precision=stored.precision)

    def segment(self, documents: Sequence[Document], bar: tqdm | None = None) -> Segment:
        """Encode documents in order; a UserError for one without text or longer than the model's window."""
        config = self.model.config
        wrapped = self.prompter.documents(documents)
        self._check(documents, wrapped)
        lengths = torch.tensor([len(tokens) for tokens in wrapped], dtype=torch.long)
        counts = router.chunk_counts(lengths, config.pool_tokens)
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        total, content = int(offsets[-1]), DTYPES[self.content_dtype]
        routing = [torch.empty(total, config.routing_width) for _ in config.routed_layers]
        shape = total, 2, config.kv_heads, config.head_dim
        contents = [torch.empty(shape, dtype=content) for _ in config.routed_layers]

        @torch.no_grad()  # gradients and autocast are settings of a thread
        def encode(places: Tensor) -> int:
            ids, part = pad_rows([wrapped[place] for place in places.tolist()], self.prompter.pad), lengths[places]
            with autocast(self.precision, self.model.device):
                encoded = self.model.encode(ids.to(self.model.device), part.to(self.model.device))
            encoded = [PooledLayer(*(tensor.cpu() for tensor in pooled)) for pooled in encoded]
            columns = torch.arange(encoded[0].routing.shape[1])
            real = columns < counts[places].unsqueeze(1)
            target = (offsets[places].unsqueeze(1) + columns)[real]
            for keys, store, pooled in zip(routing, contents, encoded, strict=True):
                for values in (pooled.routing[real], pooled.keys[real], pooled.values[real]):
                    finite(values, "pooled keys and values")
                keys[target] = pooled.routing[real].float()
                store[target, 0], store[target, 1] = pooled.keys[real].to(content), pooled.values[real].to(content)
            return int(part.sum())

        for tokens in _in_threads(encode, batches(lengths, self.batch_tokens)):
            if bar is not None:
                bar.update(tokens)
        stored = [Keys.store(keys, self.key_dtype) for keys in routing]
        layers = [StoredLayer(*pair) for pair in zip(stored, contents, strict=True)]
        ids = torch.tensor([document.doc_id for document in documents], dtype=torch.long)
        texts = Texts.of([document.text for document in documents])
        return Segment(ids, offsets, lengths, torch.ones(len(ids), dtype=torch.bool), layers, texts)

    def bank(self, documents: Sequence[Document]) -> Bank:
        return Bank(self.signature, [self.segment(documents)] if len(documents) else [])

    def build(
        self,
        documents: Iterable[Document],
        directory: Path,
        corpus: str = "",
        total_tokens: int | None = None,
        segment_tokens: int = SEGMENT_TOKENS,
    ) -> Bank:
        """Encode a stream of documents into a bank on disk; an interrupted build is continued.

        ``corpus`` is the documents' digest; ``total_tokens`` are for the progress bar, ``segment_tokens`` a segment's
        fewest.

        Raises:
            UserError: another bank stands there, the documents are not those it began with, or one cannot be encoded.
        """
        bank, stream = Bank.create(directory, self.signature, corpus), iter(documents)
        done = bank.doc_ids.tolist()
        if [document.doc_id for document in islice(stream, len(done))] != done:
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
        window = self.model.config.max_positions or LONGEST
        for document, tokens in zip(documents, wrapped, strict=True):
            if is_blank(document.text):
                raise UserError(f"document {document.doc_id} has no text; give it some or leave it out")
            if len(tokens) > window:
                size = f"{len(tokens):,} tokens, more than the model's window of {window:,}"
                raise UserError(f"document {document.doc_id} has {size}; split it")


def signature_of(
    config: ModelConfig, source: Path | None, key_dtype: str, content_dtype: str, precision: str
) -> Signature:
    """The signature of this model's banks; ``source`` is its checkpoint directory or GGUF file."""
    if source is None:
        model, tokenizer = "", ""
    else:
        weights = [*source.glob("*.safetensors"), *source.glob("*.gguf"), source / "config.json"]
        model = _digest([source] if source.is_file() else sorted(weights))
        tokenizer = _digest([file for file in [source / "tokenizer.json"] if file.exists()])
    shape = config.pool_tokens, config.routed_layers, config.kv_heads, config.head_dim
    heads = config.form.key_heads or 0
    return Signature(model, tokenizer, *shape, key_dtype, content_dtype, config.normalise_routing, precision, heads)


def _digest(files: list[Path]) -> str:
    """One digest of files, empty where there are none."""
    digest = hashlib.sha256()
    for file in files:
        if file.exists():
            digest.update(bytes.fromhex(file_digest(file)))
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


def batches(lengths: Tensor, batch_tokens: int) -> Iterator[Tensor]:
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
    """The documents of a file (msa_base.documents), with their tokens counted where it does not say them."""
    documents = documents_of(path)
    if path.suffix == ".parquet":
        return documents
    sizes = [len(tokens) for tokens in prompter.documents(documents)]
    return [replace(document, num_tokens=size) for document, size in zip(documents, sizes, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "add", "replace", "remove", "compact", "info"))
    parser.add_argument("bank", type=given_path, help="directory of the bank")
    parser.add_argument("--model", type=given_path, help="checkpoint of the model that encodes (build, add, replace)")
    parser.add_argument("--documents", type=given_path, help="corpus.parquet or JSON lines (build, add, replace)")
    parser.add_argument("--ids", default="", help="document ids, separated by commas (remove)")
    for part, said, known in (("keys", "routing keys", DTYPES), ("content", "content", CONTENT_DTYPES)):
        told = f"precision of {said}: {', '.join(known)} (build; default: bfloat16)"
        parser.add_argument(f"--{part}", default="bfloat16", help=told)
    told = "of products (build; default: auto, the fastest here)"
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help=told)
    add_number(parser, "--segment-tokens", SEGMENT_TOKENS, f"tokens of a segment (default: {SEGMENT_TOKENS:,})")
    add_threads(parser, 0, "CPU threads (default: 0, torch's choice)", least=0)
    chosen = parser.parse_args()
    if chosen.what in ("build", "add", "replace"):
        if chosen.model is None or chosen.documents is None:
            raise UserError(f"{chosen.what}: --model and --documents are missing; name both to encode")
        _encode(chosen)
    else:
        ids = _ids(chosen.ids) if chosen.what == "remove" else []
        bank = Bank.open(chosen.bank)
        if chosen.what == "remove":
            bank.remove(ids)
        elif chosen.what == "compact":
            bank.compact(chosen.segment_tokens)
    _describe(Bank.open(chosen.bank))


def _encode(chosen: argparse.Namespace) -> None:
    model, prompter = read.open_model(chosen.model, chosen.threads)
    documents = read_documents(chosen.documents, prompter)
    if chosen.what == "build":
        more = {"directory": chosen.model, "precision": chosen.precision}
        encoder = Encoder(model, prompter, chosen.keys, chosen.content, **more)
        total = sum(document.num_tokens for document in documents)
        encoder.build(documents, chosen.bank, file_digest(chosen.documents), total, chosen.segment_tokens)
        return
    bank = Bank.open(chosen.bank, Encoder(model, prompter, directory=chosen.model).signature)
    (bank.add if chosen.what == "add" else bank.replace)(Encoder.of(bank, model, prompter).segment(documents))


def _ids(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part.strip()) < 20 and int(part) <= MAX_ID for part in parts):
        raise UserError(f"--ids {text[:60]!r}: give whole numbers from 0 separated by commas, such as 17,4")
    return [int(part) for part in parts]


def _describe(bank: Bank) -> None:
    signature = bank.signature
    removed = sum(int((~segment.live).sum()) for segment in bank.segments)
    tokens = sum(int(segment.lengths[segment.live].sum()) for segment in bank.segments)
    sizes = f"{tokens:,} tokens, {len(bank.segments)} segments, {removed:,} removed documents"
    print(f"{bank.directory}: {len(bank):,} documents, {sizes}")
    stored = f"keys {signature.key_dtype}, content {signature.content_dtype}, {bank.nbytes:,} bytes"
    print(f"{stored}, chunks of {signature.pool_tokens} tokens")
    model, tokenizer = (digest[:12] or "unknown" for digest in (signature.model, signature.tokenizer))
    print(f"layers {', '.join(map(str, signature.routed_layers))}; model {model}, tokenizer {tokenizer}")


if __name__ == "__main__":
    run_command(main)
