"""The oracles against the formulas written out token by token, and against the router they share a definition with."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from msa.model import router
from msa.ops import reference
from msa.ops.cases import require_close


def make(questions=2, tokens=5, heads=4, groups=2, head_dim=8, chunks=9):
    torch.manual_seed(0)
    queries, keys = torch.randn(questions, tokens, heads, head_dim), torch.randn(chunks, groups, head_dim)
    mask = torch.rand(questions, tokens) < 0.6
    mask[:, 0] = True
    return queries.double(), mask, keys.double()


def test_scores_are_the_best_mean_cosine_of_any_routing_token():
    queries, mask, keys = make()
    folded = router.fold_queries(queries, 2).double()
    got = reference.chunk_scores(folded, mask, router.normalise_keys(keys).double())
    for question in range(2):
        for chunk in range(9):
            cosines = [
                sum(float(F.cosine_similarity(queries[question, t, h], keys[chunk, h // 2], dim=0)) for h in range(4))
                / 4
                for t in range(5)
                if mask[question, t]
            ]
            assert math.isclose(float(got[question, chunk]), max(cosines), abs_tol=1e-6)


def test_the_eager_form_is_the_folded_one():
    queries, mask, keys = make()
    offsets = torch.tensor([0, 2, 2, 7, 9])
    folded = reference.chunk_scores(router.fold_queries(queries, 2), mask, router.normalise_keys(keys))
    # as the method is written: every query head against its KV head's keys, mean over heads, maximum over tokens
    heads = F.normalize(keys, dim=-1).repeat_interleave(2, 1).permute(1, 2, 0)
    cosines = (F.normalize(queries, dim=-1).transpose(1, 2) @ heads).mean(1)
    eager = reference.document_scores(cosines.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1), offsets)
    require_close(eager, reference.document_scores(folded, offsets), torch.float32, "document scores")


def test_float64_stays_float64():
    queries, mask, keys = make()
    assert (
        reference.chunk_scores(router.fold_queries(queries, 2).double(), mask, keys.flatten(1)).dtype == torch.float64
    )
    assert reference.pool_chunks(torch.ones(1, 3, dtype=torch.float64), torch.tensor([3]), 2).dtype == torch.float64


def test_scaled_keys_are_their_products():
    folded, mask, keys = (
        torch.randn(1, 3, 4),
        torch.ones(1, 3, dtype=torch.bool),
        torch.randint(-9, 9, (6, 4), dtype=torch.int8),
    )
    rows = torch.rand(6)
    for scales, meant in ((rows, keys * rows[:, None]), (rows[0], keys * rows[0]), (None, keys.float())):
        assert torch.equal(reference.chunk_scores(folded, mask, keys, scales), (folded[0] @ meant.T).amax(0)[None])


def test_a_question_without_tokens_scores_nothing():
    keys = torch.randn(4, 6)
    for tokens in (0, 3):
        got = reference.chunk_scores(torch.randn(2, tokens, 6), torch.zeros(2, tokens, dtype=torch.bool), keys)
        assert got.shape == (2, 4) and (got == -torch.inf).all()


def test_of_equal_tokens_the_first_takes_the_gradient():
    folded = torch.ones(1, 3, 2, requires_grad=True)
    reference.chunk_scores(folded, torch.tensor([[False, True, True]]), torch.ones(1, 2)).sum().backward()
    assert folded.grad[0].tolist() == [[0, 0], [1, 1], [0, 0]]


def brute(scores, offsets, ids, k, visible):
    """The best documents by sorting tuples."""
    rows = []
    for question, row in enumerate(scores.tolist()):
        found = []
        for number, (start, end) in enumerate(pairwise(offsets)):
            best = max(row[start:end], default=-math.inf)
            if best > -math.inf and visible[question][number]:
                found.append((-best, ids[number], number))
        rows.append([number for _, _, number in sorted(found)[:k]] + [-1] * (k - len(found)))
    return rows


@pytest.mark.parametrize("k", [1, 3, 17, 30])
def test_top_documents_are_those_of_a_sort(k):
    torch.manual_seed(k)
    counts = torch.randint(0, 4, (17,))
    offsets = [0, *counts.cumsum(0).tolist()]
    scores = torch.randint(0, 4, (3, offsets[-1])).float()
    scores[2, :5] = -torch.inf
    ids, visible = torch.randperm(17) * 10**15, torch.rand(3, 17) < 0.7
    documents, values = reference.top_documents(scores, torch.tensor(offsets), ids, k, visible)
    assert documents.tolist() == brute(scores, offsets, ids.tolist(), k, visible.tolist())
    assert ((values == -torch.inf) == (documents == -1)).all() and documents.shape == (3, k)


@pytest.mark.parametrize("pool", [1, 3, 4])
def test_pooling_takes_the_mean_of_real_tokens(pool):
    lengths = torch.arange(0, 10)
    x = torch.randn(10, 9, 2, 3)
    got = reference.pool_chunks(x, lengths, pool)
    assert got.shape == (10, -(-9 // pool), 2, 3)
    for number, length in enumerate(lengths.tolist()):
        parts = x[number, :length].split(pool) if length else ()
        for chunk, part in enumerate(parts):
            assert torch.allclose(got[number, chunk], part.mean(0), atol=1e-6)
        assert not got[number, len(parts) :].any()


def test_attention_sees_what_each_query_may_see():
    torch.manual_seed(0)
    rows, tokens, heads, groups, head_dim, own = 2, 3, 4, 2, 8, 5
    q, keys, values = torch.randn(rows, tokens, heads, head_dim), *torch.randn(2, rows, own, groups, head_dim)
    bank, template = torch.randn(2, 6, groups, head_dim), torch.randn(2, 2, groups, head_dim)
    valid = torch.tensor([[True, False, True, True, True], [True, True, True, False, True]])
    chunks, reads = torch.tensor([[4, -1, 0], [5, 5, -1]]), torch.tensor([[True, False, True], [True, True, True]])
    got = reference.attend_pieces(
        q,
        keys,
        values,
        valid,
        bank[0],
        bank[1],
        chunks,
        reads_memory=reads,
        template_keys=template[0],
        template_values=template[1],
    )
    for row in range(rows):
        for token in range(tokens):
            for head in range(heads):
                at, group = own - tokens + token, head // 2
                pieces = [(template[0, e, group], template[1, e, group]) for e in range(2)]
                pieces += [
                    (bank[0, c, group], bank[1, c, group]) for c in chunks[row].tolist() if c >= 0 and reads[row, token]
                ]
                seen = [j for j in range(at + 1) if valid[row, j] or j == at]
                pieces += [(keys[row, j, group], values[row, j, group]) for j in seen]
                logits = torch.stack([k @ q[row, token, head] for k, _ in pieces]) / head_dim**0.5
                expected = logits.softmax(0) @ torch.stack([v for _, v in pieces])
                assert torch.allclose(got[row, token, head], expected, atol=1e-5)
