"""Every way to route one layer that is compared: per-head as released, folded, compiled, FAISS, and this project's own.

Each gives the k best documents of every question as positions in the bank [Q, k]; all read the same keys.

Shape legend: Q questions, M tokens of a question, T chunks, N documents, H query heads, G KV heads, D head_dim,
W = G * D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from msa.model import router
from msa.ops import cpu, dispatch, reference
from msa.ops.keys import Keys
from msa.ops.reference import document_order
from msa.ops.route import Part, route

HEADS, GROUPS, HEAD_DIM, K = 32, 8, 128, 16  # of the paper's model
CHUNKS_A_DOCUMENT = 4
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Peer = Callable[[], Tensor]


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
    import faiss

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


def ours(task: Task, dtype: str, first: str | None = None) -> Peer:
    """(e) This project's routing, exact for the stored keys; ``first``: precision of a first pass beside them."""
    kept = task.stored(dtype)
    part = task.part(kept, Keys.store(kept.exact(), first) if first else None)
    query, mask = task.folded, task.mask
    return lambda: route(query, mask, [part], K).place


def first_pass(task: Task, dtype: str) -> Peer:
    """(e) without its exact scores: rounded as the other peers are, and no more."""
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
