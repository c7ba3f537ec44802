"""Where Faiss computes while it trains and adds."""

from __future__ import annotations

from typing import Literal, get_args

import faiss

from openbook_core.errors import ArgumentError

Device = Literal["auto", "cpu", "cuda"]


def uses_gpu(device: str) -> bool:
    """Whether to use the GPUs; ArgumentError where "cuda" is asked for and Faiss has none."""
    if device not in get_args(Device):
        raise ArgumentError(f"device: {device!r} is not known; known: {', '.join(get_args(Device))}", field="device")
    found = faiss.get_num_gpus() if device != "cpu" else 0
    if device == "cuda" and not found:
        raise ArgumentError(
            "device: cuda was asked for, but Faiss finds no GPU: install a Faiss that was built for GPUs on a machine that has "
            "one, or use cpu",
            field="device",
        )
    return found > 0
