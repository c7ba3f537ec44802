"""How a run's arithmetic is done: its dtype, what the backward pass computes anew, what torch.compile translates."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from openbook_model import RetroModel
from openbook_model.precision import probe_precision
from openbook_trainer.config import ComputeConfig

_PEAK_SIZES = {"cpu": 1024, "cuda": 8192}
_PEAK_RUNS = 5


def compute_dtype(config: ComputeConfig, device: torch.device, resumed: Mapping[str, Any] | None = None) -> str:
    """ "float32" or "bfloat16": as configured; for "auto" what the resumed run's settings say, or a measurement."""
    if config.dtype != "auto":
        return config.dtype
    if resumed is not None:
        return str(resumed["compute"]["dtype"])
    return str(probe_precision(device).dtype).removeprefix("torch.")


def prepare_blocks(model: RetroModel, config: ComputeConfig) -> None:
    """Compile and checkpoint each block's computation in place, before the model is sharded.

    A compiled decoder block is three graphs, around the moves between tokens and chunks, whose offsets change with
    every batch: none of them is compiled again for other phases or lengths of neighbours.
    """
    readers = model.encoder.blocks if model.encoder is not None else ()
    if config.compile:
        for block in model.decoder_blocks():
            _translate(block, "attend_own")
            _translate(block, "feed_forward")
            if block.has_cross:
                _translate(block.cross, "forward")
        for reader in readers:
            _translate(reader, "forward")
    if config.checkpointing:
        for block in (*readers, *model.blocks):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _translate(module: torch.nn.Module, method: str) -> None:
    setattr(module, method, torch.compile(getattr(module, method), fullgraph=True))


@torch.no_grad()
def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few products of large square matrices (at most a second)."""
    size = _PEAK_SIZES[device.type]
    left = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    begin = time.perf_counter()
    for _ in range(_PEAK_RUNS):
        start = time.perf_counter()
        torch.mm(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begin > 0.5:
            break
    return 2 * size**3 / best
