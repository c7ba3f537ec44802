"""Attention under autocast: float32 on a CPU, also for what mixes both types, forwards and backwards."""

from __future__ import annotations

import torch
from torch import Tensor

from openbook_model.attention import attend


def parted(dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8))
    return [
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def test_the_attention_is_that_of_float32_whatever_is_cast_around_it() -> None:
    """Queries and keys that rotary positions have turned are float32 there, values bfloat16."""
    low, high = torch.bfloat16, torch.float32
    for dtypes in ((low, low, low), (high, high, low)):
        given = parted(dtypes)
        with torch.autocast("cpu", torch.bfloat16):
            out = attend(*given)
        out.float().square().sum().backward()
        exact = [each.detach().float().requires_grad_() for each in given]
        wanted = attend(*exact)
        wanted.square().sum().backward()
        assert out.dtype == dtypes[0]
        tolerance = 1e-6 if dtypes[0] == high else 8e-3
        torch.testing.assert_close(out.float(), wanted, rtol=tolerance, atol=tolerance)
        for mine, its in zip(given, exact, strict=True):
            assert mine.grad is not None and its.grad is not None
            torch.testing.assert_close(mine.grad.float(), its.grad, rtol=2e-2, atol=2e-2)
