"""A decoder block, with chunked cross attention (CCA) between self attention and MLP in the layers that have it.

Axes: B batch, T tokens, D width, C chunk rows (B*L), M chunk length, S keys of a chunk (K*R), E encoder width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openbook_model.attention import CrossAttention, SelfAttention
from openbook_model.chunks import ChunkGrid
from openbook_model.config import RetroConfig
from openbook_model.layers import Mlp, Norm, Rotary


@dataclass(frozen=True)
class Retrieval:
    """What the CCA layers of one forward pass share.

    `encode` gives the neighbours' states [C, S, E], from the asking chunks' states [C, M, D] at the first CCA layer if
    the encoder is conditioned on them.
    `mask_CS` is True for keys that may be attended to (None: all), with at least one in each row; `keep_BT1` is 0
    where a position's CCA must add exactly nothing (None: decided by the grid alone).
    """

    grid: ChunkGrid
    encode: Callable[[Tensor | None], Tensor]
    mask_CS: Tensor | None = None
    keep_BT1: Tensor | None = None


class Block(nn.Module):
    """Norm, self attention, residual, [norm, gated CCA, residual,] norm, MLP, residual.

    `gate` is a constant, or a learned scalar of shape [1].
    """

    gate: nn.Parameter | None

    def __init__(self, config: RetroConfig, layer: int) -> None:
        super().__init__()

        def norm() -> Norm:
            return Norm(config.norm, config.hidden_size, config.norm_epsilon, config.norm_bias)

        def head_norm() -> Norm:
            return Norm(config.norm, config.head_dim, config.norm_epsilon, bias=False)

        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        self.attention_norm = norm()
        self.attention = SelfAttention(
            config.hidden_size,
            *heads,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            head_norm=head_norm if config.qk_norm else None,
        )
        self.has_cross = layer in config.cross_attention_layers
        if self.has_cross:
            self.cross_norm = norm()
            self.cross = CrossAttention(
                config.hidden_size, config.encoder.hidden_size, *heads, bias=config.cross_attention_bias
            )
            self.register_parameter("gate", nn.Parameter(torch.empty(1)) if config.gate == "learned" else None)
        self.constant_gate = 1.0 if config.gate == "learned" else config.gate
        self.mlp_norm = norm()
        self.mlp = Mlp(config.mlp, config.hidden_size, config.ffn_hidden_size, config.mlp_bias)

    def forward(
        self,
        hidden_BTD: Tensor,
        rotary: Rotary | None,
        mask: Tensor | None = None,
        retrieval: Retrieval | None = None,
        encoded_CSE: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Next states and the neighbours' states, which the first CCA layer computes and later ones are given.

        Self attention is causal; `mask` [B, 1, T, T] replaces that (packed documents). Without `retrieval` the cross
        attention is skipped.
        """
        hidden_BTD = self.attend_own(hidden_BTD, rotary, mask)
        if self.has_cross and retrieval is not None:
            normed_BTD = self.cross_norm(hidden_BTD)
            if encoded_CSE is None:
                encoded_CSE = retrieval.encode(retrieval.grid.to_chunks(normed_BTD))
            key_mask = None if retrieval.mask_CS is None else retrieval.mask_CS[:, None, None, :]
            query_CMD = retrieval.grid.to_queries(normed_BTD)
            # Rows that share their neighbours ask them as one.
            shared_CMD = query_CMD.reshape(len(encoded_CSE), -1, query_CMD.shape[-1])
            found_CMD = self.cross(shared_CMD, encoded_CSE, key_mask).view_as(query_CMD)
            found_BTD = self.gated(retrieval.grid.from_queries(found_CMD))
            if retrieval.keep_BT1 is not None:
                found_BTD = torch.where(retrieval.keep_BT1, found_BTD, 0.0)
            hidden_BTD = hidden_BTD + found_BTD
        return self.feed_forward(hidden_BTD), encoded_CSE

    def attend_own(self, hidden_BTD: Tensor, rotary: Rotary | None, mask: Tensor | None) -> Tensor:
        """Norm, self attention, residual. A trainer may compile it, `cross` and `feed_forward`: shapes only in them."""
        attended_BTD = self.attention(self.attention_norm(hidden_BTD), rotary, mask=mask, causal=mask is None)
        return hidden_BTD + attended_BTD  # type: ignore[no-any-return]

    def feed_forward(self, hidden_BTD: Tensor) -> Tensor:
        """Norm, MLP, residual."""
        return hidden_BTD + self.mlp(self.mlp_norm(hidden_BTD))  # type: ignore[no-any-return]

    def gated(self, found_TD: Tensor) -> Tensor:
        """The cross attention's output times the layer's gate."""
        if self.gate is not None:
            return found_TD * self.gate
        return found_TD if self.constant_gate == 1.0 else found_TD * self.constant_gate
