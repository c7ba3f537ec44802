"""The full pass written token by token from design section 6: no grid, no shift, no batching, explicit softmax.

Uses a RetroModel's parameters and its elementwise pieces (norms, MLPs), nothing of its attention or its chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openbook_model.block import Block
from openbook_model.encoder import EncoderBlock
from openbook_model.layers import Norm
from openbook_model.model import RetroModel


def _attention(query_TX: Tensor, key_SX: Tensor, value_SX: Tensor, head_dim: int, seen_TS: Tensor) -> Tensor:
    groups = query_TX.shape[1] // key_SX.shape[1]
    heads = []
    for head in range(query_TX.shape[1] // head_dim):
        q = query_TX[:, head * head_dim : (head + 1) * head_dim]
        kv = slice(head // groups * head_dim, (head // groups + 1) * head_dim)
        scores = (q @ key_SX[:, kv].T) / math.sqrt(head_dim)
        heads.append(torch.softmax(scores.masked_fill(~seen_TS, -math.inf), dim=-1) @ value_SX[:, kv])
    return torch.cat(heads, dim=-1)


def _turn(states_TX: Tensor, head_dim: int, dim: int, base: float) -> Tensor:
    """Rotary positions by complex numbers."""
    out = states_TX.clone()
    half = dim // 2
    for t in range(len(states_TX)):
        angles = t / base ** (torch.arange(half, dtype=torch.float64) * 2 / dim)
        turn = torch.polar(torch.ones_like(angles), angles)
        for start in range(0, states_TX.shape[1], head_dim):
            first, second = states_TX[t, start : start + half], states_TX[t, start + half : start + dim]
            turned = torch.complex(first.double(), second.double()) * turn
            out[t, start : start + half] = turned.real.to(out.dtype)
            out[t, start + half : start + dim] = turned.imag.to(out.dtype)
    return out


def _self_attention(block: Block | EncoderBlock, x: Tensor, seen: Tensor, turn: tuple[int, float] | None) -> Tensor:
    layer = block.attention
    sizes = [n * layer.head_dim for n in (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)]
    q, k, v = layer.qkv(x).split(sizes, dim=-1)
    if turn is not None:
        q, k = (_turn(states, layer.head_dim, *turn) for states in (q, k))
    out: Tensor = layer.output(_attention(q, k, v, layer.head_dim, seen))
    return out


def _mixed(x: Tensor, weight: Tensor) -> Tensor:
    """The depthwise convolution: the last tap is the token's own."""
    out = torch.zeros_like(x)
    taps = weight.shape[2]
    for t in range(len(x)):
        for back in range(min(taps, t + 1)):
            out[t] += x[t - back] * weight[:, 0, taps - 1 - back]
    return out


def _encode(model: RetroModel, ids_R: Tensor, chunk_MD: Tensor) -> Tensor:
    encoder, config = model.encoder, model.config
    assert encoder is not None
    x = model.embedding.weight[ids_R]
    if config.encoder.positions == "shared":
        x = x + model.position_embedding.weight[: len(ids_R)]
    x = encoder.input(x)
    if config.encoder.positions == "learned":
        x = x + encoder.position_embedding.weight[: len(ids_R)]
    everything = torch.ones(len(ids_R), len(ids_R), dtype=torch.bool)
    turn = (config.encoder.head_dim, config.rotary_base) if config.encoder.positions == "rotary" else None
    for block in encoder.blocks:
        if config.encoder.convolution:
            x = x + _mixed(block.convolution_norm(x), block.convolution.weight)
        x = x + _self_attention(block, block.attention_norm(x), everything, turn)
        if block.conditioned:
            normed = block.cross_norm(x)
            k, v = block.cross.key_value(chunk_MD).chunk(2, dim=-1)
            seen = torch.ones(len(x), len(chunk_MD), dtype=torch.bool)
            found = block.cross.output(_attention(block.cross.query(normed), k, v, block.cross.head_dim, seen))
            x = (normed if config.encoder.cross_attention_residual == "normalised" else x) + found
        x = x + block.mlp(block.mlp_norm(x))
    return encoder.final_norm(x) if isinstance(encoder.final_norm, Norm) else x


@torch.no_grad()
def dense_forward(
    model: RetroModel, ids_T: Tensor, neighbor_ids_LKR: Tensor, lengths_LK: Tensor, first_chunk: int
) -> Tensor:
    """Logits [T, V] of one sequence; masked neighbour padding."""
    config, m = model.config, model.config.chunk_length
    x = model.embedding.weight[ids_T]
    turn = None
    if config.positions == "learned":
        x = x + model.position_embedding.weight[: len(ids_T)]
    else:
        turn = (config.rotary_dim, config.rotary_base)
    causal = torch.ones(len(ids_T), len(ids_T), dtype=torch.bool).tril()
    borders = [0, *range(first_chunk, len(ids_T) + 1, m)]
    encoded: dict[int, Tensor] = {}
    first = True
    for block in model.blocks:
        x = x + _self_attention(block, block.attention_norm(x), causal, turn)
        if block.has_cross:
            normed = block.cross_norm(x)
            if first:
                for c in range(len(borders) - 1):
                    tokens = normed[borders[c] : borders[c + 1]]
                    chunk = torch.cat((tokens, torch.zeros(m - len(tokens), tokens.shape[1])))
                    present = [(c, k) for k in range(lengths_LK.shape[1]) if lengths_LK[c, k] > 0]
                    if present:
                        encoded[c] = torch.cat(
                            [_encode(model, neighbor_ids_LKR[i, k, : int(lengths_LK[i, k])], chunk) for i, k in present]
                        )
                first = False
            x = x.clone()
            for p in range(first_chunk - 1, len(ids_T)):
                chunk_number = (p - (first_chunk - 1)) // m
                if chunk_number in encoded:
                    keys, values = block.cross.key_value(encoded[chunk_number]).chunk(2, dim=-1)
                    seen = torch.ones(1, len(keys), dtype=torch.bool)
                    query = block.cross.query(normed[p : p + 1])
                    found = block.cross.output(_attention(query, keys, values, block.cross.head_dim, seen))
                    x[p] += (found[0] * block.gate) if block.gate is not None else found[0] * block.constant_gate
        x = x + block.mlp(block.mlp_norm(x))
    normed = model.final_norm(x)
    return normed @ (model.embedding.weight if model.head is None else model.head.weight).T
