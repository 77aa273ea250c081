"""Encoding documents into a memory bank, in memory or segment by segment on disk (stage 1, paper section 3.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from configs.errors import UserError
from configs.records import Document
from msa import router
from msa.bank import Bank, Segment, Signature, StoredLayer, Texts
from msa.config import ModelConfig
from msa.keys import DTYPES, Keys
from msa.model import MSAModel
from msa.prompt import Prompter, pad_rows

CONTENT_DTYPES = ("float32", "bfloat16")
SEGMENT_TOKENS = 1 << 20


class Encoder:
    """Encodes documents with one model.

    Args:
        key_dtype, content_dtype: stored precisions of the routing keys and of the pooled K/V.
        batch_tokens: padded tokens encoded at once.
        directory: the model's checkpoint, whose digests sign the banks; None for banks that stay in memory.

    Raises:
        UserError: an unknown precision, or a model without routed layers.
    """

    def __init__(
        self, model: MSAModel, prompter: Prompter, key_dtype: str = "float32", content_dtype: str = "float32",
        batch_tokens: int = 2048, directory: Path | None = None,
    ):
        if key_dtype not in DTYPES or content_dtype not in CONTENT_DTYPES:
            raise UserError(
                f"bank precisions {key_dtype!r} and {content_dtype!r}: keys take {', '.join(DTYPES)}; content {', '.join(CONTENT_DTYPES)}"
            )
        if not model.config.routed_layers:
            raise UserError(f"{directory or 'the model'}: has no routed layers; encode with an MSA checkpoint")
        self.model, self.prompter, self.batch_tokens = model, prompter, batch_tokens
        self.key_dtype, self.content_dtype = key_dtype, content_dtype
        self.signature = signature_of(model.config, directory, key_dtype, content_dtype)

    @torch.no_grad()
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
        for places in _batches(lengths, self.batch_tokens):
            part = lengths[places]
            encoded = self.model.encode(pad_rows([wrapped[place] for place in places.tolist()], self.prompter.pad), part)
            columns = torch.arange(encoded[0].routing.shape[1])
            real = columns < counts[places].unsqueeze(1)
            target = (offsets[places].unsqueeze(1) + columns)[real]
            for keys, store, pooled in zip(routing, contents, encoded, strict=True):
                keys[target] = pooled.routing[real].float()
                store[target, 0], store[target, 1] = pooled.keys[real].to(content), pooled.values[real].to(content)
            if bar is not None:
                bar.update(int(part.sum()))
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
        window = self.model.config.window_tokens
        for document, tokens in zip(documents, wrapped, strict=True):
            if not document.text.strip():
                raise UserError(f"document {document.doc_id} has no text; give it some or leave it out")
            if window and len(tokens) > window:
                raise UserError(
                    f"document {document.doc_id} has {len(tokens):,} tokens, more than the model's window of {window:,}; split it"
                )


def signature_of(config: ModelConfig, directory: Path | None, key_dtype: str, content_dtype: str) -> Signature:
    """What a bank of this model can be used with."""
    digests = [_digest(directory, names) for names in (("model.safetensors", "config.json"), ("tokenizer.json",))]
    return Signature(*digests, config.pool_tokens, config.routed_layers, config.kv_heads, config.head_dim, key_dtype, content_dtype)


def _digest(directory: Path | None, names: tuple[str, ...]) -> str:
    if directory is None:
        return ""
    digest = hashlib.sha256()
    for name in names:
        with open(directory / name, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


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
