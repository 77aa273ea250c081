"""Shape of a model: one record for the Llama, Qwen2 and Qwen3 families and for MSA on top of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from msa.model.rope_scaling import RopeScaling
from msa.model.router_form import RouterForm
from msa_base.errors import UserError
from msa_base.fields import Fields, is_positive

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "msa": "MSAForCausalLM",  # the released checkpoints: Qwen3 with routers
}
# what transformers assumes where config.json is silent
QWEN3 = {"num_key_value_heads": 32, "head_dim": 128}
FAMILY_DEFAULTS = {"llama": {}, "qwen2": {"num_key_value_heads": 32}, "qwen3": QWEN3, "msa": QWEN3}
SIZES = {  # fields of a ModelConfig and their keys in config.json
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
    "layers": "num_hidden_layers", "query_heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}  # fmt: skip
# msa_config values of the released code that this implementation has; another one selects other documents
ROUTING = {
    "chunk_reduce_method": "max", "head_reduce_method": "mean", "decouple_router": True,
    "decouple_pooling_mode": "mean",
}  # fmt: skip
# JSON kinds of what is read here by its truth or as a whole
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("model_type", "hidden_act"), str),
    **dict.fromkeys(("use_sliding_window", "attention_bias", "mlp_bias", "tie_word_embeddings"), bool),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "msa_config", "quantization_config"), dict),
    "layer_types": list,
}
MSA_KINDS: dict[str, type | tuple[type, ...]] = {
    "normalise_routing": bool, "released_prompts": bool, "aux_loss_method": str, "router_layer_idx": (str, list),
    "query_reduce_method": str, "router_form": dict,
}  # fmt: skip
MOST_LAYERS = 2048


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. Without routed layers it is a plain LM.

    ``pool_tokens`` is P, the chunk length of mean pooling; ``top_k_documents`` is k (paper section 3.2).
    ``normalise_routing``: scores are cosines (paper eq. 2); without it they are products scaled by head_dim ** -0.5,
    which is what the released code computes at inference unless its aux_loss_method is INFONCE (METHOD section 8).
    ``released_prompts``: it was trained on the words in which the released engine asks (msa_base.prompts).
    ``form`` is how the routers score where that is not the released form.
    ``max_positions`` is the longest sequence that the checkpoint was made for, where it says so.
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
    output_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = True
    rope_scaling: RopeScaling | None = None
    max_positions: int | None = None
    routed_layers: tuple[int, ...] = ()
    pool_tokens: int = 64
    top_k_documents: int = 16
    aux_temperature: float = 0.1
    normalise_routing: bool = True
    released_prompts: bool = False
    form: RouterForm = field(default_factory=RouterForm)

    @property
    def query_width(self) -> int:
        """Length of all query heads."""
        return self.query_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Length of all KV heads."""
        return self.kv_heads * self.head_dim

    @property
    def routing_heads(self) -> tuple[int, int, int]:
        """A router's query heads, key heads and their length; the backbone's where its form states none."""
        form = self.form
        return form.query_heads or self.query_heads, form.key_heads or self.kv_heads, form.head_dim or self.head_dim

    @property
    def routing_width(self) -> int:
        """Length of a folded routing vector: key heads x their length."""
        return self.routing_heads[1] * self.routing_heads[2]

    @property
    def family(self) -> str:
        """The ``model_type`` whose released code computes this decoder; a UserError where no family does."""
        even_bias = self.qkv_bias == self.output_bias
        if self.qk_norm and even_bias and not self.mlp_bias:
            return "msa" if self.routed_layers else "qwen3"
        if not self.qk_norm and even_bias:
            return "llama"
        if not self.qk_norm and self.qkv_bias and not self.mlp_bias:
            return "qwen2"
        biases = f"qkv={self.qkv_bias}, output={self.output_bias}, mlp={self.mlp_bias}"
        raise UserError(f"no model family has qk_norm={self.qk_norm} with biases {biases}")

    @classmethod
    def from_hub(cls, content: dict[str, Any], where: str, released_inference: bool = False) -> ModelConfig:
        """Read a Hugging Face ``config.json``, with the released ``msa_config`` section where there is one.

        Keys that do not change what the decoder computes are ignored.

        Args:
            where: the file, for messages.
            released_inference: normalise routing vectors only where the released inference code does.

        Raises:
            UserError: a family or a feature that this decoder does not have, a missing key, or a senseless value.
        """
        _check_types(content, KINDS, where)
        family = content.get("model_type")
        if family not in FAMILIES:
            raise UserError(f"{where}: model_type {family!r} is not supported (known: {', '.join(FAMILIES)})")
        _refuse(content, where)
        read = Fields({**FAMILY_DEFAULTS[family], **content}, where)
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        derived = {"num_key_value_heads": heads, "head_dim": hidden // heads if hidden % heads == 0 else None}
        sizes = {name: read.count(key, derived.get(key)) for name, key in SIZES.items()}
        scaling = RopeScaling.from_hub(content, where, sizes["head_dim"])
        if sizes["layers"] > MOST_LAYERS:
            raise UserError(f"{where}: num_hidden_layers is {sizes['layers']}, more than {MOST_LAYERS}")
        rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
        theta = rope.get("rope_theta") or content.get("rope_theta")
        if is_positive(theta) and theta <= 1:
            raise UserError(f"{where}: rope_theta is {theta!r}; it must be above 1")
        bias = family != "qwen2" and bool(content.get("attention_bias", False))
        config = cls(
            **sizes,
            rope_theta=Fields({"rope_theta": theta}, where).positive("rope_theta", 10000.0),
            norm_eps=read.positive("rms_norm_eps", 1e-6),
            qk_norm=family in ("qwen3", "msa"),
            qkv_bias=family == "qwen2" or bias,
            output_bias=bias,
            mlp_bias=family == "llama" and bool(content.get("mlp_bias", False)),
            tied_head=bool(content.get("tie_word_embeddings", False)),
            rope_scaling=scaling,
            max_positions=read.count("max_position_embeddings") if content.get("max_position_embeddings") else None,
        )
        if heads % config.kv_heads or config.head_dim % 2:
            found = f"{heads} query heads, {config.kv_heads} KV heads, head_dim {config.head_dim}"
            raise UserError(f"{where}: {found}: query heads must be a multiple of KV heads, and head_dim even")
        if content.get("msa_config"):
            return config._with_routers(content["msa_config"], where, released_inference)
        if family == "msa":
            raise UserError(f"{where}: key 'msa_config' is missing")
        return config

    def _with_routers(self, msa: dict[str, Any], where: str, released_inference: bool) -> ModelConfig:
        where = f"{where}: msa_config"
        _check_types(msa, MSA_KINDS, where)
        for key, known in ROUTING.items():
            if msa.get(key, known) != known:
                raise UserError(f"{where}: {key} {msa[key]!r} is not supported; only {known!r} is")
        if msa.get("top_k_docs", msa.get("doc_top_k")) != msa.get("doc_top_k", msa.get("top_k_docs")):
            raise UserError(f"{where}: top_k_docs {msa['top_k_docs']!r} and doc_top_k {msa['doc_top_k']!r} must agree")
        if "router_layer_idx" not in msa:
            raise UserError(f"{where}: key 'router_layer_idx' is missing")
        read = Fields(msa, where)
        # training normalises for every InfoNCE loss, the released inference for INFONCE alone
        loss = msa.get("aux_loss_method") or "INFONCE"
        normalise = loss == "INFONCE" if released_inference else "INFONCE" in str(loss)
        layers = layer_numbers(msa["router_layer_idx"], self.layers, f"{where}: router_layer_idx")
        form = RouterForm.from_hub(msa, where)
        form.check(form.query_heads or self.query_heads, form.key_heads or self.kv_heads, len(layers), where)
        return replace(
            self,
            form=form,
            routed_layers=layers,
            pool_tokens=read.count("pooling_kernel_size", 64),
            # the released code reads either, its model the first and its engine the second (METHOD section 8)
            top_k_documents=read.count("top_k_docs" if "top_k_docs" in msa else "doc_top_k", 16),
            aux_temperature=read.positive("infonce_loss_temp", 0.1),
            normalise_routing=bool(msa.get("normalise_routing", normalise)),
            # this project writes normalise_routing into what it trains and exports, the authors do not
            released_prompts=bool(msa.get("released_prompts", "normalise_routing" not in msa)),
        )

    def to_hub(self) -> dict[str, Any]:
        """The ``config.json`` content that :meth:`from_hub` reads back; raises UserError like :attr:`family`.

        The routers of a Qwen3 are written in the released format, whose engine then routes as this one does: for
        cosines its aux_loss_method must be INFONCE.
        """
        content: dict[str, Any] = {
            "architectures": [FAMILIES[self.family]],
            "model_type": self.family,
            **{key: getattr(self, name) for name, key in SIZES.items()},
            "hidden_act": "silu",
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "attention_bias": self.qkv_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tied_head,
            "use_sliding_window": False,
            "sliding_window": None,
            "torch_dtype": "float32",
        }
        if self.rope_scaling is not None:
            content["rope_scaling"] = self.rope_scaling.to_hub()
        if self.max_positions is not None:
            content["max_position_embeddings"] = self.max_positions
        if self.routed_layers:
            content["msa_config"] = {
                "router_layer_idx": ",".join(map(str, self.routed_layers)),
                "pooling_kernel_size": self.pool_tokens,
                **dict.fromkeys(("top_k_docs", "doc_top_k"), self.top_k_documents),
                "infonce_loss_temp": self.aux_temperature,
                "aux_loss_method": "INFONCE" if self.normalise_routing else "INFONCE_DECOUPLE",
                "normalise_routing": self.normalise_routing,
                "released_prompts": self.released_prompts,
                "rewrite_position": True,
                "aux_loss": True,
                # the released training code reads all four, the first as it is spelled there
                **{"lmloss_weigth": 1.0, "auxloss_weight": 0.1, "recloss_weight": 0.0, "ansloss_weight": 1.0},
                **ROUTING,
                **self.form.to_hub(),
            }
        return content


def _check_types(content: Any, kinds: dict[str, type | tuple[type, ...]], where: str) -> None:
    """Raise a UserError for what is no JSON object, or has a key of another kind than ``kinds``; null is none."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: must be a JSON object")
    for key, kind in kinds.items():
        if not isinstance(found := content.get(key), kind) and found is not None:
            names = kind if isinstance(kind, tuple) else (kind,)
            known = " or ".join(
                {bool: "true or false", str: "a string", dict: "an object", list: "a list"}[n] for n in names
            )
            raise UserError(f"{where}: {key} is {str(found)[:60]!r}; it must be {known}")


def layer_numbers(value: str | list[int], layers: int, where: str) -> tuple[int, ...]:
    """Layers named by ``all``, ``18,19,20``, ``18-35`` or a list, in order; a UserError where the model lacks one."""
    if value == "all":
        return tuple(range(layers))
    chosen: set[int] = set()
    try:
        for part in value.split(",") if isinstance(value, str) else value:
            first, _, last = str(part).strip().partition("-")
            span = range(int(first), int(last or first) + 1)
            if not span or span[-1] >= layers:
                raise UserError(f"{where}: {value!r} must name layers from 0 to {layers - 1}")
            chosen |= set(span)
    except (ValueError, TypeError):
        raise UserError(
            f"{where}: {str(value)[:60]!r} is not a list of layers such as 18,19,20 or 18-35 or all"
        ) from None
    if not chosen:
        raise UserError(f"{where}: names no layer")
    return tuple(sorted(chosen))


def _refuse(content: dict[str, Any], where: str) -> None:
    """Features of these families that the decoder does not have."""
    if content.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act {content['hidden_act']!r} is not supported; only 'silu' is")
    if content.get("use_sliding_window"):
        raise UserError(f"{where}: use_sliding_window is not supported; every layer here attends to the whole sequence")
    if other := [kind for kind in content.get("layer_types") or () if kind != "full_attention"]:
        raise UserError(f"{where}: layer_types {other[:3]} are not supported; only 'full_attention' is")
    if content.get("quantization_config"):
        raise UserError(f"{where}: quantization_config is not supported; take unquantised weights, or a GGUF file")
