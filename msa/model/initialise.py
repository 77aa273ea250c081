"""Fresh weights: a backbone's, and those of the routers that turn it into MSA.

Shape legend: N documents, L padded document length, E hidden size, W routing width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel


def initialise(config: ModelConfig, logit_gain: float) -> MSAModel:
    """A fresh model: unit embeddings, zero output projections, scaled normal elsewhere.

    With these, in-context copying forms within a few hundred steps at small width; with the usual 0.02 it does not.
    """
    model = MSAModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            nn.init.normal_(parameter)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    nn.init.constant_(model.model.norm.weight, logit_gain)
    return model


@torch.no_grad()
def initialise_routers(model: MSAModel, ids: Tensor, lengths: Tensor) -> None:
    """Start routing queries and keys from one random projection of whitened states, in place.

    A document's score is that of its best pair of token and chunk. What all documents share (a template, the place
    behind the head) would win every such pair from the start, and a maximum passes no gradient to the rest. Whitened by
    the inverse root of their second moment, states are told apart by what is rare in them, names above all.

    Args:
        ids, lengths: documents as the memory holds them, right-padded [N, L] and [N].
    """
    config, states = model.config, {}
    valid = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    layers = {index: model.model.layers[index] for index in config.routed_layers}
    hooks = [
        layer.input_layernorm.register_forward_hook(lambda _, __, out, index=index: states.update({index: out[valid]}))
        for index, layer in layers.items()
    ]
    try:
        model.encode(ids, lengths)
    finally:
        for hook in hooks:
            hook.remove()
    for index, layer in layers.items():
        moment = states[index].double().T @ states[index].double() / len(states[index])
        values, vectors = torch.linalg.eigh(moment)
        inverse_root = (vectors * values.clamp(min=values.max() * 1e-6).rsqrt()) @ vectors.T
        keys = layer.self_attn.router_k_proj[0].weight
        whitened = (keys.double() @ inverse_root).to(keys.dtype)
        keys.copy_(whitened * (keys.norm() / whitened.norm()))
        heads = keys.unflatten(0, (config.kv_heads, config.head_dim))
        each = heads.repeat_interleave(config.query_heads // config.kv_heads, 0).flatten(0, 1)
        layer.self_attn.router_q_proj[0].weight.copy_(each)
