"""Correctness cases of every operation: odd shapes and poisoned memory, and the oracle that a result must equal.

Tests run them in triton's interpreter, `python -m msa.ops.check` on whatever device there is.

Shape legend: Q questions, M tokens of a question, T chunks, N documents, W = KV heads * head_dim, B rows, H query
heads, G KV heads, D head_dim, A own tokens, S memory slots, E template tokens, P tokens of a chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from msa.ops import cpu, dispatch, reference, tiles
from msa.ops.keys import DTYPES, Keys, round_queries, score_error
from msa.ops.route import Part, route

Case = Callable[[], None]
ROUTING = ((1, 1, 1, 64), (3, 17, 37, 48), (2, 40, 33, 64), (1, 5, 70, 192))  # Q, M, T, W
ROUTING_LARGE = (
    (1, 32, 5003, 1024), (8, 32, 3001, 1024), (64, 7, 1000, 1024), (5, 256, 2000, 1024), (3, 300, 1111, 512),
)  # fmt: skip
KEY_KINDS = (*DTYPES, "float16")
FLOATS = (torch.float32, torch.bfloat16)
POOLING, POOLING_LARGE = ((1, 3), (4, 7), (16, 5)), ((64, 2560),)  # P, features
TRAINING, TRAINING_LARGE = ((1, 1, 1, 16), (3, 7, 5, 20), (2, 33, 40, 80)), ((48, 40, 3000, 1024),)  # Q, M, T, W
ROUTES = (  # stored precision, that of a first pass
    ("bfloat16", None), ("bfloat16", "int8"), ("int8", None), ("float32", "int8"), ("float32", None), ("float8", None),
)  # fmt: skip
ATTENTION = (  # B, M, H, G, D, A, S, E
    (1, 1, 4, 2, 8, 9, 5, 0), (2, 5, 6, 1, 4, 5, 20, 3), (1, 1, 5, 5, 3, 40, 33, 0),
    (1, 19, 4, 2, 16, 19, 17, 2), (3, 1, 2, 1, 16, 1, 0, 0), (2, 3, 8, 2, 32, 11, 7, 4),
)  # fmt: skip
ATTENTION_LARGE = (
    (1, 1, 32, 8, 128, 777, 130, 0), (4, 1, 32, 8, 128, 90, 300, 5),
    (2, 333, 32, 8, 128, 333, 200, 5), (8, 40, 32, 8, 128, 99, 128, 0),
)  # fmt: skip


# relative to 1 + |expected|, by the dtype that products are taken in; sums are float32 throughout
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def require_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    """An AssertionError unless all is within the tolerance of ``dtype``; infinities must agree, NaN is never right."""
    allowed = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    torch.testing.assert_close(actual.double(), expected.double(), **allowed, msg=lambda said: f"{what}: {said}")


require_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, or an integer dtype's largest number, so that what a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def cases(device: torch.device) -> dict[str, Case]:
    """All cases that the device can run, by name."""
    implementations = ["cpu"] if device.type == "cpu" else []
    if dispatch.has_triton() and (device.type == "cuda" or dispatch.interpreted()):
        implementations.append("triton")
    large = device.type == "cuda"
    found: dict[str, Case] = {}
    for name in implementations:
        for shape in ROUTING + (ROUTING_LARGE if large else ()):
            for kind in KEY_KINDS:
                if name == "triton" and large and kind == "float8" and tiles.capability(device) < (8, 9):
                    continue  # the device has no such numbers
                found |= _routing_cases(device, name, shape, kind)
        for number, shape in enumerate(DOCUMENTS + (DOCUMENTS_LARGE if large else ())):
            found[f"top_documents {name} {number}"] = partial(top_documents, device, name, *shape)
        for shape in ATTENTION + (ATTENTION_LARGE if large else ATTENTION_LARGE[:2] if name == "cpu" else ()):
            for dtype, stored in itertools.product(FLOATS, (None, torch.int8)):
                stored = stored or dtype
                label = f"{_label(*shape)} {_label(dtype)} over {_label(stored)}"
                found[f"attend_pieces {name} {label}"] = partial(attend_pieces, device, name, shape, dtype, stored)
        for kinds in ROUTES:
            found[f"route {name} {kinds[0]} after {kinds[1]}"] = partial(exact_route, device, name, *kinds)
        for dtype in FLOATS if name == "triton" else ():
            for pool, features in POOLING + (POOLING_LARGE if large else ()):
                label = f"P={pool} F={features} {_label(dtype)}"
                found[f"pool_chunks {name} {label}"] = partial(pool_chunks, device, name, pool, features, dtype)
            for shape in TRAINING + (TRAINING_LARGE if large else ()):
                label = f"{_label(*shape)} {_label(dtype)}"
                found[f"training_scores {name} {label}"] = partial(training_scores, device, name, shape, dtype)
    return found


def _label(*of: int | torch.dtype) -> str:
    return "x".join(str(one).removeprefix("torch.") for one in of)


def _routing_cases(device: torch.device, name: str, shape: tuple[int, ...], kind: str) -> dict[str, Case]:
    """One case for each way in which an implementation can score such keys."""
    label = f"chunk_scores {name} {_label(*shape)} {kind}"
    ways = ("widened", "native") if kind in ("int8", "float8") else ("plain",)
    if name == "cpu":
        ways = cpu.variants(_stored(torch.zeros(1, shape[3]), kind).values)
    return {f"{label} {way}": partial(chunk_scores, device, name, shape, kind, way) for way in ways}


def _rng(device: torch.device, *seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(hash(seed) % 2**31)


def _stored(keys: Tensor, kind: str) -> Keys:
    """Keys [T, W] in one of KEY_KINDS, measured."""
    return Keys.store(keys, kind) if kind in DTYPES else Keys(keys.to(getattr(torch, kind))).measured()


def _behind_poison(x: Tensor) -> Tensor:
    """The same numbers as the front of a longer tensor whose rest must not be read."""
    longer = torch.empty(len(x) + 7, *x.shape[1:], dtype=x.dtype, device=x.device)
    longer.view(torch.int8).fill_(127)  # NaN in fp8 and float16, about the largest number in every other dtype
    if x.dtype.is_floating_point and x.dtype.itemsize > 1:
        longer.fill_(torch.nan)
    longer[: len(x)] = x
    return longer[: len(x)]


def _questions(device: torch.device, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Folded queries [Q, M, W], poisoned where no token routes, the mask, and unit keys [T, W]."""
    questions, tokens, chunks, width = shape
    rng = _rng(device, *shape)
    folded = torch.randn(questions, tokens, width, generator=rng, device=device) * (0.2 * width**-0.5)
    mask = torch.rand(questions, tokens, generator=rng, device=device) < 0.7
    mask[0, -1] = True
    if questions > 1:
        mask[1] = False
    keys = torch.nn.functional.normalize(torch.randn(chunks, width, generator=rng, device=device), dim=-1)
    return folded.masked_fill(~mask.unsqueeze(-1), torch.nan), mask, keys


def chunk_scores(device: torch.device, name: str, shape: tuple[int, ...], kind: str, way: str) -> None:
    """Scores equal those of the rounded queries in float64, and their error keeps within the proven bound."""
    folded, mask, unit = _questions(device, shape)
    stored = _stored(unit, kind)
    values = _behind_poison(stored.values)
    if name == "cpu":
        dtype = cpu.query_dtype(values, way)
        got, bound = cpu.scores_with_error(folded, mask, replace(stored, values=values), variant=way)
    else:
        from msa.ops import triton_routing

        native = way == "native"
        dtype = triton_routing.query_dtype(values, native)
        got = triton_routing.chunk_scores(folded, mask, values, stored.scale, native=native)
    clean = folded.masked_fill(~mask.unsqueeze(-1), 0.0)
    rounded, scales = round_queries(clean, dtype)
    meant = rounded.double() if scales is None else rounded.double() * scales.double().unsqueeze(-1)
    rounds = kind == "float32" and dtype == torch.bfloat16  # native code, on the way
    read = values.bfloat16() if rounds else values
    expected = reference.chunk_scores(meant, mask, read, stored.scale)
    # Hopper's matrix units sum fp8 products in about 14 bits
    coarse = way == "native" and kind == "float8" and device.type == "cuda"
    require_close(got, expected, torch.bfloat16 if coarse else torch.float32, "scores")
    if not coarse:
        true = reference.chunk_scores(clean.double(), mask, unit if kind in ("int8", "float8") else stored.values)
        off = (got - true).masked_fill(true == -torch.inf, 0.0).abs().amax(1)
        bound = bound if name == "cpu" else score_error(clean, mask, stored, dtype)
        if bool((off > bound).any()):
            raise AssertionError(f"scores are off by up to {off.tolist()}, the bound says {bound.tolist()}")


# Q, chunks of each document, k, whether documents are hidden
DOCUMENTS = (
    (1, [1], 1, False),
    (1, [1], 5, True),
    (2, [3, 1, 0, 4, 1, 1, 9, 2, 2, 1, 1, 5, 1, 3, 1, 2, 1], 4, False),
    (3, [3, 1, 0, 4, 1, 1, 9, 2, 2, 1, 1, 5, 1, 3, 1, 2, 1], 40, True),
    (2, [0, 0, 33, 0], 3, True),
    (2, [2] * 530, 3, True),
)
DOCUMENTS_LARGE = ((8, [7] * 40000, 16, False), (1, [1] * 300000, 64, True), (2, [20000, 1, 5000] * 5, 16, False))


def top_documents(device: torch.device, name: str, questions: int, counts: list[int], k: int, hides: bool) -> None:
    """Documents and scores are the oracle's exactly: many scores are equal, some are -inf, both zeros occur."""
    rng = _rng(device, questions, len(counts), k)
    offsets = _offsets(torch.tensor(counts, device=device))
    total, documents = int(offsets[-1]), len(counts)
    scores = torch.randint(-3, 4, (questions, total), generator=rng, device=device).float() / 3
    scores = torch.where((scores == 0) & (torch.rand(scores.shape, generator=rng, device=device) < 0.5), -0.0, scores)
    scores[torch.rand(scores.shape, generator=rng, device=device) < 0.1] = -torch.inf
    if questions > 1:
        scores[1] = -torch.inf
    ids = torch.randperm(documents, generator=rng, device=device) * 10**12
    visible = torch.rand(questions, documents, generator=rng, device=device) < 0.8 if hides else None
    expected = reference.top_documents(scores, offsets, ids, k, visible)
    got = dispatch.top_documents(scores, offsets, ids, k, visible, implementation=name)
    require_equal(got, expected)


def exact_route(device: torch.device, name: str, kind: str, first: str | None) -> None:
    """A rounded first pass over two parts chooses what float64 scores of all stored keys choose, with those scores."""
    questions, tokens, documents, width, k = 3, 19, 130, 128, 17
    counts = torch.arange(documents, device=device) % 4
    folded, mask, unit = _questions(device, (questions, tokens, int(counts.sum()), width))
    clean = folded.masked_fill(~mask.unsqueeze(-1), 0.0)
    keys = _stored(unit, kind)
    ids = torch.randperm(documents, generator=_rng(device, 5), device=device)
    visible = torch.rand(questions, documents, generator=_rng(device, 6), device=device) < 0.9
    parts, start = [], 0
    for own in (slice(0, 90), slice(90, documents)):
        offsets = _offsets(counts[own])
        some = keys[start : start + int(offsets[-1])]
        quick = None if first is None else _stored(some.exact(), first)
        parts.append(Part(some, offsets, ids[own], visible[:, own], quick))
        start += int(offsets[-1])
    found = route(folded, mask, parts, k, implementation=name)

    scores = reference.chunk_scores(clean.double(), mask, keys.exact()).float()
    true = reference.document_scores(scores, _offsets(counts))
    place, best = reference.top_documents(true, torch.arange(documents + 1, device=device), ids, k, visible)
    got = found.scores, found.place + 90 * (found.part == 1), found.doc_ids
    require_equal(got, (best, place, torch.where(place < 0, -1, ids[place])))


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))


def pool_chunks(device: torch.device, name: str, pool: int, features: int, dtype: torch.dtype) -> None:
    """Tails of every length and documents of none, forward and backward; padding is NaN and gets no gradient."""
    lengths = torch.arange(2 * pool + 2, device=device)
    length = int(lengths[-1]) + 3
    rng = _rng(device, pool, features)
    real = (torch.arange(length, device=device) < lengths.unsqueeze(1)).view(len(lengths), length, 1)
    x = torch.randn(len(lengths), length, features, generator=rng, device=device).to(dtype)
    given = x.masked_fill(~real, torch.nan).requires_grad_()
    plain = x.double().masked_fill(~real, 0.0).requires_grad_()
    got = dispatch.pool_chunks(given, lengths, pool, implementation=name)
    expected = reference.pool_chunks(plain, lengths, pool)
    require_close(got, expected, torch.float32, "means")
    grad = torch.randn(got.shape, generator=rng, device=device)
    (mine,) = torch.autograd.grad(got, given, grad)
    (theirs,) = torch.autograd.grad(expected, plain, grad.double())
    require_close(mine, theirs, dtype, "gradient")


def training_scores(device: torch.device, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Scores and both gradients, where many chunks have none and where tokens are equal."""
    folded, mask, keys = _questions(device, shape)
    folded = folded.nan_to_num(0.0)
    if shape[1] > 2:
        folded[0, 2] = folded[0, 1]  # of equal tokens the first takes the gradient
    folded, keys = folded.to(dtype), keys.to(dtype)
    mine = folded.clone().requires_grad_(), keys.clone().requires_grad_()
    theirs = folded.double().requires_grad_(), keys.double().requires_grad_()
    got = dispatch.training_scores(mine[0], mask, mine[1], implementation=name)
    expected = reference.chunk_scores(theirs[0], mask, theirs[1])
    require_close(got, expected, torch.float32, "scores")
    rng = _rng(device, *shape, 1)
    grad = torch.randn(got.shape, generator=rng, device=device)
    grad = grad * (torch.rand(got.shape, generator=rng, device=device) < 0.3)
    pairs = zip(torch.autograd.grad(got, mine, grad), torch.autograd.grad(expected, theirs, grad.double()), strict=True)
    for what, (one, other) in zip(("queries", "keys"), pairs, strict=True):
        require_close(one, other, dtype, f"gradient of the {what}")


def attend_pieces(
    device: torch.device, name: str, shape: tuple[int, ...], dtype: torch.dtype, stored: torch.dtype
) -> None:
    """Every piece where it lies: a cache poisoned behind its end, a bank poisoned where nobody chose."""
    rows, tokens, heads, groups, head_dim, own, slots, fixed = shape
    rng, total = _rng(device, *shape), 50

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, device=device)

    q = draw(rows, tokens, heads, head_dim).to(dtype)
    cache = torch.full((2, rows, own + 7, groups, head_dim), torch.nan, dtype=dtype, device=device)
    cache[:, :, :own] = draw(2, rows, own, groups, head_dim).to(dtype)
    valid = torch.rand(rows, own, generator=rng, device=device) < 0.8
    chunks = torch.randint(-1, total, (rows, slots), generator=rng, device=device)
    bank = draw(total, 2, groups, head_dim)
    optional = {"reads_memory": torch.rand(rows, tokens, generator=rng, device=device) < 0.7}
    if fixed:
        optional |= {f"template_{part}": draw(fixed, groups, head_dim).to(dtype) for part in ("keys", "values")}
    if stored == torch.int8:
        bank = (bank * 40).round().clamp(-127, 127).to(torch.int8)
        sizes = () if tokens == 1 else (total, groups)  # one scale for all, or one a row and KV head
        for part in ("key_scales", "value_scales"):
            optional[part] = torch.rand(sizes, generator=rng, device=device) / 40
    else:
        unread = torch.ones(total, dtype=torch.bool, device=device)
        unread[chunks[chunks >= 0]] = False
        bank = bank.masked_fill(unread.view(-1, 1, 1, 1), torch.nan).to(dtype)
    pieces = (q, cache[0, :, :own], cache[1, :, :own], valid, bank[:, 0], bank[:, 1], chunks)
    expected = reference.attend_pieces(*map(_double, pieces), **{key: _double(x) for key, x in optional.items()})
    got = dispatch.attend_pieces(*pieces, implementation=name, **optional)
    require_close(got, expected, dtype, "outputs")
    if name == "triton":
        from msa.ops import triton_attention

        again = triton_attention.attend_pieces(*pieces, splits=4, **optional)
        require_close(again, expected, dtype, "outputs of four shares")


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
