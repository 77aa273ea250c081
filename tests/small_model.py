"""The shape of the small random models of the tests."""

from __future__ import annotations

from typing import Any

from msa.model.config import ModelConfig

ROUTED = {"pool_tokens": 4, "top_k_documents": 3}  # chunks of 4 tokens, 3 documents a layer


def small_config(vocab_size: int, **changes: Any) -> ModelConfig:
    """A backbone of 4 layers and 4 query heads, but for ``changes``."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "layers": 4, "query_heads": 4, "kv_heads": 2, "head_dim": 8}
    return ModelConfig(vocab_size, **{**shape, **changes})
