"""Matrix products in triton that come out the same on a GPU and in triton's interpreter."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def product(a, b, sums, dtype: tl.constexpr):
    """``sums`` + a @ b in float32, both operands taken to ``dtype`` first; float32 operands are not rounded further."""
    if INTERPRETED:
        # the interpreter multiplies the bits of bfloat16 numbers, so everything is widened; what was exact stays so
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums)
    else:
        return tl.dot(a.to(dtype), b.to(dtype), sums, input_precision="ieee")
