"""Fresh weights: routers that tell documents apart before any training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from msa.memory.routed import PaddedMemory
from msa.model.config import ModelConfig
from msa.model.initialise import initialise, initialise_routers

SHARED, LENGTH, NAMES = 10, 16, 400
CONFIG = ModelConfig(
    vocab_size=SHARED + NAMES, hidden_size=64, intermediate_size=96, layers=4, query_heads=4, kv_heads=2, head_dim=16,
    routed_layers=(2, 3), pool_tokens=4, top_k_documents=4,
)  # fmt: skip


def recall(model, documents: int = 40) -> float:
    """How often the one document with the question's name comes first, among documents of the same other words."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(LENGTH).remainder(SHARED).repeat(documents, 1)
    names = SHARED + torch.randperm(NAMES, generator=generator)[:documents]
    ids[:, 9] = names
    lengths = torch.full((documents,), LENGTH)
    initialise_routers(model, ids, lengths)
    memory = PaddedMemory(model.encode(ids, lengths), lengths, CONFIG.pool_tokens, CONFIG.top_k_documents)
    questions = torch.tensor([[0, 3, 7, int(name), 5] for name in names])
    positions = torch.arange(questions.shape[1])
    everything = torch.ones_like(questions, dtype=torch.bool)
    _, selections = model(questions, positions, memory=memory, routing_mask=everything, reads_memory=everything)
    best = torch.stack([selection.scores.argmax(-1) for selection in selections])
    return (best == torch.arange(documents)).float().mean().item()


@torch.no_grad()
def test_untrained_routers_find_the_rare_word():
    torch.manual_seed(0)
    assert recall(initialise(CONFIG, 0.15)) > 0.9


@torch.no_grad()
def test_queries_and_keys_start_from_one_projection_of_usual_size():
    torch.manual_seed(0)
    model = initialise(CONFIG, 0.15)
    before = [model.model.layers[index].self_attn.router_k_proj[0].weight.norm() for index in CONFIG.routed_layers]
    recall(model)
    for index, norm in zip(CONFIG.routed_layers, before, strict=True):
        attention = model.model.layers[index].self_attn
        keys = attention.router_k_proj[0].weight.unflatten(0, (2, 16))
        queries = attention.router_q_proj[0].weight.unflatten(0, (4, 16))
        assert torch.equal(queries, keys[[0, 0, 1, 1]])
        assert keys.norm().item() == pytest.approx(norm.item(), rel=1e-4)


def test_the_backbone_keeps_its_weights():
    torch.manual_seed(0)
    model = initialise(CONFIG, 0.15)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if "router" not in name}
    recall(model)
    assert all(torch.equal(kept[name], model.state_dict()[name]) for name in kept)
    assert dataclasses.asdict(model.config) == dataclasses.asdict(CONFIG)
