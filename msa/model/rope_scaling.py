"""RoPE scaling as a config.json states it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from msa_base.errors import UserError
from msa_base.fields import Fields, is_positive

KINDS = ("linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeScaling:
    """How a checkpoint stretches its frequencies past the length of its first training.

    ``kind``: linear divides all by ``factor``; llama3 (Llama 3.1) and yarn (arXiv 2309.00071) divide the slow ones and
    leave the fast ones; longrope divides each by its own of ``divisors``. ``attention_factor`` multiplies cosines and
    sines (yarn, longrope).
    """

    kind: str
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    divisors: tuple[float, ...] = ()

    @classmethod
    def from_hub(cls, content: dict[str, Any], where: str, head_dim: int) -> RopeScaling | None:
        """Read the scaling of a whole ``config.json``, None for plain RoPE; a UserError for what is not supported."""
        key = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
        values = content.get(key) or {}
        if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
            raise UserError(f"{where}: {key} {values!r} is not supported; only one RoPE for all layers is")
        if values.get("partial_rotary_factor", content.get("partial_rotary_factor")) not in (None, 1):
            raise UserError(f"{where}: partial_rotary_factor is not supported unless it is 1")
        kind = values.get("rope_type") or values.get("type") or "default"
        if kind == "default":
            return None
        if kind not in KINDS:
            raise UserError(f"{where}: {key} {kind!r} is not supported (known: default, {', '.join(KINDS)})")
        # as in transformers: the length beside rope_scaling outranks the one inside, the whole length is the default
        name = "original_max_position_embeddings"
        read = Fields({**content, **values, name: content.get(name) or values.get(name)}, f"{where}: {key}")
        if kind == "linear":
            return cls(kind, read.positive("factor"))
        positions = read.count("max_position_embeddings") if read.values[name] is None else read.count(name)
        if kind == "llama3":
            low, high = read.positive("low_freq_factor"), read.positive("high_freq_factor")
            if high <= low:
                raise UserError(f"{read.where}: high_freq_factor must be above low_freq_factor")
            return cls(kind, read.positive("factor"), positions, low, high)
        whole = content.get("max_position_embeddings")
        factor = read.positive("factor", whole / positions if read.values[name] and is_positive(whole) else None)
        if kind == "longrope":
            gain = math.sqrt(1 + math.log(factor) / math.log(positions)) if min(factor, positions) > 1 else 1.0
            own = {"divisors": _fixed_divisors(values, read.where, head_dim // 2)}
            return cls(kind, factor, positions, attention_factor=read.positive("attention_factor", gain), **own)
        gain = _yarn_gain(factor)
        if values.get("mscale") and values.get("mscale_all_dim"):
            gain = _yarn_gain(factor, read.positive("mscale")) / _yarn_gain(factor, read.positive("mscale_all_dim"))
        return cls(
            kind, factor, positions, beta_fast=read.positive("beta_fast", 32.0),
            beta_slow=read.positive("beta_slow", 1.0),
            truncate=values.get("truncate") is not False, attention_factor=read.positive("attention_factor", gain),
        )  # fmt: skip

    def to_hub(self) -> dict[str, Any]:
        """The ``rope_scaling`` that :meth:`from_hub` reads back."""
        values: dict[str, Any] = {"rope_type": self.kind, "factor": self.factor}
        if self.kind != "linear":
            values["original_max_position_embeddings"] = self.original_positions
        if self.kind == "llama3":
            values |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
        if self.kind in ("yarn", "longrope"):
            values["attention_factor"] = self.attention_factor
        if self.kind == "yarn":
            values |= {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow, "truncate": self.truncate}
        if self.kind == "longrope":
            values |= {"short_factor": list(self.divisors), "long_factor": list(self.divisors)}
        return values


def _fixed_divisors(values: dict[str, Any], where: str, count: int) -> tuple[float, ...]:
    """The divisors of a longrope that does not change with the length of the sequence."""
    divisors = values.get("short_factor")
    if divisors != values.get("long_factor"):
        raise UserError(f"{where}: longrope is supported only where short_factor equals long_factor")
    if not isinstance(divisors, list) or len(divisors) != count or not all(map(is_positive, divisors)):
        raise UserError(f"{where}: short_factor must be {count} numbers above 0 (half of head_dim), not {divisors!r}")
    return tuple(map(float, divisors))


def _yarn_gain(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
