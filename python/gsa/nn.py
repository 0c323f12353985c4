"""The layer as torch.nn modules, with the checkpoint's parameter names. Nothing is computed here that the library computes."""
import math

import torch
from torch import nn
from torch.nn import functional as F

from . import ops


def rotate(x, cos, sin):
    """Half-split RoPE on the leading 2 * cos.shape[-1] dimensions. x [B,T,heads,E]; cos, sin [T, half]."""
    wide = torch.promote_types(cos.dtype, torch.float32)
    return ops.rotary(x, cos.to(wide), sin.to(wide))


def round_to_float8(x):
    """The nearest e4m3 numbers in the dtype of x, saturating; gradients pass but for what saturates."""
    clamped = x.clamp(-448, 448)
    return clamped + (clamped.detach().to(torch.float8_e4m3fn).to(x.dtype) - clamped).detach()


class Indexer(nn.Module):
    """The gated lightning indexer (paper Eq. 7). Reads a detached input, so no loss on it reaches the model."""

    def __init__(self, hidden_size, config):
        super().__init__()
        self.config = config
        heads, dim = config["index_heads"], config["index_dim"]
        self.query_proj = nn.Linear(hidden_size, heads * dim, bias=False)
        self.key_proj = nn.Linear(hidden_size, dim, bias=False)
        self.weight_proj = nn.Linear(hidden_size, heads)
        self.head_bias = nn.Parameter(torch.zeros(heads)) if config["activation"] != "relu" else None
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.register_buffer("running_mean", torch.tensor(math.nan, dtype=torch.float32))
        self.float8_keys = config.get("key_dtype", "compute") == "float8_e4m3fn"  # older checkpoints do not say

    def forward(self, h, cos, sin):
        """h [B,T,D] -> index_query [B,T,J,I], index_key [B,T,I], head_weight [B,T,J]."""
        h = h.detach()
        query = self.query_proj(h).unflatten(-1, (self.config["index_heads"], self.config["index_dim"]))
        key = self.key_proj(h).unsqueeze(2)
        weight = self.weight_proj(h)
        if self.config["index_rotary_dim"]:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        key = round_to_float8(key) if self.float8_keys else key
        return query, key.squeeze(2), weight if self.config["activation"] == "relu" else torch.sigmoid(weight)

    def stored(self, key):
        """Keys of this indexer as a cache stores them, exactly."""
        return key.to(torch.float8_e4m3fn) if self.float8_keys else key


class GatedSparseAttention(nn.Module):
    """One attention layer; `config` is the "gsa" section of a checkpoint's config.json as a dict."""

    def __init__(self, hidden_size, heads, key_value_heads, head_dim, config):
        super().__init__()
        self.config, self.head_dim, self.key_value_heads = config, head_dim, key_value_heads
        self.q_proj = nn.Linear(hidden_size, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=False)
        gates = config["gates"]
        self.value_gate = nn.Linear(hidden_size, key_value_heads * head_dim) if gates["value_gate"] else None
        self.output_gate = nn.Linear(hidden_size, heads * head_dim) if gates["output_gate"] else None
        self.indexer = Indexer(hidden_size, config["indexer"]) if config["indexer"] else None
        self.query_chunk = 0  # queries that are selected for at a time without gradients; 0: as suits the device

    def gate(self, x, gate, h):
        if gate is None:
            return x
        gated = ops.sigmoid_gate(x, gate(h))
        return gated * 2 if self.config["gates"]["identity"] else gated

    def attend_selected(self, query, key, value, index):
        """Selection and attention [B,T,H,E], a chunk of queries at a time where no gradient is asked for: a selection takes k numbers a
        query. query_chunk 0: as many as suit the device, on a GPU those that the selection works on at once on 132 multiprocessors."""
        tokens, offset = query.shape[1], key.shape[1] - query.shape[1]
        tile = self.config["indexer"]["query_tile"] if tokens >= self.config["indexer"]["query_tile"] else 1
        chunk = self.query_chunk or (132 * 96 if query.is_cuda else 2048)
        chunk = -(-chunk // tile) * tile
        if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
            chunk = max(tokens, 1)
        parts = []
        for begin in range(0, max(tokens, 1), chunk):
            end = min(begin + chunk, tokens)
            seen = offset + end
            part = (index[0][:, begin:end], index[1][:, :seen], index[2][:, begin:end])
            parts.append(ops.sparse_attention(query[:, begin:end], key[:, :seen], value[:, :seen], *self.select(part, tile))[0])
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def select(self, index, tile):
        """indices, counts and query_tile (`tile`) for index = (index_query, index_key, head_weight)."""
        options, budget, indexer = self.config["indexer"], self.config["budget"], self.indexer
        usable = budget["k_base"] if budget["rule"] == "fixed" else budget["k_max"]
        k_max = max(budget["k_min"], min(usable, index[1].shape[1]))
        mean = None if budget["rule"] == "fixed" else indexer.running_mean
        indices, counts, _ = ops.index_select(
            *index, indexer.head_bias, mean, budget["k_base"], budget["k_min"], k_max, budget["rule"],
            options["activation"], tile, options["keep_first"], options["keep_recent"], options["tile_factor"], indexer.log_scale)
        return indices, counts, tile

    def forward(self, h, rotary, index_rotary, append=None):
        """h [B,T,D], the layer's normed input -> [B,T,D].

        rotary and index_rotary are (cos, sin) [T, half] of the new tokens. append(key, value, index_key), when given, adds them to a
        cache and returns all that is cached, token-major.
        """
        def heads(x):
            return x.unflatten(-1, (-1, self.head_dim))

        query, key = rotate(heads(self.q_proj(h)), *rotary), rotate(heads(self.k_proj(h)), *rotary)
        value = heads(self.gate(self.v_proj(h), self.value_gate, h))
        index = self.indexer(h, *index_rotary) if self.indexer is not None else None
        if append is not None:
            key, value, index_key = append(key, value, self.indexer.stored(index[1]) if index else None)
            index = (index[0], index_key, index[2]) if index else None
        if index is None:
            mask = None
            if query.shape[1] < key.shape[1]:
                mask = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=h.device).tril(key.shape[1] - query.shape[1])
            attention = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask,
                                                       is_causal=mask is None, enable_gqa=True).transpose(1, 2)
        else:
            attention = self.attend_selected(query, key, value, index)
        return self.o_proj(self.gate(attention.flatten(2), self.output_gate, h))
