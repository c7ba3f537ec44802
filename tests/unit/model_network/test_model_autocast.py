"""Attention under autocast is that of float32, to what bfloat16 rounds, with AMX and without, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openbook_model import attention
from openbook_model.attention import attend


def parted(dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8))
    return [
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_attention_is_that_of_float32_whatever_is_cast_around_it(
    amx: bool, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries and keys that rotary positions have turned are float32 there, values bfloat16."""
    monkeypatch.setattr(attention, "_AMX", amx)
    mask = (torch.arange(7) < torch.tensor([[4], [7]]))[:, None, None] if masked else None
    low, high = torch.bfloat16, torch.float32
    for dtypes in ((low, low, low), (high, high, low)):
        given = parted(dtypes)
        with torch.autocast("cpu", torch.bfloat16):
            out = attend(*given, mask=mask)
        out.float().square().sum().backward()
        exact = [each.detach().float().requires_grad_() for each in given]
        wanted = attend(*exact, mask=mask)
        wanted.square().sum().backward()
        assert out.dtype == dtypes[0]
        with torch.no_grad():
            torch.testing.assert_close(attend(*given, mask=mask).float(), wanted, rtol=8e-3, atol=8e-3)
        tolerance = 1e-6 if dtypes[0] == high else 8e-3
        torch.testing.assert_close(out.float(), wanted, rtol=tolerance, atol=tolerance)
        for mine, its in zip(given, exact, strict=True):
            assert mine.grad is not None and its.grad is not None
            torch.testing.assert_close(mine.grad.float(), its.grad, rtol=2e-2, atol=2e-2)
