"""Whether weights are numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    One such value makes the sum so too, and summing costs a fortieth of looking at each value; a sum that overflows by
    itself is looked at again.
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
