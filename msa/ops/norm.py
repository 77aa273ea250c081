"""RMS norm with a hand-written backward: half the memory traffic of the composed form, which a CPU waits for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vecdot(x, x, dim=-1).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    def backward(ctx, grad: Tensor):
        unit, scale, weight = ctx.saved_tensors
        weight_grad = (grad * unit).flatten(0, -2).sum(0)
        inner = grad * weight
        share = torch.linalg.vecdot(inner, unit, dim=-1).div_(unit.shape[-1]).unsqueeze(-1)
        return inner.addcmul_(unit, share, value=-1).mul_(scale), weight_grad, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last dimension in float32; the result has the dtype of ``x``.

    Equal to ``F.rms_norm`` forward and backward.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _RMSNorm.apply(x.float(), weight, eps).to(x.dtype)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)
