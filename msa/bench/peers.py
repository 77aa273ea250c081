"""Every way to route one layer that is compared: per head as released, folded, libraries, and this project's own.

Each gives the k best documents of every question as positions in the bank [Q, k]; all read the same keys.

Shape legend: Q questions, M tokens of a question, T chunks, N documents, H query heads, G KV heads, D head_dim,
W = G * D.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msa.model import router
from msa.ops import cpu, dispatch, reference
from msa.ops.keys import Keys
from msa.ops.precision import may_use
from msa.ops.reference import document_order
from msa.ops.route import Part, route

HEADS, GROUPS, HEAD_DIM, K = 32, 8, 128, 16  # of the paper's model
CHUNKS_A_DOCUMENT = 4
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Peer = Callable[[], Tensor]
MAXSIM_CALLS = 256  # one a token: more of them take minutes
# NumKong's families of instructions, and oneDNN's name for what they need
NUMKONG = {
    "alder": "AVX2_VNNI", "sierra": "AVX2_VNNI_2", "skylake": "AVX512_CORE", "icelake": "AVX512_CORE_VNNI",
    "genoa": "AVX512_CORE_BF16", "turin": "AVX512_CORE_BF16", "sapphire": "AVX512_CORE_FP16",
    "sapphireamx": "AVX512_CORE_AMX", "graniteamx": "AVX512_CORE_AMX", "diamond": "AVX512_CORE_AMX",
}  # fmt: skip


class NotMeasured(Exception):
    """A peer cannot take part here; the message says why."""


def library(name: str) -> Any:
    """A library that is raced; NotMeasured where it cannot be imported."""
    try:
        return import_module(name)
    except ImportError as error:
        raise NotMeasured(f"{error}; pip install -e '.[suite,peers]'") from None


@dataclass(frozen=True, eq=False)
class Task:
    """One layer's routing: ``queries`` [Q, M, H, D] of the model's heads, unit ``keys`` [T, W], ``offsets`` [N + 1]."""

    queries: Tensor
    keys: Tensor
    offsets: Tensor

    @classmethod
    def random(cls, chunks: int, questions: int, tokens: int, device: torch.device) -> Task:
        """Random heads; documents of four chunks."""
        rng = torch.Generator(device).manual_seed(0)
        queries = torch.randn(questions, tokens, HEADS, HEAD_DIM, generator=rng, device=device)
        keys = router.normalise_keys(torch.randn(chunks, GROUPS, HEAD_DIM, generator=rng, device=device))
        offsets = torch.arange(0, chunks + CHUNKS_A_DOCUMENT, CHUNKS_A_DOCUMENT, device=device).clamp(max=chunks)
        return cls(queries, keys, offsets.unique())

    @cached_property
    def folded(self) -> Tensor:
        """Folded queries [Q, M, W]."""
        return router.fold_queries(self.queries, GROUPS)

    @cached_property
    def mask(self) -> Tensor:
        """Every token takes part in routing [Q, M]."""
        return torch.ones(self.folded.shape[:2], dtype=torch.bool, device=self.keys.device)

    def part(self, kept: Keys, first_pass: Keys | None = None) -> Part:
        """The bank as routing takes it; its order is made once, as the engine does where a GPU wants it."""
        ids = torch.arange(len(self.offsets) - 1, device=self.keys.device)
        order = document_order(ids) if ids.device.type == "cuda" else None
        return Part(kept, self.offsets, ids, None, first_pass, order)

    @cache  # noqa: B019 - a task lives as long as its process
    def stored(self, dtype: str) -> Keys:
        """The keys in a stored precision, the same tensors for every peer."""
        return Keys.store(self.keys, dtype)


def best_documents(chunk_scores: Tensor, offsets: Tensor) -> Tensor:
    """Scatter-max and topk of scores [Q, T], as every peer in torch ends."""
    documents = reference.document_scores(chunk_scores, offsets)
    return documents.topk(min(K, documents.shape[1]), dim=1).indices


def eager(task: Task, dtype: str) -> Peer:
    """(a) The released code's form: each query head against its KV head's keys, mean over heads, best of tokens."""
    unit = F.normalize(task.queries, dim=-1).to(TORCH[dtype])
    stored = task.stored(dtype).values

    def run() -> Tensor:
        keys = stored.view(-1, GROUPS, HEAD_DIM).repeat_interleave(HEADS // GROUPS, 1).permute(1, 2, 0)
        scores = [torch.matmul(one.transpose(0, 1), keys).mean(0).amax(0) for one in unit]
        return best_documents(torch.stack(scores).float(), task.offsets)

    return run


def folded_scores(queries: Tensor, questions: int, keys: Tensor) -> Tensor:
    """Chunk scores [Q, T] of flattened folded queries [Q * M, W]."""
    return (queries @ keys.T).view(questions, -1, len(keys)).amax(1)


def int8_scores(queries: Tensor, query_scale: Tensor, questions: int, keys: Tensor, scale: Tensor) -> Tensor:
    """The same of int8 rows and their scales."""
    products = torch._int_mm(queries, keys.T) * query_scale.unsqueeze(1)
    return products.view(questions, -1, len(keys)).amax(1) * scale


def folded(task: Task, dtype: str, compiled: bool = False) -> Peer:
    """(b) Heads folded, plain torch; (c) the same under torch.compile."""
    if compiled:
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # one kernel: a pool of compilers takes longer to start
        if not may_use("AVX512_CORE"):
            torch._inductor.config.cpp.simdlen = 256  # where ATen is held to AVX2, loops of 512 bits write wrong values
    queries, questions = task.folded.flatten(0, 1), len(task.queries)
    if dtype == "int8":
        rows, kept = Keys.store(queries, dtype), task.stored(dtype)
        score = torch.compile(int8_scores, dynamic=False) if compiled else int8_scores
        return lambda: best_documents(score(rows.values, rows.scale, questions, kept.values, kept.scale), task.offsets)
    rows, keys = queries.to(TORCH[dtype]), task.stored(dtype).values
    score = torch.compile(folded_scores, dynamic=False) if compiled else folded_scores
    return lambda: best_documents(score(rows, questions, keys).float(), task.offsets)


def faiss_flat(task: Task, threads: int) -> Peer:
    """(d) FAISS flat inner product, float32, k raised until 16 distinct documents are certain, merged over tokens."""
    faiss = library("faiss")
    faiss.omp_set_num_threads(threads)
    faiss.cvar.distance_compute_blas_threshold = 20  # BLAS from 20 queries on; fewer are faster one by one
    index = faiss.IndexFlatIP(task.keys.shape[1])
    index.add(task.keys.numpy())
    owner = torch.repeat_interleave(torch.arange(len(task.offsets) - 1), task.offsets.diff())
    queries = task.folded.flatten(0, 1).numpy()
    # each token's 16 best documents hold the question's best; a document has four chunks at most
    wanted = min(len(task.keys), (K - 1) * int(task.offsets.diff().max()) + 1)

    def run() -> Tensor:
        scores, places = (torch.from_numpy(found) for found in index.search(queries, wanted))
        scores, documents = scores.view(len(task.queries), -1), owner[places].view(len(task.queries), -1)
        best = torch.full((len(task.queries), len(task.offsets) - 1), -torch.inf)
        return best.scatter_reduce_(1, documents, scores, "amax").topk(min(K, best.shape[1]), dim=1).indices

    return run


def numkong(task: Task, threads: int, dtype: str) -> Peer:
    """(e) NumKong's products of packed questions, keys as they lie, a range of them a thread; maxima in torch."""
    numkong = library("numkong")
    for family, level in NUMKONG.items():
        if not may_use(level):
            numkong.disable_capability(family)
    rows, kept = Keys.store(task.folded.flatten(0, 1), dtype), task.stored(dtype)
    packed, keys = (numkong.from_dlpack(stored.values) for stored in (rows, kept))
    packed = numkong.dots_pack(packed)
    wide = {"float32": "float64", "bfloat16": "float32", "int8": "int32"}[dtype]
    out = numkong.zeros((len(task.keys), len(rows.values)), dtype=wide)
    products = torch.from_numpy(np.asarray(out))  # the same memory
    ends = torch.linspace(0, len(task.keys), threads + 1).long().tolist()
    pool = ThreadPoolExecutor(threads)

    def multiply(start: int, end: int) -> None:
        numkong.dots_packed(keys, packed, out=out, start_row=start, end_row=end)

    def run() -> Tensor:
        list(pool.map(multiply, ends[:-1], ends[1:]))
        scores = products if rows.scale is None else products * rows.scale
        scores = scores.view(len(task.keys), len(task.queries), -1).amax(2).float().T
        return best_documents(scores if kept.scale is None else scores * kept.scale, task.offsets)

    return run


def maxsim_cpu(task: Task) -> Peer:
    """(f) maxsim-cpu, float32. It sums over a question's tokens where routing takes a maximum: asked once a token."""
    scores = library("maxsim_cpu").maxsim_scores
    tokens = task.folded.flatten(0, 1)
    if len(tokens) > MAXSIM_CALLS:
        raise NotMeasured(f"one call a token would be {len(tokens):,} calls")
    starts, lengths = task.offsets[:-1, None], task.offsets.diff()[:, None]
    chunks = torch.arange(int(lengths.max())).minimum(lengths - 1)  # a shorter document repeats its last chunk
    documents, rows = task.keys[starts + chunks].numpy(), tokens.numpy()

    def run() -> Tensor:
        found = torch.from_numpy(np.stack([scores(rows[i : i + 1], documents) for i in range(len(rows))]))
        best = found.view(len(task.queries), -1, len(documents)).amax(1)
        return best.topk(min(K, len(documents)), dim=1).indices

    return run


def ours(task: Task, dtype: str, first: str | None = None) -> Peer:
    """(g) This project's routing, exact for the stored keys; ``first``: precision of a first pass beside them."""
    kept = task.stored(dtype)
    part = task.part(kept, Keys.store(kept.exact(), first) if first else None)
    query, mask = task.folded, task.mask
    return lambda: route(query, mask, [part], K).place


def first_pass(task: Task, dtype: str) -> Peer:
    """(g) without its exact scores: rounded as the other peers are, and no more."""
    kept, query, mask = task.stored(dtype), task.folded, task.mask
    part = task.part(kept)

    def run() -> Tensor:
        scores, _ = dispatch.scores_with_error(query, mask, kept)
        return dispatch.top_documents(scores, task.offsets, part.doc_ids, K, order=part.order)[0]

    return run


def ways(task: Task, threads: int, only: str = "") -> dict[tuple[str, str], Callable[[], Peer]]:
    """Every peer and dtype by name, made when called."""
    cuda = task.keys.device.type == "cuda"
    found: dict[tuple[str, str], Callable[[], Peer]] = {}
    for dtype in TORCH:
        found["eager", dtype] = partial(eager, task, dtype)
    for dtype in (*TORCH, "int8"):
        if dtype == "int8" and cuda and task.folded[..., 0].numel() <= 16:
            continue  # the library's int8 product wants more rows
        found["folded", dtype] = partial(folded, task, dtype)
        found["compiled", dtype] = partial(folded, task, dtype, compiled=True)
    if not cuda:
        found["faiss", "float32"] = partial(faiss_flat, task, threads)
        found |= {("numkong", dtype): partial(numkong, task, threads, dtype) for dtype in (*TORCH, "int8")}
        found["maxsim_cpu", "float32"] = partial(maxsim_cpu, task)
    for dtype in (*TORCH, "int8", *(("float8",) if cuda else ())):
        found["ours", dtype] = partial(ours, task, dtype)
        found["first_pass", dtype] = partial(first_pass, task, dtype)
    found["ours", "int8, then bfloat16"] = partial(ours, task, "bfloat16", "int8")
    return {name: make for name, make in found.items() if only in " ".join(name)}


def exact_documents(folded: Tensor, mask: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
    """Float64 scores of all documents [Q, N]; keys become float64 a few at a time."""
    scores = [reference.chunk_scores(folded.double(), mask, part) for part in keys.split(4096)]
    return reference.document_scores(torch.cat(scores, 1), offsets)


def shortfall(documents: Tensor, chosen: Tensor) -> float:
    """How far the worst of k chosen documents [Q, k] scores below the k-th best one of all [Q, N]; the largest."""
    best = documents.topk(chosen.shape[1]).values[:, -1]
    return float((best - documents.gather(1, chosen.to(documents.device)).amin(1)).max())


def deficit(task: Task, chosen: Tensor, questions: int) -> float:
    """The :func:`shortfall` of some questions, one after another: their scores are many."""
    ones = [slice(number, number + 1) for number in range(min(questions, len(chosen)))]
    exact = (exact_documents(task.folded[one], task.mask[one], task.keys, task.offsets) for one in ones)
    return max(shortfall(documents, chosen[one]) for documents, one in zip(exact, ones, strict=True))


def own_rate(dtype: str) -> Callable[[], None] | None:
    """This project's inner loop on keys that stay in the cache; None where torch's products do the work anyway."""
    keys = Keys.store(torch.randn(512, GROUPS * HEAD_DIM), dtype)
    if cpu.variants(keys.values)[0] == "tiles":
        return None
    query, mask = torch.randn(1, 512, GROUPS * HEAD_DIM), torch.ones(1, 512, dtype=torch.bool)
    return lambda: [cpu.scores_with_error(query, mask, keys) for _ in range(8)]
