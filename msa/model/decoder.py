"""The decoder: document tower, question tower and plain LM of one set of weights (paper section 3).

Parameter names are those of Hugging Face's Llama / Qwen2 / Qwen3 and of the released MSA checkpoints.

Shape legend: B rows, N documents, L padded document length, M own tokens, S memory slots (pooled chunks), H query
heads, G KV heads, D head_dim, E hidden size, W = G * D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msa.model import router
from msa.model.config import ModelConfig
from msa.model.rope import rotary_angles, rotate
from msa.ops import dispatch
from msa.ops.norm import rms_norm


class PooledLayer(NamedTuple):
    """What one routed layer keeps of N documents: routing keys [N, C, W], K and V [N, C, G, D]."""

    routing: Tensor
    keys: Tensor
    values: Tensor


@dataclass
class Selection:
    """Chosen memory of one routed layer: K and V [B, S, G, D], their mask [B, S], and what routing said."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    scores: Tensor | None = None  # document scores: of all documents [B, N] in training, of the chosen ones [B, k] else
    documents: Tensor | None = None  # [B, k] indices of the chosen documents, best first; -1 where there are fewer

    def ready(self) -> Selection:
        """The selection itself; one that is still being fetched waits here."""
        return self


class Memory(Protocol):
    """Something a question can be routed over: a training bank, a stored bank, a sharded one."""

    def select(self, layer: int, folded: Tensor, routing_mask: Tensor, reduce: str = "max") -> Selection:
        """Choose documents of routed layer number ``layer`` (0-based among them) for folded queries [B, M, W].

        ``reduce``: over the tokens of ``routing_mask`` [B, M], max or mean.
        """
        ...

    def select_fused(
        self, folded: list[Tensor], routing_mask: Tensor, shares: list[float], reduce: str = "max"
    ) -> list[Selection]:
        """Choose one list of documents by the weighted sum of all routed layers' scores; its memory in each layer."""
        ...


@dataclass
class Cache:
    """Keys and values that a row has already computed, and its chosen memory.

    ``keys[i]``/``values[i]``: [B, capacity, G, D] of layer i, the first T in use; ``valid``: [B, T] real tokens;
    ``selected[i]``: of routed layer i.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    valid: Tensor | None = None
    selected: dict[int, Selection] = field(default_factory=dict)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [B, M, G, D] of new tokens to a layer; all of its keys and values so far."""
        end = self.valid.shape[1]
        if layer == len(self.keys):
            self.keys.append(k)
            self.values.append(v)
            return k, v
        for store, new in ((self.keys, k), (self.values, v)):
            if store[layer].shape[1] < end:  # grow by half again, so that decoding does not copy at every token
                room = max(end, store[layer].shape[1] * 3 // 2) - store[layer].shape[1]
                store[layer] = F.pad(store[layer], (0, 0, 0, 0, 0, room))
            store[layer][:, end - new.shape[1] : end] = new
        return self.keys[layer][:, :end], self.values[layer][:, :end]

    def rows(self, chosen: Tensor) -> Cache:
        """The cache of some rows."""
        keys, values = ([layer[chosen] for layer in store] for store in (self.keys, self.values))
        selected = {n: Selection(s.keys[chosen], s.values[chosen], s.mask[chosen]) for n, s in self.selected.items()}
        return Cache(keys, values, self.valid[chosen], selected)


class RMSNorm(nn.RMSNorm):
    """Root mean square norm with a gain, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Projections of one layer; a routed layer adds the router's two."""

    def __init__(self, config: ModelConfig, routed: bool):
        super().__init__()
        self.config = config
        hidden, query, key = config.hidden_size, config.query_width, config.kv_width
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(hidden, n, config.qkv_bias) for n in (query, key, key))
        self.o_proj = nn.Linear(query, hidden, config.output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        if routed:
            # a list of one, as in the released checkpoints' names
            heads, _, length = config.routing_heads
            self.router_q_proj = nn.ModuleList([nn.Linear(hidden, heads * length, config.form.bias)])
            self.router_k_proj = nn.ModuleList([nn.Linear(hidden, config.routing_width, config.form.bias)])

    def _heads(self, projection: nn.Module, x: Tensor, length: int | None = None) -> Tensor:
        return projection(x).unflatten(-1, (-1, length or self.config.head_dim))

    def queries(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Rotated queries [..., H, D] of normed hidden states [..., E]."""
        q = self._heads(self.q_proj, x)
        return rotate(self.q_norm(q) if self.config.qk_norm else q, *angles)

    def keys(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Rotated keys [..., G, D]."""
        k = self._heads(self.k_proj, x)
        return rotate(self.k_norm(k) if self.config.qk_norm else k, *angles)

    def values(self, x: Tensor) -> Tensor:
        """Values [..., G, D]."""
        return self._heads(self.v_proj, x)

    def routing_queries(self, x: Tensor) -> Tensor:
        """Folded routing queries [..., W]; no RoPE."""
        _, groups, length = self.config.routing_heads
        q = self._heads(self.router_q_proj[0], x, length)
        form = self.config.form
        return router.fold_queries(q, groups, self.config.normalise_routing and not form.query_norms, form.head_weights)

    def routing_keys(self, x: Tensor) -> Tensor:
        """Routing keys [..., W] of pooled hidden states; no RoPE."""
        k = self._heads(self.router_k_proj[0], x, self.config.routing_heads[2])
        return router.normalise_keys(k) if self.config.normalise_routing else k.float().flatten(-2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Grouped-query attention of [B, M, H, D] over [B, T, G, D] and the output projection.

        ``mask`` is bool [B, 1, M, T]; None means causal with M = T.
        """
        dtype, q, k, v = q.dtype, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if q.device.type == "cpu":  # the CPU kernel is faster in float32 than in bfloat16, most of all backward
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast(q.device.type, enabled=False):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(-2).to(dtype))

    def attend_in_place(
        self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor, memory: Selection, reads: Tensor | None
    ) -> Tensor:
        """What :meth:`attend` computes over memory and own tokens together, each read where it lies.

        ``k``, ``v`` [B, T, G, D], ``valid`` [B, T]: own tokens, the last M of which ask; ``reads`` [B, M]: memory too.
        """
        with torch.autocast(q.device.type, enabled=False):
            pooled = memory.keys.flatten(0, 1), memory.values.flatten(0, 1)
            slots = torch.arange(memory.mask.numel(), device=q.device).view(memory.mask.shape)
            slots = slots.masked_fill(~memory.mask, -1)
            out = dispatch.attend_pieces(q, k, v, valid, *pooled, slots, reads_memory=reads)
        return self.o_proj(out.flatten(-2))


class MLP(nn.Module):
    """Gated feed-forward of a layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        if torch.is_grad_enabled():
            return self.down_proj(F.silu(gate) * self.up_proj(x))
        return self.down_proj(F.silu(gate, inplace=True).mul_(self.up_proj(x)))  # the same in half of the memory


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: ModelConfig, routed: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, routed)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention output and the feed-forward to the residual stream."""
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm (the ``model.`` part of a checkpoint)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index in config.routed_layers) for index in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class MSAModel(nn.Module):
    """A decoder-only LM that can also encode documents into pooled memory and answer over a memory."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tied_head:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.routed_layers:
            self.register_buffer("temperature", torch.tensor(config.aux_temperature))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary angles of integer positions."""
        return rotary_angles(positions, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)

    def logits(self, hidden: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        """Logits of final hidden states (after the last norm), over the vocabulary or some tokens of it."""
        weight = self.model.embed_tokens.weight if self.config.tied_head else self.lm_head.weight
        return F.linear(hidden, weight if vocabulary is None else weight[vocabulary])

    def encode(self, ids: Tensor, lengths: Tensor) -> list[PooledLayer]:
        """Document tower (stage 1): pooled memory of each routed layer, documents blind to one another.

        Args:
            ids: right-padded tokens [N, L]; lengths: [N].

        Returns:
            One :class:`PooledLayer` a routed layer, C = ceil(L / P) chunks (zero past a document's end).
        """
        pool = self.config.pool_tokens
        angles = self.angles(torch.arange(ids.shape[1], device=ids.device))
        x = self.model.embed_tokens(ids)
        pooled = []
        for index, layer in enumerate(self.model.layers):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            k = attention.keys(h, angles)
            if index in self.config.routed_layers:
                # the projections of K^R and V are linear, so they may follow the pooling at 1/P of the cost
                mean = dispatch.pool_chunks(h, lengths, pool).to(h.dtype)
                keys = dispatch.pool_chunks(k, lengths, pool).to(h.dtype)
                pooled.append(PooledLayer(attention.routing_keys(mean), keys, attention.values(mean)))
                if len(pooled) == len(self.config.routed_layers):
                    break  # nothing above the last routed layer reads a document
            # padding stands on the right, so plain causal attention never lets a real token see it
            x = layer.finish(x, attention.attend(attention.queries(h, angles), k, attention.values(h), None))
        return pooled

    def states(self, ids: Tensor, positions: Tensor) -> Iterator[Tensor]:
        """What each layer's projections read, without any memory: its normed input [B, M, E], layer by layer.

        Args:
            ids: right-padded tokens [B, M]; positions: [M] or [B, M].
        """
        x, angles = self.model.embed_tokens(ids), self.angles(positions)
        for layer in self.model.layers:
            attention, h = layer.self_attn, layer.input_layernorm(x)
            yield h
            q, k = attention.queries(h, angles), attention.keys(h, angles)
            x = layer.finish(x, attention.attend(q, k, attention.values(h), None))

    def _routing_queries(self, ids: Tensor, positions: Tensor) -> list[Tensor]:
        """Folded routing queries [B, M, W] of every routed layer, on the question alone."""
        found: list[Tensor] = []
        for index, h in enumerate(self.states(ids, positions)):
            if index in self.config.routed_layers:
                found.append(self.model.layers[index].self_attn.routing_queries(h))
            if len(found) == len(self.config.routed_layers):
                break
        return found

    def forward(
        self, ids: Tensor, positions: Tensor, valid: Tensor | None = None, memory: Memory | None = None,
        routing_mask: Tensor | None = None, reads_memory: Tensor | None = None, cache: Cache | None = None,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, list[Selection]]:  # fmt: skip
        """Question tower (stages 2 and 3), and the plain LM where there is no memory.

        Args:
            ids, positions: [B, M]; rows are right-padded where ``valid`` [B, M] is False.
            memory: routed over once, at prefill; later calls with the same ``cache`` reuse the choice.
            routing_mask: tokens that take part in routing [B, M].
            reads_memory: tokens that may attend to memory [B, M] (all but the template head); default all.
            cache: filled and extended in place when given.
            wanted: places whose final states are wanted [B, K]; the last layer then computes no others.

        Returns:
            Final hidden states [B, M, E], or [B, K, E] where places are wanted, and the selections of this call's
            routed layers.
        """
        x = self.model.embed_tokens(ids)
        angles, own_mask = self.angles(positions), _own_mask(ids, valid, cache)
        selections: list[Selection] = []
        form, fused = self.config.form, []
        if memory is not None and form.query_reduce == "last":
            routing_mask = router.last_only(routing_mask)
        reduce = "mean" if form.query_reduce == "mean" else "max"
        if memory is not None and form.fused and (cache is None or not cache.selected):
            shares = form.shares(len(self.config.routed_layers))
            fused = memory.select_fused(self._routing_queries(ids, positions), routing_mask, shares, reduce)
        for index, layer in enumerate(self.model.layers):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            number = self.config.routed_layers.index(index) if index in self.config.routed_layers else -1
            chosen = cache.selected.get(number) if cache is not None else None
            fresh = chosen is None and memory is not None and number >= 0
            if fresh:  # before the projections, which are computed while the winners are fetched
                if fused:
                    chosen = fused[number]
                else:
                    chosen = memory.select(number, attention.routing_queries(h), routing_mask, reduce)
            k, v = attention.keys(h, angles), attention.values(h)
            if cache is not None:
                k, v = cache.extend(index, k, v)
            mask = own_mask
            if fresh:
                chosen = chosen.ready()
                chosen = replace(chosen, keys=chosen.keys.to(k.dtype), values=chosen.values.to(k.dtype))
                selections.append(chosen)
                if cache is not None:
                    cache.selected[number] = chosen
            in_place = chosen is not None and cache is not None and wanted is None
            if in_place and dispatch.attends_in_place(k, ids.shape[1]):
                q = attention.queries(h, angles)
                x = layer.finish(x, attention.attend_in_place(q, k, v, cache.valid, chosen, reads_memory))
                continue
            if chosen is not None:
                k, v = torch.cat((chosen.keys, k), 1), torch.cat((chosen.values, v), 1)
                mask = _with_memory(mask, chosen.mask, reads_memory, ids.shape)
            if wanted is not None and layer is self.model.layers[-1]:
                mask = _causal(ids.shape, ids.device) if mask is None else mask
                mask = mask.gather(2, wanted[:, None, :, None].expand(-1, 1, -1, mask.shape[-1]))
                x, h, *angles = (
                    part.expand(*ids.shape, -1).gather(1, wanted.unsqueeze(-1).expand(-1, -1, part.shape[-1]))
                    for part in (x, h, *angles)
                )
            x = layer.finish(x, attention.attend(attention.queries(h, angles), k, v, mask))
        return self.model.norm(x), selections


def _own_mask(ids: Tensor, valid: Tensor | None, cache: Cache | None) -> Tensor | None:
    """Mask [B, 1, M, T] of own tokens; None where plain causal attention says the same."""
    if cache is None:
        return None
    past, length = cache.valid, ids.shape[1]
    now = valid if valid is not None else torch.ones_like(ids, dtype=torch.bool)
    cache.valid = now if past is None else torch.cat((past, now), 1)
    if past is None:
        return None
    own = _causal(ids.shape, ids.device) & now[:, None, None] | torch.eye(length, dtype=torch.bool, device=ids.device)
    return torch.cat((past[:, None, None].expand(-1, 1, length, -1), own), -1)


def _causal(shape: torch.Size, device: torch.device) -> Tensor:
    """Plain causal mask [B, 1, M, M]."""
    rows, length = shape
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(rows, 1, -1, -1)


def _with_memory(mask: Tensor | None, slots: Tensor, reads: Tensor | None, shape: torch.Size) -> Tensor:
    """Put the memory's columns in front of the own-token mask: [B, 1, M, S + T]."""
    if mask is None:
        mask = _causal(shape, slots.device)
    front = slots[:, None, None, :].expand(-1, 1, shape[1], -1)
    if reads is not None:
        front = front & reads[:, None, :, None]
    return torch.cat((front, mask), -1)
