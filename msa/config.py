"""Shape of a model: one record for the Llama, Qwen2 and Qwen3 families and for MSA on top of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from configs.errors import UserError

QK_NORM_FAMILIES = ("qwen3", "msa")
QKV_BIAS_FAMILIES = ("qwen2",)
FAMILIES = ("llama", "qwen2", "qwen3", "msa")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. Without routed layers it is a plain LM.

    ``pool_tokens`` is P, the chunk length of mean pooling; ``top_k_documents`` is k (paper section 3.2).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True
    qkv_bias: bool = False
    tied_head: bool = True
    family: str = "qwen3"
    routed_layers: tuple[int, ...] = ()
    pool_tokens: int = 64
    top_k_documents: int = 16
    aux_temperature: float = 0.1
    window_tokens: int = 0  # longest text the backbone was made for; 0: not stated

    @property
    def routing_width(self) -> int:
        """Length of a folded routing vector: KV heads x head_dim."""
        return self.kv_heads * self.head_dim

    @classmethod
    def from_hub(cls, content: dict[str, Any], where: str) -> ModelConfig:
        """Read a Hugging Face ``config.json``, with the released ``msa_config`` section where there is one.

        Raises:
            UserError: a family or a feature that this decoder does not have, or a missing key.
        """
        family = content.get("model_type")
        if family not in FAMILIES:
            raise UserError(f"{where}: model_type {family!r} is not supported (known: {', '.join(FAMILIES)})")
        if content.get("rope_scaling"):
            raise UserError(f"{where}: rope_scaling {content['rope_scaling']!r} is not supported; only null is")
        if content.get("hidden_act", "silu") != "silu":
            raise UserError(f"{where}: hidden_act {content['hidden_act']!r} is not supported; only 'silu' is")
        rope = content.get("rope_parameters") or {}
        msa = content.get("msa_config") or {}
        try:
            heads = content["num_attention_heads"]
            return cls(
                vocab_size=content["vocab_size"],
                hidden_size=content["hidden_size"],
                intermediate_size=content["intermediate_size"],
                layers=content["num_hidden_layers"],
                query_heads=heads,
                kv_heads=content.get("num_key_value_heads") or heads,
                head_dim=content.get("head_dim") or content["hidden_size"] // heads,
                rope_theta=float(content.get("rope_theta") or rope.get("rope_theta") or 10000.0),
                norm_eps=content.get("rms_norm_eps", 1e-6),
                qk_norm=family in QK_NORM_FAMILIES,
                qkv_bias=family in QKV_BIAS_FAMILIES or bool(content.get("attention_bias", False)),
                tied_head=bool(content.get("tie_word_embeddings", False)),
                family=family,
                routed_layers=_layer_list(msa.get("router_layer_idx", "")),
                pool_tokens=int(msa.get("pooling_kernel_size", 64)),
                # the released files spell it both ways (METHOD section 8)
                top_k_documents=int(msa.get("top_k_docs", msa.get("doc_top_k", 16))),
                aux_temperature=float(msa.get("infonce_loss_temp", 0.1)),
                window_tokens=int(content.get("max_position_embeddings") or 0),
            )
        except KeyError as error:
            raise UserError(f"{where}: key {error} is missing") from None

    def to_hub(self) -> dict[str, Any]:
        """The ``config.json`` content that :meth:`from_hub` reads back."""
        content: dict[str, Any] = {
            "architectures": ["MSAForCausalLM" if self.routed_layers else "Qwen3ForCausalLM"],
            "model_type": "msa" if self.routed_layers and self.family == "qwen3" else self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "rms_norm_eps": self.norm_eps,
            "attention_bias": self.qkv_bias,
            "tie_word_embeddings": self.tied_head,
            "torch_dtype": "float32",
        }
        if self.window_tokens:
            content["max_position_embeddings"] = self.window_tokens
        if self.routed_layers:
            content["msa_config"] = {
                "router_layer_idx": ",".join(map(str, self.routed_layers)),
                "pooling_kernel_size": self.pool_tokens,
                "top_k_docs": self.top_k_documents,
                "infonce_loss_temp": self.aux_temperature,
                "chunk_reduce_method": "max",
                "query_reduce_method": "max",
                "head_reduce_method": "mean",
                "decouple_router": True,
                "decouple_pooling_mode": "mean",
                "aux_loss_method": "INFONCE_DECOUPLE",
                "rewrite_position": True,
            }
        return content


def _layer_list(value: str | list[int]) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [int(part) for part in value.split(",") if part.strip()]
    return tuple(sorted(value))
