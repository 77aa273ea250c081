"""Comparison of this implementation with a fixture's outputs: scores, hidden states, logits and losses."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from msa.checkpoints.hub import read_tensors
from msa.checkpoints.read import load
from msa.model import onepass
from msa.model.losses import auxiliary_loss, language_loss
from msa_base.errors import UserError

TOLERANCE = 1e-4


@torch.no_grad()
def differences(directory: Path | str) -> dict[str, float]:
    """Largest absolute difference from a fixture's outputs, by name: scores, hidden states, logits, losses.

    Hidden states and logits are compared at template, question and response positions; document positions of the
    released model above its first routed layer are not read by anything.

    Raises:
        UserError: a file or tensor is missing.
    """
    directory = Path(directory)
    model, golden = load(directory), read_tensors(directory / "golden.safetensors")
    try:
        inputs = [golden[name] for name in ("input_ids", "doc_ids", "position_ids")]
        outputs = [onepass.forward(model, *sample) for sample in zip(*inputs, strict=True)]
        result, losses = {}, []
        for number, layer in enumerate(model.config.routed_layers):
            every = [output.scores[number] for output in outputs]
            scores = pad_sequence(every, batch_first=True, padding_value=-torch.inf)
            expected = golden[f"doc_scores.layer{layer}"][:, 1:]  # column 0 is unused
            found = torch.full_like(expected, -torch.inf)
            found[:, : scores.shape[1]] = scores
            result[f"doc_scores.layer{layer}"] = _largest(found, expected)
            positives = golden["aux_labels"][:, : scores.shape[1]] > 0
            losses.append(auxiliary_loss(scores, positives, model.temperature))
        reads = torch.stack([output.reads for output in outputs])
        for layer in range(model.config.layers + 1):
            found = torch.stack([output.hidden[layer] for output in outputs])
            result[f"hidden.{layer}"] = _largest(found[reads], golden[f"hidden.{layer}"][reads])
        logits = torch.stack([output.logits for output in outputs])
        result["logits"] = _largest(logits[reads], golden["logits"][reads])
        result["lm_loss"] = _largest(language_loss(logits[:, :-1], golden["labels"][:, 1:]), golden["lm_loss"])
        result["aux_loss"] = _largest(torch.stack(losses).mean(), golden["aux_loss"])
    except KeyError as error:
        raise UserError(f"{directory / 'golden.safetensors'}: tensor {error} is missing") from None
    return result


def _largest(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; equal infinities agree, and anything else that is not finite is infinite."""
    found, expected = torch.broadcast_tensors(found.float(), expected.float())
    difference = torch.where(found == expected, 0.0, (found - expected).abs())
    return float(difference.nan_to_num(nan=torch.inf).max())
