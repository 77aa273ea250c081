"""The shape and the router that an entry of models.yaml states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from msa.model.router_form import RouterForm
from msa_base.errors import UserError
from msa_base.validate import Count, Positive, Whole, Wrong

Layers = Annotated[int, Field(gt=0, le=1000)]


@dataclass(frozen=True)
class Shape:
    """A backbone's shape; see :class:`msa.model.config.ModelConfig`."""

    hidden_size: Count
    intermediate_size: Count
    layers: Layers
    query_heads: Count
    kv_heads: Count
    head_dim: Count
    rope_theta: Positive

    def __post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise Wrong(f"key 'query_heads' must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise Wrong(f"key 'head_dim' must be even, found {self.head_dim}")


@dataclass(frozen=True)
class Router:
    """What turns a backbone into MSA."""

    routed_layers: Annotated[list[Whole], Field(min_length=1)]
    pool_tokens: Count
    top_k_documents: Count
    aux_temperature: Annotated[float, Field(gt=0, le=1000)]
    form: RouterForm = field(default_factory=RouterForm)

    def __post_init__(self) -> None:
        if self.routed_layers != sorted(set(self.routed_layers)):
            raise Wrong(f"key 'routed_layers' must name each layer once, in order; found {self.routed_layers}")

    def check_layers(self, layers: int, where: str) -> None:
        """Raise a UserError for a layer that a backbone of so many layers has not."""
        if max(self.routed_layers) >= layers:
            found = self.routed_layers
            raise UserError(
                f"{where}: router: key 'routed_layers' must be below {layers}, the backbone's, found {found}"
            )
