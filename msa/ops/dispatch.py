"""The one place where an operation's implementation is chosen: reference (plain torch), cpu (native tiles) or triton.

Everything else calls the operations of this module. `use` configures the process, `choose` says what runs, `chosen` what a
run should record.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from configs.errors import UserError
from msa.keys import Keys
from msa.ops import cpu, reference
from msa.ops.native import native
from msa.ops.order import DocumentOrder
from msa.ops.quantise import score_error

IMPLEMENTATIONS = ("reference", "cpu", "triton")
CHOICES = ("auto", *IMPLEMENTATIONS)
OPERATIONS = {
    "chunk_scores": ("reference", "cpu", "triton"),
    "top_documents": ("reference", "cpu", "triton"),
    "attend_pieces": ("reference", "cpu", "triton"),
    "pool_chunks": ("reference", "triton"),
    "training_scores": ("reference", "triton"),
}

_configured = "auto"


def use(implementation: str) -> None:
    """Let every operation of this process take an implementation where a call names none; see :func:`choose`.

    Raises:
        UserError: an unknown name.
    """
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
    if not has_triton():
        return False
    import triton

    return triton.knobs.runtime.interpret


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


def chosen(keys: Tensor, implementation: str | None = None) -> dict[str, str]:
    """What every operation takes for such routing keys [T, W], to be recorded with a run.

    Where it is the native code of a processor, its instructions are named; where triton, the device's architecture.
    """
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
    """Chunk scores [Q, T], of the chunks ``rows`` alone where they are named, and how far each question's can be off [Q].

    See :func:`msa.ops.quantise.score_error`.
    """
    _require_fit(folded, routing_mask, keys.values, keys.scale)
    name = choose("chunk_scores", keys.values.device, implementation)
    if name == "cpu":
        return cpu.scores_with_error(folded.detach(), routing_mask, keys, rows)
    some = keys if rows is None else keys[rows]
    scores = chunk_scores(folded, routing_mask, some.values, some.scale, implementation=implementation)
    return scores, score_error(folded.detach(), routing_mask, keys, query_dtype(keys.values, implementation))


def settles(quick: Keys, keys: Keys, implementation: str | None = None) -> bool:
    """Whether :func:`msa.ops.cpu.best_documents` takes keys ``quick`` for a first pass and ``keys`` for exact scores."""
    name = choose("chunk_scores", keys.values.device, implementation)
    return name == "cpu" and cpu.settles(keys) and quick.values.device == keys.values.device


def query_dtype(keys: Tensor, implementation: str | None = None) -> torch.dtype:
    """What folded queries are rounded to by `chunk_scores` with such keys."""
    name = choose("chunk_scores", keys.device, implementation)
    if name == "cpu":
        return cpu.query_dtype(keys)
    if name == "triton":
        from msa.ops import triton_routing

        return triton_routing.query_dtype(keys)
    return torch.float32


def chunk_scores(
    folded: Tensor, routing_mask: Tensor, keys: Tensor, scales: Tensor | None = None, *, implementation: str | None = None
) -> Tensor:
    """See :func:`msa.ops.reference.chunk_scores`; float32, without gradient, queries rounded to `query_dtype`."""
    _require_fit(folded, routing_mask, keys, scales)
    folded, keys = folded.detach(), keys.detach()
    name = choose("chunk_scores", keys.device, implementation)
    if name == "triton":
        from msa.ops import triton_routing

        return triton_routing.chunk_scores(folded, routing_mask, keys, scales)
    return (cpu if name == "cpu" else reference).chunk_scores(folded, routing_mask, keys, scales)


def top_documents(
    scores: Tensor,
    offsets: Tensor,
    doc_ids: Tensor,
    k: int,
    visible: Tensor | None = None,
    *,
    order: DocumentOrder | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`msa.ops.reference.top_documents`.

    Args:
        order: of ``doc_ids``; a GPU wants it, and computes it every time where it is not given.
    """
    if len(offsets) != len(doc_ids) + 1 or (visible is not None and visible.shape != (len(scores), len(doc_ids))):
        raise ValueError(f"{len(doc_ids)} documents need as many offsets and one more, and a column each of visible")
    name = choose("top_documents", scores.device, implementation)
    if name == "triton":
        from msa.ops import triton_documents

        return triton_documents.top_documents(scores, offsets, doc_ids, k, visible, order)
    return (cpu if name == "cpu" else reference).top_documents(scores, offsets, doc_ids, k, visible)


def pool_chunks(x: Tensor, lengths: Tensor, pool_tokens: int, *, implementation: str | None = None) -> Tensor:
    """See :func:`msa.ops.reference.pool_chunks`; differentiable in ``x``."""
    if choose("pool_chunks", x.device, implementation) == "triton":
        from msa.ops import triton_pooling

        return triton_pooling.pool_chunks(x, lengths, pool_tokens)
    return reference.pool_chunks(x, lengths, pool_tokens)


def training_scores(folded: Tensor, routing_mask: Tensor, keys: Tensor, *, implementation: str | None = None) -> Tensor:
    """See :func:`msa.ops.reference.chunk_scores`: the same, differentiable in ``folded`` and ``keys``, nothing rounded."""
    _require_fit(folded, routing_mask, keys, None)
    if choose("training_scores", keys.device, implementation) == "triton":
        from msa.ops import triton_training

        return triton_training.training_scores(folded, routing_mask, keys)
    return reference.chunk_scores(folded, routing_mask, keys)


def attends_in_place(own_keys: Tensor, tokens: int) -> bool:
    """Whether :func:`attend_pieces` beats joining memory with own keys [B, A, G, D] for so many new tokens a row."""
    name = choose("attend_pieces", own_keys.device)
    if torch.is_grad_enabled() and own_keys.requires_grad:
        return False
    return name == "triton" or (name == "cpu" and cpu.reads_in_place(tokens, own_keys.shape[2] * own_keys.shape[3]))


def attend_pieces(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    own_valid: Tensor,
    bank_keys: Tensor,
    bank_values: Tensor,
    chunks: Tensor,
    *,
    implementation: str | None = None,
    **optional: Tensor | None,
) -> Tensor:
    """See :func:`msa.ops.reference.attend_pieces`; where a gradient is wanted it is the reference that runs."""
    name = choose("attend_pieces", q.device, implementation)
    inputs = (q, own_keys, own_values, bank_keys, bank_values)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        name = "reference"
    if name == "triton":
        from msa.ops import triton_attention

        attend = triton_attention.attend_pieces
    else:
        attend = (cpu if name == "cpu" else reference).attend_pieces
    return attend(q, own_keys, own_values, own_valid, bank_keys, bank_values, chunks, **optional)
