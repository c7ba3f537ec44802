"""Self attention and cross attention as projections around `scaled_dot_product_attention`.

The projections are methods of their own, because cached decoding keeps keys and values where the full pass does not.

Axes: B batch (or chunk rows), T queries, S keys, D width, H heads, G key/value heads, P head size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openbook_model.layers import Norm, Rotary

_AMX = bool(torch.cpu.get_capabilities().get("amx_bf16"))


def attend(
    query_BTHP: Tensor, key_BSGP: Tensor, value_BSGP: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attention [B, T, H*P], scaled by 1/sqrt(P); `mask` is boolean (True = seen), broadcast to [B, H, T, S].

    On a CPU the arithmetic is in float32 also for bfloat16 inputs and under autocast: its bfloat16 kernel, above all its
    backward pass, is several times slower on some processors and no faster on others. With AMX it is two to four times
    as fast, but for the backward pass under a mask. On a GPU keys and values are
    repeated for grouped queries under a mask: no fused kernel there takes both, so all scores would be in memory at once
    (huggingface/transformers#39412).
    """
    dtype = query_BTHP.dtype
    groups = query_BTHP.shape[2] // key_BSGP.shape[2]
    if groups > 1 and mask is not None and query_BTHP.device.type == "cuda":
        key_BSGP, value_BSGP = (each.repeat_interleave(groups, dim=2) for each in (key_BSGP, value_BSGP))
        groups = 1
    on_cpu = query_BTHP.device.type == "cpu"
    dtypes = {dtype, key_BSGP.dtype, value_BSGP.dtype}
    quick = _AMX and dtypes == {torch.bfloat16} and (mask is None or not torch.is_grad_enabled())
    if on_cpu and torch.bfloat16 in dtypes and not quick:
        query_BTHP, key_BSGP, value_BSGP = query_BTHP.float(), key_BSGP.float(), value_BSGP.float()
    with torch.autocast("cpu", enabled=False) if on_cpu and torch.is_autocast_enabled("cpu") else nullcontext():
        out_BHTP = F.scaled_dot_product_attention(
            query_BTHP.transpose(1, 2),
            key_BSGP.transpose(1, 2),
            value_BSGP.transpose(1, 2),
            attn_mask=mask,
            is_causal=causal,
            enable_gqa=groups > 1,
        )
    return out_BHTP.transpose(1, 2).flatten(2).to(dtype)


class SelfAttention(nn.Module):
    """Multi-head or grouped-query attention; `qkv` holds all query rows, then all key rows, then all value rows.

    `head_norm` makes the norm of queries and the one of keys, over the channels of a head.
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool,
        output_bias: bool,
        head_norm: Callable[[], Norm] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.qkv = nn.Linear(size, (num_heads + 2 * num_kv_heads) * head_dim, bias=qkv_bias)
        self.output = nn.Linear(num_heads * head_dim, size, bias=output_bias)
        self.query_norm: Norm | None = head_norm() if head_norm else None
        self.key_norm: Norm | None = head_norm() if head_norm else None

    def project(self, hidden_TD: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query [..., H, P], key and value [..., G, P] of hidden states [..., D]."""
        heads = self.qkv(hidden_TD).unflatten(-1, (-1, self.head_dim))
        query_THP, key_TGP, value_TGP = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=-2)
        if self.query_norm is not None and self.key_norm is not None:
            query_THP, key_TGP = self.query_norm(query_THP), self.key_norm(key_TGP)
        if rotary is not None:
            query_THP, key_TGP = rotary.turn(query_THP), rotary.turn(key_TGP)
        return query_THP, key_TGP, value_TGP

    def forward(
        self, hidden_BTD: Tensor, rotary: Rotary | None, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        query_BTHP, key_BTGP, value_BTGP = self.project(hidden_BTD, rotary)
        return self.output(attend(query_BTHP, key_BTGP, value_BTGP, mask=mask, causal=causal))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Attention to states of another width, without positions; `key_value` holds all key rows, then all value rows."""

    def __init__(
        self, size: int, source_size: int, num_heads: int, num_kv_heads: int, head_dim: int, *, bias: bool
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.query = nn.Linear(size, num_heads * head_dim, bias=bias)
        self.key_value = nn.Linear(source_size, 2 * num_kv_heads * head_dim, bias=bias)
        self.output = nn.Linear(num_heads * head_dim, size, bias=bias)

    def project_query(self, hidden_TD: Tensor) -> Tensor:
        """Query [..., H, P] of hidden states [..., D]."""
        return self.query(hidden_TD).unflatten(-1, (self.num_heads, self.head_dim))  # type: ignore[no-any-return]

    def project_source(self, source_SE: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value [..., G, P] of source states [..., E]."""
        heads = self.key_value(source_SE).unflatten(-1, (2, self.num_kv_heads, self.head_dim))
        key_SGP, value_SGP = heads.unbind(-3)
        return key_SGP, value_SGP

    def forward(self, hidden_BTD: Tensor, source_BSE: Tensor, mask: Tensor | None = None) -> Tensor:
        key_BSGP, value_BSGP = self.project_source(source_BSE)
        return self.output(attend(self.project_query(hidden_BTD), key_BSGP, value_BSGP, mask=mask))  # type: ignore[no-any-return]
