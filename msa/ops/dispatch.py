"""The one place where an operation's implementation is chosen: reference (plain torch), cpu (native tiles) or triton.

Everything else calls the operations of this module. `use` configures the process, `choose` says what runs, `chosen`
what a run should record.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from msa.ops import cpu, reference
from msa.ops.keys import Keys, score_error
from msa.ops.native import native
from msa.ops.reference import DocumentOrder
from msa_base.errors import UserError

IMPLEMENTATIONS = ("reference", "cpu", "triton")
CHOICES = ("auto", *IMPLEMENTATIONS)
KERNELS = {  # modules of the kernels, imported where they run: not every machine has triton
    "chunk_scores": "triton_routing",
    "top_documents": "triton_documents",
    "attend_pieces": "triton_attention",
    "pool_chunks": "triton_pooling",
    "training_scores": "triton_training",
}
OPERATIONS = dict.fromkeys(KERNELS, IMPLEMENTATIONS)
OPERATIONS |= dict.fromkeys(("pool_chunks", "training_scores"), ("reference", "triton"))

_configured = "auto"


def use(implementation: str) -> None:
    """Let every operation of this process take an implementation where a call names none; see :func:`choose`."""
    global _configured
    _require_known(implementation)
    _configured = implementation


def _require_known(implementation: str) -> None:
    if implementation not in CHOICES:
        raise UserError(f"kernels: {implementation!r} is unknown; write one of {', '.join(CHOICES)}")


@cache
def has_triton() -> bool:
    """Whether triton is installed (on Linux it is pinned; elsewhere there is none)."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether triton's kernels run in its interpreter, on any device."""
    return has_triton() and importlib.import_module("triton").knobs.runtime.interpret


def choose(operation: str, device: torch.device, implementation: str | None = None) -> str:
    """The implementation that an operation takes on a device.

    Args:
        implementation: one of IMPLEMENTATIONS, or "auto": triton on a CUDA device, cpu on a processor. An operation
            without the one asked for takes its reference. By default what :func:`use` said, at first "auto".

    Raises:
        UserError: an unknown name, or one that cannot run on the device.
    """
    wanted = _configured if implementation is None else implementation
    _require_known(wanted)
    cuda = device.type == "cuda"
    if wanted == "auto":
        wanted = "triton" if cuda and has_triton() else "reference" if device.type != "cpu" else "cpu"
    if wanted == "triton" and not (has_triton() and (cuda or interpreted())):
        raise UserError(f"kernels: triton needs a CUDA device and its package, not {device.type}; write auto")
    if wanted == "cpu" and device.type != "cpu":
        raise UserError(f"kernels: cpu does not run on {device.type}; write auto")
    return wanted if wanted in OPERATIONS[operation] else "reference"


def _module(operation: str, device: torch.device, implementation: str | None) -> ModuleType:
    """The module of msa.ops whose function of the operation's name runs."""
    name = choose(operation, device, implementation)
    return importlib.import_module(f"msa.ops.{KERNELS[operation] if name == 'triton' else name}")


def chosen(keys: Tensor, implementation: str | None = None) -> dict[str, str]:
    """What every operation takes for such routing keys [T, W], to be recorded with a run, and where it runs."""
    device = keys.device
    result = {operation: choose(operation, device, implementation) for operation in OPERATIONS}
    if result["chunk_scores"] == "cpu":
        result["chunk_scores"] = f"cpu ({cpu.variants(keys)[0]})"
        result["native"] = native().why
    if "triton" in result.values():
        import triton

        where = "interpreter" if interpreted() else "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        result["triton"] = f"{triton.__version__}, {where}"
    return result


def _require_fit(folded: Tensor, routing_mask: Tensor, keys: Tensor, scales: Tensor | None) -> None:
    """Native code and kernels read what shapes say, so these must agree."""
    if folded.shape[:2] != routing_mask.shape or folded.shape[-1] != keys.shape[-1]:
        raise ValueError(f"queries {tuple(folded.shape)}, mask {tuple(routing_mask.shape)}, keys {tuple(keys.shape)}")
    if scales is not None and scales.dim() and len(scales) != len(keys):
        raise ValueError(f"{len(scales)} scales for {len(keys)} keys")


def scores_with_error(
    folded: Tensor, routing_mask: Tensor, keys: Keys, rows: Tensor | None = None, *, implementation: str | None = None
) -> tuple[Tensor, Tensor]:
    """Chunk scores [Q, T], or of the chunks ``rows`` alone, and their :func:`msa.ops.keys.score_error` [Q]."""
    _require_fit(folded, routing_mask, keys.values, keys.scale)
    folded, module = folded.detach(), _module("chunk_scores", keys.values.device, implementation)
    if module is cpu:
        return cpu.scores_with_error(folded, routing_mask, keys, rows)
    some = keys if rows is None else keys[rows]
    scores = module.chunk_scores(folded, routing_mask, some.values, some.scale)
    return scores, score_error(folded, routing_mask, keys, module.query_dtype(keys.values))


def ranks_exactly(scanned: Keys, keys: Keys, implementation: str | None = None) -> bool:
    """Whether :func:`msa.ops.cpu.best_documents` takes ``scanned`` for a first pass and ``keys`` for exact scores."""
    name = choose("chunk_scores", keys.values.device, implementation)
    return name == "cpu" and cpu.ranks_exactly(keys) and scanned.values.device == keys.values.device


def top_documents(
    scores: Tensor, offsets: Tensor, doc_ids: Tensor, k: int, visible: Tensor | None = None, *,
    order: DocumentOrder | None = None, implementation: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See :func:`msa.ops.reference.top_documents`; a GPU wants ``order``, lest it is computed every time."""
    if len(offsets) != len(doc_ids) + 1 or (visible is not None and visible.shape != (len(scores), len(doc_ids))):
        raise ValueError(f"{len(doc_ids)} documents need as many offsets and one more, and a column each of visible")
    module = _module("top_documents", scores.device, implementation)
    return module.top_documents(scores, offsets, doc_ids, k, visible, order)


def pool_chunks(x: Tensor, lengths: Tensor, pool_tokens: int, *, implementation: str | None = None) -> Tensor:
    """See :func:`msa.ops.reference.pool_chunks`; differentiable in ``x``."""
    return _module("pool_chunks", x.device, implementation).pool_chunks(x, lengths, pool_tokens)


def training_scores(folded: Tensor, routing_mask: Tensor, keys: Tensor, *, implementation: str | None = None) -> Tensor:
    """See :func:`msa.ops.reference.chunk_scores`: differentiable in ``folded`` and ``keys``, nothing rounded."""
    _require_fit(folded, routing_mask, keys, None)
    return _module("training_scores", keys.device, implementation).training_scores(folded, routing_mask, keys)


def attends_in_place(own_keys: Tensor, tokens: int) -> bool:
    """Whether :func:`attend_pieces` beats joining memory with own keys [B, A, G, D] for so many new tokens a row."""
    name = choose("attend_pieces", own_keys.device)
    if torch.is_grad_enabled() and own_keys.requires_grad:
        return False
    return name == "triton" or (name == "cpu" and cpu.reads_in_place(tokens, own_keys.shape[2] * own_keys.shape[3]))


def attend_pieces(*pieces: Tensor, implementation: str | None = None, **optional: Tensor | None) -> Tensor:
    """See :func:`msa.ops.reference.attend_pieces`; where a gradient is wanted it is the reference that runs."""
    module = _module("attend_pieces", pieces[0].device, implementation)
    if torch.is_grad_enabled() and any(piece.requires_grad for piece in pieces):
        module = reference
    return module.attend_pieces(*pieces, **optional)
