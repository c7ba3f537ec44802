"""The neighbour encoder: a small bidirectional transformer that reads each neighbour by itself.

Axes: N neighbours, R tokens of a neighbour, E encoder width, C chunks, M chunk length, D decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openbook_model.attention import CrossAttention, SelfAttention
from openbook_model.config import RetroConfig
from openbook_model.layers import Convolution, Mlp, Norm, Rotary


class EncoderBlock(nn.Module):
    """Convolution where there is one, self attention, cross attention to the asking chunk in the conditioned layers, MLP;
    pre-norm."""

    def __init__(self, config: RetroConfig, *, conditioned: bool) -> None:
        super().__init__()
        encoder = config.encoder
        size, heads, head_dim, bias = encoder.hidden_size, encoder.num_heads, encoder.head_dim, encoder.bias

        def norm() -> Norm:
            return Norm(config.norm, size, config.norm_epsilon, config.norm_bias)

        self.convolution = None
        if encoder.convolution:
            self.convolution_norm = norm()
            self.convolution = Convolution(size, encoder.convolution)
        self.attention_norm = norm()
        self.attention = SelfAttention(size, heads, heads, head_dim, qkv_bias=bias, output_bias=bias)
        self.conditioned = conditioned
        self.normalised_residual = encoder.cross_attention_residual == "normalised"
        if conditioned:
            self.cross_norm = norm()
            self.cross = CrossAttention(size, config.hidden_size, heads, heads, head_dim, bias=bias)
        self.mlp_norm = norm()
        self.mlp = Mlp(config.mlp, size, encoder.ffn_hidden_size, bias)

    def forward(
        self, hidden_NRE: Tensor, rotary: Rotary | None, mask: Tensor | None, chunk_states_CMD: Tensor | None
    ) -> Tensor:
        if self.convolution is not None:
            hidden_NRE = hidden_NRE + self.convolution(self.convolution_norm(hidden_NRE))
        hidden_NRE = hidden_NRE + self.attention(self.attention_norm(hidden_NRE), rotary, mask=mask)
        if self.conditioned:
            normed_NRE = self.cross_norm(hidden_NRE)
            residual_NRE = normed_NRE if self.normalised_residual else hidden_NRE
            assert chunk_states_CMD is not None, "a conditioned encoder needs the states of the asking chunks"
            by_chunk = normed_NRE.reshape(len(chunk_states_CMD), -1, normed_NRE.shape[-1])
            hidden_NRE = residual_NRE + self.cross(by_chunk, chunk_states_CMD).view_as(residual_NRE)
        return hidden_NRE + self.mlp(self.mlp_norm(hidden_NRE))  # type: ignore[no-any-return]


class NeighborEncoder(nn.Module):
    """Word embeddings of neighbours -> their states, [N, R, E].

    A width other than the decoder's gets an input projection. The neighbours of a chunk are consecutive rows, equally
    many for each chunk.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        encoder = config.encoder
        self.positions, self.head_dim, self.rotary_base = encoder.positions, encoder.head_dim, config.rotary_base
        self.input = (
            nn.Linear(config.hidden_size, encoder.hidden_size, bias=encoder.bias)
            if encoder.hidden_size != config.hidden_size
            else nn.Identity()
        )
        if encoder.positions == "learned":
            self.position_embedding = nn.Embedding(config.neighbor_length, encoder.hidden_size)
        self.blocks = nn.ModuleList(
            EncoderBlock(config, conditioned=layer in encoder.cross_attention_layers)
            for layer in range(1, encoder.num_layers + 1)
        )
        self.final_norm = (
            Norm(config.norm, encoder.hidden_size, config.norm_epsilon, config.norm_bias)
            if encoder.final_norm
            else nn.Identity()
        )

    def forward(
        self, embedded_NRD: Tensor, valid_NR: Tensor | None = None, chunk_states_CMD: Tensor | None = None
    ) -> Tensor:
        """States [N, R, E]; tokens outside `valid_NR` (None = all inside) are not attended to.

        `chunk_states_CMD` is required by a conditioned encoder, N a multiple of C, and unused by another one.
        A row without any valid token gives finite values that mean nothing.
        """
        hidden_NRE = self.input(embedded_NRD)
        positions_R = torch.arange(embedded_NRD.shape[1], device=embedded_NRD.device)
        rotary = None
        if self.positions == "learned":
            hidden_NRE = hidden_NRE + self.position_embedding(positions_R)
        elif self.positions == "rotary":
            rotary = Rotary(positions_R, self.head_dim, self.rotary_base, hidden_NRE.dtype)
        mask = None
        if valid_NR is not None:
            nothing_N1 = ~valid_NR.any(dim=1, keepdim=True)
            mask = (valid_NR | nothing_N1)[:, None, None, :]
        for block in self.blocks:
            hidden_NRE = block(hidden_NRE, rotary, mask, chunk_states_CMD)
        return self.final_norm(hidden_NRE)  # type: ignore[no-any-return]
