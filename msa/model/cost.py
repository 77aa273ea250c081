"""What a model and its memory cost, from shapes alone: parameters, bytes of a bank by tensor, FLOPs and bytes by stage.

No checkpoint is opened and torch is not imported, so that a plan can be made for what no machine at hand could hold. A
multiply-add counts as 2 FLOPs; matrix products and attention are counted, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from msa.model.config import ModelConfig
from msa.model.router_form import RouterForm
from msa_base.errors import UserError

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float8": 1, "int8": 1}  # msa.memory.keys.DTYPES
STATE = "optimiser state"  # the part of a training that its processes share
SCALE_BYTES = {"int8": 4}  # a float32 scale a routing key
ID_BYTES = 8  # ids, lengths and offsets of documents are int64
TRAINING_FLOPS = 6  # a parameter and token, forward and backward: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1
# assumed tokens of a training question, of a document in prose, of a bare one
ROW_TOKENS, DOCUMENT_TOKENS, SENTENCE_TOKENS = 45, 85, 40
GROUP_TOKENS = 4096  # padded tokens of a group of training rows (msa.training.samples)


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents as the cost of a memory depends on them: ``lengths`` in tokens [N], UTF-8 bytes of all texts."""

    lengths: np.ndarray
    text_bytes: int

    @classmethod
    def even(cls, tokens: int, document_tokens: int, bytes_per_token: int = 4) -> Documents:
        """``tokens`` in documents of ``document_tokens`` each, the last of what is left."""
        whole, rest = divmod(max(0, tokens), document_tokens)
        lengths = np.append(np.full(whole, document_tokens), [rest] * (rest > 0)).astype(np.int64)
        return cls(lengths, bytes_per_token * int(lengths.sum()))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    def chunks(self, pool_tokens: int) -> int:
        """Chunks of P tokens; a document's partial tail is one."""
        return int((-(-self.lengths // pool_tokens)).sum())


@dataclass(frozen=True)
class Storage:
    """How a bank is kept: precisions of routing keys and of content (pooled K and V), and the tiers they are read from.

    ``auto`` takes the fastest tier that the bytes fit into. ``scan`` is the precision of a coarser copy of the keys
    that stands in the keys' tier; the keys themselves then stay on disk (msa.memory.tiers).
    """

    key_dtype: str = "float32"
    content_dtype: str = "float32"
    key_tier: str = "auto"
    content_tier: str = "auto"
    scan: str | None = None


@dataclass(frozen=True)
class Cost:
    """Work of one stage: FLOPs, bytes read from the device's memory, bytes that cross from host to device."""

    flops: float = 0.0
    read_bytes: float = 0.0
    link_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.read_bytes + other.read_bytes, self.link_bytes + other.link_bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.read_bytes * times, self.link_bytes * times)


def layer_parameters(config: ModelConfig) -> int:
    """Matrix parameters of one layer: attention and gated feed-forward, without a router's."""
    return config.hidden_size * (2 * config.query_width + 2 * config.kv_width + 3 * config.intermediate_size)


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part; their sum is that of the checkpoint's tensors."""
    query, width, hidden = config.query_width, config.kv_width, config.hidden_size
    routing = config.routing_heads[0] * config.routing_heads[2] + config.routing_width
    vectors = 2 * hidden + 2 * config.head_dim * config.qk_norm + (query + 2 * width) * config.qkv_bias
    vectors += hidden * config.output_bias + (2 * config.intermediate_size + hidden) * config.mlp_bias
    return {
        "embedding": config.vocab_size * hidden * (1 if config.tied_head else 2),
        "layers": config.layers * layer_parameters(config),
        "routers": len(config.routed_layers) * (hidden + config.form.bias) * routing,  # paper section 3.2
        "vectors": config.layers * vectors + hidden,
    }


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all parameters."""
    return sum(parameters(config).values()) * ELEMENT_BYTES[dtype]


def key_bytes(config: ModelConfig, chunks: int, dtype: str) -> int:
    """Bytes of all routed layers' keys."""
    row = config.routing_width * ELEMENT_BYTES[dtype] + SCALE_BYTES.get(dtype, 0)
    return len(config.routed_layers) * chunks * row


def bank_bytes(config: ModelConfig, documents: Documents, storage: Storage, segments: int = 1) -> dict[str, int]:
    """Bytes of a bank's tensors; tables are ids, lengths and offsets of its documents, not their text."""
    chunks, element = documents.chunks(config.pool_tokens), ELEMENT_BYTES[storage.content_dtype]
    return {
        "routing keys": key_bytes(config, chunks, storage.key_dtype),
        "content": len(config.routed_layers) * chunks * 2 * config.kv_width * element,
        "tables": ID_BYTES * (3 * len(documents) + segments),
    }


def attention_flops(config: ModelConfig, tokens: float, keys: float) -> float:
    """Scores and weighted sums of one layer: ``tokens`` queries that each see ``keys`` keys on average."""
    return 4 * tokens * keys * config.query_width


def encode_cost(config: ModelConfig, documents: Documents) -> Cost:
    """The document tower over a corpus (paper section 3.2.1; :meth:`msa.model.decoder.MSAModel.encode`).

    Layers below the last routed one run in full; of that one only K is projected for every token. The projections of
    K^R and of pooled V follow the pooling, once a chunk and routed layer. No vocabulary head.
    """
    last, width = config.routed_layers[-1], config.hidden_size * config.kv_width
    pairs = float((documents.lengths * (documents.lengths + 1)).sum()) / 2
    flops = 2 * documents.tokens * (last * layer_parameters(config) + width)
    flops += last * attention_flops(config, 1, pairs)
    flops += (
        2
        * len(config.routed_layers)
        * documents.chunks(config.pool_tokens)
        * (width + config.hidden_size * config.routing_width)
    )
    return Cost(flops)


def read_cost(
    config: ModelConfig, tokens: float, before: float = 0.0, slots: float = 0.0, routes: bool = False, logits: float = 0
) -> Cost:
    """The question tower, or a plain LM, over ``tokens`` new tokens of one row.

    Args:
        before: tokens of the row that are in the cache already.
        slots: memory slots that routed layers attend to beside them (k x chunks of a document).
        routes: whether the routing queries are projected, as a prefill does.
        logits: tokens whose logits over the vocabulary are wanted.
    """
    routed = len(config.routed_layers)
    flops = 2 * tokens * config.layers * layer_parameters(config)
    flops += config.layers * attention_flops(config, tokens, before + (tokens + 1) / 2)
    flops += routed * attention_flops(config, tokens, slots)
    flops += 2 * tokens * routed * config.hidden_size * config.routing_heads[0] * config.routing_heads[2] * routes
    return Cost(flops + 2 * logits * config.hidden_size * config.vocab_size)


def route_cost(config: ModelConfig, chunks: int, tokens: float, dtype: str, batch: int = 1) -> Cost:
    """Scores of ``tokens`` folded routing queries against every chunk of every routed layer.

    Keys of ``dtype`` are read once for ``batch`` questions; one inner product of length KV heads x head_dim each.
    """
    flops = 2 * len(config.routed_layers) * chunks * tokens * config.routing_width
    return Cost(flops, key_bytes(config, chunks, dtype) / batch)


def fetch_cost(config: ModelConfig, slots: float, dtype: str) -> Cost:
    """Pooled K and V of one question's chosen documents, all routed layers, from host to device."""
    return Cost(link_bytes=len(config.routed_layers) * slots * 2 * config.kv_width * ELEMENT_BYTES[dtype])


def cache_bytes(config: ModelConfig, tokens: float, slots: float, dtype: str) -> float:
    """Keys and values of one row's own tokens in all layers, and of its memory slots in the routed ones."""
    rows = config.layers * tokens + len(config.routed_layers) * slots
    return 2 * config.kv_width * ELEMENT_BYTES[dtype] * rows


def activation_bytes(
    config: ModelConfig, tokens: float, dtype: str, slots: float = 0.0, gradients: bool = False
) -> float:
    """What is alive at once within a layer for one row of ``tokens`` (:meth:`msa.model.decoder.MSAModel.forward`).

    The stream before and after attention, attention's output, two norms and their sum; queries, their rotation and the
    heads' outputs; keys and values; and of the feed-forward the gate, the value and, for ``gradients``, their product.
    Keys and values of memory slots stand in front of the row's own, for each KV head and repeated for each query head.
    """
    query, width = config.query_width, config.kv_width
    fed = (2 + gradients) * config.intermediate_size
    alive = tokens * (6 * config.hidden_size + 3 * query + 2 * width + fed)
    return (alive + slots * 2 * (width + query)) * ELEMENT_BYTES[dtype]


def training_cost(config: ModelConfig, tokens: float, twice: float = 0.0) -> Cost:
    """Forward and backward over ``tokens``: 6 N a token, N parameters outside the embedding (Kaplan et al. 2020); one
    more forward, 2 N, over those of a bank that is encoded ``twice``.
    """
    held = parameters(config)
    return Cost((held["layers"] + held["routers"]) * (TRAINING_FLOPS * tokens + TRAINING_FLOPS / 3 * twice))


def training_bytes(
    config: ModelConfig, params: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """What a process of a training holds (msa.training.train), by part; the processes share the optimiser's state.

    Parameters and gradients are float32; products are taken of a copy in bfloat16, unless ``precision`` is float32.
    Muon keeps one value of a matrix's parameter, AdamW two of the others and, while it updates, one more. Activations
    are those that a layer has alive at once, of every layer.
    """
    held = parameters(config)
    total, vectors = sum(held.values()), held["embedding"] + held["vectors"]
    tokens = max(phase_tokens_at_once(phase, samples) for phase in params["phases"])
    return {
        "weights": 4 * total,
        "weights in bfloat16": 0 if params.get("precision") == "float32" else 2 * total,
        "gradients": 4 * total,
        STATE: 4 * (total + vectors),
        "optimiser step": 4 * held["embedding"],
        "activations": config.layers * activation_bytes(config, tokens, "float32", gradients=True),
    }


def phase_tokens_at_once(phase: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> float:
    """Tokens whose activations a phase holds at once: a bank, or a piece of it, and a group of rows."""
    bank, most = _bank_tokens(phase, samples), phase.get("tokens_at_once")
    if most and bank > most:
        return most
    rows = phase["rows"] * row_tokens(phase, samples)
    return bank + (rows if phase["objective"] == "embed" else min(GROUP_TOKENS, rows))


def training_tokens(params: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Tokens that the phases of a models.yaml entry read, in all of its shards; None where it has no phases.

    ``params`` are the entry's (msa.training.train), ``samples`` the profile's training sets by name.
    """
    if not params.get("phases"):
        return None
    return params.get("shards", 1) * sum(phase_tokens(phase, samples) for phase in params["phases"])


def tokens_twice(params: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> float:
    """Tokens of banks that are encoded twice, as not all of their activations are held at once."""
    steps = ((phase["steps"], _bank_tokens(phase, samples), phase.get("tokens_at_once")) for phase in params["phases"])
    return params.get("shards", 1) * sum(number * bank for number, bank, most in steps if most and bank > most)


def phase_tokens(phase: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> float:
    """Tokens that one phase reads."""
    return phase["steps"] * (_bank_tokens(phase, samples) + phase["rows"] * row_tokens(phase, samples))


def _bank_tokens(phase: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> float:
    """Of the bank that a step of a phase encodes."""
    encodes = phase["objective"] in ("memory", "embed")
    return samples.get(phase["samples"], {}).get("bank_tokens", 0) if encodes else 0


def row_tokens(phase: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> float:
    """Tokens of a row of a phase, by its make-up (msa.training.samples)."""
    sample, objective = samples.get(phase["samples"], {}), phase["objective"]
    document = SENTENCE_TOKENS if sample.get("bare_share") == 1.0 else DOCUMENT_TOKENS
    fewest, most = phase.get("documents", (1, 4))
    documents, questions = (fewest + most) / 2, phase.get("questions", 1)
    # an answer's row has the documents of its chain behind the question
    answers = phase.get("answer_share", 0.5) if objective == "memory" else 0.0
    return {
        "copy": 2.5 * phase.get("tokens", 32),  # up to `tokens` before, within and behind a span that comes again
        "recall": 1.5 * phase.get("tokens", 32),  # a list, and half of it again
        "read": documents * document + questions * ROW_TOKENS,
        "ask": document + ROW_TOKENS / 2,
        "memory_agent": documents * document + (1 + questions) / 2 * ROW_TOKENS,  # each problem, with its memories
    }.get(objective, ROW_TOKENS + answers * (1.5 * document + ROW_TOKENS))


def planned_config(name: str, models: Mapping[str, Any], vocab_size: int) -> ModelConfig | None:
    """The shape that an entry of models.yaml states or inherits from its parent; with a router, MSA's.

    None where no entry on the way states a shape (a model of somebody else's kind). ``vocab_size`` is that of the
    profile's tokenizer, for entries that state none.

    Raises:
        UserError: a shape or router with a missing or unknown key.
    """
    params, after = models[name].params, models[name].after
    try:
        if shape := params.get("shape"):
            shape = {key: value for key, value in shape.items() if key != "logit_gain"}  # initialisation, not shape
            config = ModelConfig(**{"vocab_size": vocab_size, **shape})
        else:
            config = planned_config(after, models, vocab_size) if after else None
        if config is not None and (router := params.get("router")):
            router = {**router, "form": RouterForm(**router.get("form", {}))}
            config = ModelConfig(**{**vars(config), **router, "routed_layers": tuple(router["routed_layers"])})
    except (TypeError, KeyError, AttributeError) as error:
        known = ", ".join(sorted(item.name for item in fields(ModelConfig)))
        where = f"models.yaml: {name}: params"
        raise UserError(f"{where}: not a shape or router of a model ({error}); known keys: {known}") from None
    return config
