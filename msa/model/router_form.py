"""How a router scores, where that is not the released form: its own heads and width, reductions, weights, one list."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from msa_base.errors import UserError
from msa_base.validate import Count, Positive, Wrong, build

QUERY_REDUCE = ("max", "mean", "last")
QUERY_TOKENS = ("wording", "question")


@dataclass(frozen=True)
class RouterForm:
    """Options of all routers of a model; the defaults are the paper's, and the only ones the released engine has.

    Attributes:
        query_heads, key_heads, head_dim: of the routing projections; None for the backbone's own. A router may be wider
            than the keys and values that it finds.
        bias: of the projections, which lets them centre what they read.
        query_reduce: over a question's tokens, of each token's best chunk in a document: ``max`` (paper eq. 2), or
            ``mean``; or the ``last`` token alone.
        query_tokens: of a request, which route: its whole ``wording``, or the user's ``question`` in it alone. What all
            requests share says nothing of a document, and a mean counts it with the rest.
        query_norms: a question's token counts by the length of its routing query, where a plain mean of cosines lets
            every word count alike. It needs ``query_reduce: mean``.
        head_weights: of the query heads' cosines, one each; empty for their mean.
        layer_weights: of the routed layers in a fused list, one each; empty for equal ones.
        fused: one list of documents for all layers, from the weighted sum of their scores on the question alone, in
            place of a list for each layer.
    """

    query_heads: Count | None = None
    key_heads: Count | None = None
    head_dim: Count | None = None
    bias: bool = False
    query_reduce: Literal["max", "mean", "last"] = "max"
    query_tokens: Literal["wording", "question"] = "wording"
    query_norms: bool = False
    head_weights: tuple[Positive, ...] = ()
    layer_weights: tuple[Positive, ...] = ()
    fused: bool = False

    def __post_init__(self) -> None:
        for name in ("head_weights", "layer_weights"):  # a list where it comes from YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.query_norms and self.query_reduce != "mean":
            raise Wrong("key 'query_norms' weighs the tokens of a mean; set query_reduce: mean, or leave it out")
        if self.layer_weights and not self.fused:
            raise Wrong("key 'layer_weights' weighs a fused list; set fused: true, or leave it out")

    @property
    def released(self) -> bool:
        """Whether the released engine computes this form."""
        return RouterForm(query_reduce=self.query_reduce) == self

    def check(self, query_heads: int, key_heads: int, layers: int, where: str) -> None:
        """Raise a UserError where the parts of a router do not fit each other.

        Args:
            query_heads, key_heads: the router's, taken from the backbone where the form states none; layers: routed.
        """
        if query_heads % key_heads:
            raise UserError(f"{where}: {query_heads} query heads must be a multiple of {key_heads} key heads")
        for name, wanted, noun in (
            ("head_weights", query_heads, "query heads"),
            ("layer_weights", layers, "routed layers"),
        ):
            if (given := getattr(self, name)) and len(given) != wanted:
                raise UserError(f"{where}: key '{name}' has {len(given)} weights for {wanted} {noun}; give one each")

    def shares(self, layers: int) -> list[float]:
        """Shares of the routed layers in a fused list; they sum to 1."""
        weights = self.layer_weights or (1.0,) * layers
        return [weight / math.fsum(weights) for weight in weights]

    @classmethod
    def from_hub(cls, msa: dict[str, Any], where: str) -> RouterForm:
        """From the ``msa_config`` of a config.json; a UserError for what is no form."""
        reduce = msa.get("query_reduce_method") or "max"
        if reduce not in QUERY_REDUCE:
            known = ", ".join(map(repr, QUERY_REDUCE))
            raise UserError(f"{where}: query_reduce_method {reduce!r} is not supported; only {known} are")
        return build(cls, {**(msa.get("router_form") or {}), "query_reduce": reduce}, f"{where}: router_form")

    def to_hub(self) -> dict[str, Any]:
        """What :meth:`from_hub` reads back: released keys where they say it all."""
        plain = RouterForm(query_reduce=self.query_reduce)
        own = {name: value for name, value in asdict(self).items() if value != getattr(plain, name)}
        found: dict[str, Any] = {"query_reduce_method": self.query_reduce}
        return found | ({"router_form": own} if own else {})
