"""Routing, pooling and losses against the paper's formulas written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from msa.model import router
from msa.model.losses import auxiliary_loss
from msa.ops import reference
from msa.ops.norm import rms_norm


@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 2, 8), (6, 1, 4), (5, 5, 3)])
def test_folded_scores_are_the_mean_of_the_heads_cosines(heads, groups, width):
    torch.manual_seed(0)
    queries, keys = torch.randn(3, 7, heads, width), torch.randn(11, groups, width)
    folded = router.fold_queries(queries, groups) @ router.normalise_keys(keys).T
    shared = keys.repeat_interleave(heads // groups, 1)
    cosines = F.cosine_similarity(queries.unsqueeze(2), shared.view(1, 1, 11, heads, width), dim=-1)
    assert torch.allclose(folded, cosines.mean(-1), atol=1e-6)


def test_folded_scores_without_normalisation_are_the_mean_of_the_heads_scaled_products():
    torch.manual_seed(0)
    queries, keys = torch.randn(3, 7, 6, 16), torch.randn(11, 2, 16)
    folded = router.fold_queries(queries, 2, normalise=False) @ keys.flatten(-2).T
    products = torch.einsum("qmhd,chd->qmch", queries, keys.repeat_interleave(3, 1)) / 16**0.5
    assert torch.allclose(folded, products.mean(-1), atol=1e-5)


def test_tails_are_averaged_over_their_real_length():
    x = torch.arange(20.0).view(2, 10, 1)
    x[1, 6:] = 1e9  # padding must never count
    pooled = reference.pool_chunks(x, torch.tensor([10, 6]), 4)
    assert pooled[0, :, 0].tolist() == [1.5, 5.5, 8.5]
    assert pooled[1, :, 0].tolist() == [11.5, 14.5, 0.0]
    assert router.chunk_counts(torch.tensor([10, 6, 8, 1]), 4).tolist() == [3, 2, 2, 1]


def test_tokens_outside_the_question_do_not_route():
    folded, keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.eye(2)
    scores = reference.chunk_scores(folded, torch.tensor([[True, False]]), keys)
    assert scores.tolist() == [[1.0, 0.0]]


def test_ties_go_to_the_lowest_document():
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1]])
    assert router.top_documents(scores, 3).tolist() == [[1, 0, 2]]
    assert router.top_documents(torch.zeros(2, 6), 4).tolist() == [[0, 1, 2, 3]] * 2
    assert router.top_documents(scores, 99).tolist() == [[1, 0, 2, 3, 4]]


@pytest.mark.parametrize("k", [1, 3, 5, 7, 60])
def test_a_tie_that_the_last_place_cuts_through_goes_to_the_lowest_document(k):
    ranks = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(row)) for row in range(64)])
    scores = torch.where(ranks > 60 - k, ranks, ranks // 2).float()  # k - 1 stand alone above pairs
    assert torch.equal(router.top_documents(scores, k), scores.argsort(descending=True, stable=True)[:, :k])


def test_auxiliary_loss_is_the_papers():
    scores = torch.tensor([[0.3, 0.1, -0.2, 0.4], [0.0, 0.2, 0.1, 0.3]])
    positives = torch.tensor([[True, False, False, True], [False, True, False, False]])
    tau = 0.1
    expected = []
    for row, positive in zip(scores, positives, strict=True):
        rest = torch.exp(row[~positive] / tau).sum()
        each = [-torch.log(torch.exp(s / tau) / (torch.exp(s / tau) + rest)) for s in row[positive]]
        expected.append(torch.stack(each).mean())
    assert torch.allclose(auxiliary_loss(scores, positives, tau), torch.stack(expected).mean())


def test_samples_without_a_positive_and_uncounted_documents_are_left_out():
    scores = torch.tensor([[0.3, 0.1, 5.0], [9.0, 9.0, 9.0]])
    positives = torch.tensor([[True, False, False], [False, False, False]])
    visible = torch.tensor([[True, True, False], [True, True, True]])
    alone = auxiliary_loss(scores[:1, :2], positives[:1, :2], 0.1)
    assert torch.allclose(auxiliary_loss(scores, positives, 0.1, visible), alone)


def test_rms_norm_equals_torch_forward_and_backward():
    torch.manual_seed(0)
    for shape in ((3, 5, 7), (2, 4, 3, 8), (1, 1)):
        x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape[-1], requires_grad=True)
        grad = torch.randn(shape)
        ours = torch.autograd.grad(rms_norm(x, weight, 1e-6), (x, weight), grad)
        theirs = torch.autograd.grad(F.rms_norm(x, weight.shape, weight, 1e-6), (x, weight), grad)
        assert torch.allclose(rms_norm(x, weight, 1e-6), F.rms_norm(x, weight.shape, weight, 1e-6), atol=1e-6)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
