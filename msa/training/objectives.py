"""The objectives of training: one table of what a batch is made of and what loss its gradients come from.

A new objective is one entry here; a phase of models.yaml names it.

Shape legend: N documents, Q rows of a group, K places of a row that have a target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from msa.generation.embed import embed
from msa.memory.routed import PaddedMemory
from msa.model.decoder import MSAModel, PooledLayer, Selection
from msa.model.losses import IGNORE, auxiliary_loss, language_loss
from msa.training.samples import Batch, Group, Phase, TrainingSet

# Shapes that recur (msa.training.samples.WIDTH): the documents of a bank and the targets of a group are filled up to
# multiples of these.
DOCUMENTS, TARGETS = 8, 64


@dataclass(frozen=True)
class Objective:
    """``batch(data, number, seed, phase, max_id)`` makes a batch; ``backward(model, batch, phase, temperature)`` adds
    its gradients and gives the figures to log.
    """

    batch: Callable[[TrainingSet, int, int, Phase, int], Batch]
    backward: Callable[[MSAModel, Batch, Phase, float], dict[str, float]]


def contrastive(model: MSAModel, batch: Batch, _: Phase, temperature: float) -> dict[str, float]:
    """Add the gradients of MSA's routing loss, InfoNCE, between questions and the bank's documents; figures to log.

    Rows of later rounds embed question and fetched text, as MSA routes with them.
    """
    columns = torch.arange(batch.documents.shape[1])
    documents = embed(model, batch.documents, columns < batch.lengths.unsqueeze(1))
    questions = torch.cat([embed(model, group.ids, group.routing) for group in batch.groups])
    positives = torch.cat([group.positives for group in batch.groups])
    countable = torch.cat([group.countable for group in batch.groups])
    scores = (questions @ documents.T).masked_fill(~countable, -torch.inf)
    loss = auxiliary_loss(scores, positives, temperature, countable)
    hits = positives.gather(1, scores.argmax(-1, keepdim=True)).float().mean()
    loss.backward()
    return {"loss": loss.item(), "aux_loss": loss.item(), "recall@1": hits.item()}


def next_token(model: MSAModel, batch: Batch, phase: Phase, temperature: float) -> dict[str, float]:
    """Add gradients of the next-token loss, and of the routing loss where the batch has a bank; the figures to log."""
    figures: dict[str, float] = defaultdict(float)
    memory, pieces = (None, []) if batch.documents is None else _bank(model, batch, phase.tokens_at_once)
    routed = sum(int(group.positives.any(-1).sum()) for group in batch.groups) if memory else 0
    for group in batch.groups:
        loss, selections = _token_loss(model, group, memory, phase, max(1, batch.targets), figures)
        if selections:
            routing = _routing_loss(model, group, selections, temperature, max(1, routed), figures)
            loss = loss + phase.aux_weight * routing
        figures["loss"] += loss.item()
        loss.backward()
    for piece in pieces:
        tensors, gradients = zip(*piece(), strict=True)
        torch.autograd.backward(tensors, gradients)
    return dict(figures)


Pairs = list[tuple[Tensor, Tensor]]


def _bank(model: MSAModel, batch: Batch, most: int | None) -> tuple[PaddedMemory, list[Callable[[], Pairs]]]:
    """The bank of a step, and what gives pairs of its tensors and of the gradients that all groups gathered at them.

    Where ``most`` padded tokens may be held at once, the bank is encoded without gradients first; each piece of at most
    so many is encoded once more, with them, when its pairs are asked for. Documents do not see each other: the
    gradients are the same.
    """
    documents, lengths = batch.documents, batch.lengths
    at_once = len(lengths) if most is None else max(1, most // documents.shape[1])
    pieces = list(torch.arange(len(lengths)).split(at_once))
    if len(pieces) == 1:
        pieces = [torch.arange(-(-len(lengths) // DOCUMENTS) * DOCUMENTS) % len(lengths)]

    def encoded(piece: Tensor) -> list[Tensor]:
        return [tensor for layer in model.encode(documents[piece], lengths[piece]) for tensor in layer]

    with torch.set_grad_enabled(len(pieces) == 1):
        found = [encoded(piece) for piece in pieces]
    leaves = [torch.cat(parts)[: len(lengths)].detach().requires_grad_() for parts in zip(*found, strict=True)]

    def pairs(number: int) -> Pairs:
        tensors, first = found[0] if len(pieces) == 1 else encoded(pieces[number]), number * at_once
        kept = [tensor[: len(lengths) - first] for tensor in tensors]
        return [(tensor, leaf.grad[first : first + at_once]) for tensor, leaf in zip(kept, leaves, strict=True)]

    width = len(PooledLayer._fields)
    layers = [PooledLayer(*leaves[at : at + width]) for at in range(0, len(leaves), width)]
    memory = PaddedMemory(layers, lengths, model.config.pool_tokens, model.config.top_k_documents)
    return memory, [partial(pairs, number) for number in range(len(pieces))]


def _token_loss(
    model: MSAModel, group: Group, memory: PaddedMemory | None, phase: Phase, targets: int, figures: dict[str, float]
) -> tuple[Tensor, list[Selection]]:
    """A group's share of the next-token loss over all ``targets`` of the step, and what its rows were routed to."""
    learn = group.targets != IGNORE
    counts = learn.sum(1)
    most = min(-(-int(counts.max()) // 8) * 8, learn.shape[1])
    places = (~learn).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # [Q, K], those that learn first, in order
    hidden, selections = model(
        group.ids, group.positions, memory=memory, routing_mask=group.routing, reads_memory=group.reads, wanted=places
    )
    hidden = hidden[torch.arange(places.shape[1]) < counts.unsqueeze(1)]
    wanted = group.targets[learn]
    filled = F.pad(hidden, (0, 0, 0, -len(hidden) % TARGETS))
    logits = model.logits(filled, group.vocabulary)[: len(wanted)]
    if group.vocabulary is not None:
        wanted = torch.searchsorted(group.vocabulary, wanted)
    each = language_loss(logits, wanted, reduction="none")
    mean = each.sum() / targets
    figures["lm_loss"] += mean.item()
    figures["target_accuracy"] += (logits.argmax(-1) == wanted).sum().item() / targets
    if memory is None or phase.answer_weight is None:
        return phase.lm_weight * mean, selections
    answers = ~group.positives.any(-1, keepdim=True).expand_as(learn)[learn]
    return (each * torch.where(answers, phase.answer_weight, phase.lm_weight)).sum() / targets, selections


def _routing_loss(
    model: MSAModel, group: Group, selections: list[Selection], tau: float, routed: int, figures: dict[str, float]
) -> Tensor:
    """A group's share of the auxiliary loss, the mean over layers, over all ``routed`` rows of the step."""
    share = int(group.positives.any(-1).sum()) / routed
    layers = [auxiliary_loss(s.scores, group.positives, tau, group.countable) for s in selections]
    loss = torch.stack(layers).mean() * share
    figures["aux_loss"] += loss.item()
    for number, selection in zip(model.config.routed_layers, selections, strict=True):
        best = selection.scores.masked_fill(~group.countable, -torch.inf).argmax(-1, keepdim=True)
        figures[f"recall@1/layer{number}"] += group.positives.gather(1, best).sum().item() / routed
    return loss


OBJECTIVES = {
    "copy": Objective(TrainingSet.copying_batch, next_token),  # shuffled words twice
    "recall": Objective(TrainingSet.recall_batch, next_token),  # values by their keys
    "read": Objective(TrainingSet.reading_batch, next_token),  # the answer from documents in context
    "ask": Objective(TrainingSet.asking_batch, next_token),  # the question that a document answers
    # a memory rewritten from a section, or the answer from it
    "memory_agent": Objective(TrainingSet.memory_agent_batch, next_token),
    "memory": Objective(TrainingSet.memory_batch, next_token),  # retrieval rounds and answers over a routed bank
    "embed": Objective(TrainingSet.rounds_batch, contrastive),  # bi-encoder
}
