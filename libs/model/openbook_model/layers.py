"""Norms, rotary positions, convolutions and MLPs, in the variants of RetroConfig.

Axes: N sequences, T tokens (of any leading shape), D width, H heads, P head size, F rotary frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openbook_model.config import Mlp as MlpKind
from openbook_model.config import Norm as NormKind
from openbook_model.config import RotaryScaling


class Norm(nn.Module):
    """LayerNorm, LayerNorm-1p (multiplies by 1 + weight) or RMSNorm over the last axis, `size` wide."""

    def __init__(self, kind: NormKind, size: int, epsilon: float, bias: bool) -> None:
        super().__init__()
        self.kind, self.epsilon = kind, epsilon
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias and kind != "rmsnorm" else None

    def forward(self, hidden_TD: Tensor) -> Tensor:
        shape = self.weight.shape
        if self.kind == "rmsnorm":
            return F.rms_norm(hidden_TD, shape, self.weight, self.epsilon)
        weight = self.weight + 1 if self.kind == "layernorm1p" else self.weight
        return F.layer_norm(hidden_TD, shape, weight, self.bias, self.epsilon)


class Mlp(nn.Module):
    """GELU (exact or tanh) or SwiGLU; the gate's rows come first in SwiGLU's fused input projection."""

    def __init__(self, kind: MlpKind, size: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.up = nn.Linear(size, 2 * inner if kind == "swiglu" else inner, bias=bias)
        self.down = nn.Linear(inner, size, bias=bias)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        inner_TF = self.up(hidden_TD)
        if self.kind == "swiglu":
            gate_TF, value_TF = inner_TF.chunk(2, dim=-1)
            return self.down(F.silu(gate_TF) * value_TF)  # type: ignore[no-any-return]
        approximate = "tanh" if self.kind == "gelu_tanh" else "none"
        return self.down(F.gelu(inner_TF, approximate=approximate))  # type: ignore[no-any-return]


class Convolution(nn.Module):
    """A depthwise convolution: to each token, channel by channel, the weighted sum of itself and the `taps` - 1 before it."""

    def __init__(self, size: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, 1, taps))

    def forward(self, hidden_NTD: Tensor) -> Tensor:
        taps, length = self.weight.shape[-1], hidden_NTD.shape[1]
        padded_NTD = F.pad(hidden_NTD, (0, 0, taps - 1, 0))
        weights = self.weight[:, 0].unbind(-1)
        mixed_NTD = padded_NTD[:, :length] * weights[0]
        for start in range(1, taps):
            mixed_NTD = torch.addcmul(mixed_NTD, padded_NTD[:, start : start + length], weights[start])
        return mixed_NTD


class Rotary:
    """Cosines and sines of some positions, to turn the first `dim` channels of each head in pairs (i, i + dim/2)."""

    def __init__(
        self,
        positions_T: Tensor,
        dim: int,
        base: float,
        dtype: torch.dtype,
        scaling: RotaryScaling | None = None,
    ) -> None:
        exponents_F = torch.arange(0, dim, 2, device=positions_T.device, dtype=torch.float32) / dim
        frequencies_F = 1.0 / base**exponents_F
        if scaling is not None:
            frequencies_F = _stretched(frequencies_F, scaling)
        angles_TF = positions_T[..., None].float() * frequencies_F
        self.dim = dim
        self.cos_T1F = angles_TF.cos().to(dtype)[..., None, :]
        self.sin_T1F = angles_TF.sin().to(dtype)[..., None, :]

    def turn(self, heads_THP: Tensor) -> Tensor:
        """Rotate queries or keys [..., T, H, P]."""
        first_THF, second_THF, rest = heads_THP.split(
            (self.dim // 2, self.dim // 2, heads_THP.shape[-1] - self.dim), dim=-1
        )
        return torch.cat(
            (
                first_THF * self.cos_T1F - second_THF * self.sin_T1F,
                second_THF * self.cos_T1F + first_THF * self.sin_T1F,
                rest,
            ),
            dim=-1,
        )


def _stretched(frequencies_F: Tensor, scaling: RotaryScaling) -> Tensor:
    """Frequencies after RotaryScaling's rule."""
    turns_F = scaling.original_positions * frequencies_F / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept_F = ((turns_F - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies_F * (kept_F + (1 - kept_F) / scaling.factor)
