"""Which dtype to serve in, found by a short measurement on this machine and never assumed."""

from __future__ import annotations

import logging
import math
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

logger = logging.getLogger(__name__)

# Rows and layers. Decoding waits for memory: 85 MB in float32 are more than most caches hold, as a model's weights are.
# Reading a prompt waits for arithmetic, which a few layers show.
_WORK = {"decode": (4, 24), "prefill": (256, 4)}
_WIDTH, _INNER = 576, 1536
_GAIN = 1.1
_HOPELESS = 2.0  # times float32's median, already when warming up


@dataclass(frozen=True)
class PrecisionProbe:
    """Median seconds of the same linear layers by dtype and shape of work, and the dtype to serve in."""

    seconds: dict[str, dict[str, float]]
    dtype: torch.dtype

    def render(self) -> str:
        times = ", ".join(
            f"{work} {name} {1000 * value:.1f} ms" for work, by in self.seconds.items() for name, value in by.items()
        )
        return f"serving dtype {str(self.dtype).removeprefix('torch.')} ({times})"


@torch.no_grad()
def probe_precision(device: torch.device | None = None) -> PrecisionProbe:
    """Time float32 and bfloat16 linears of decode and prefill shape (about half a second) and choose.

    bfloat16 wins only if it is at least 1.1 times as fast in both; the outcome is logged.
    """
    device = device or torch.device("cpu")
    seconds: dict[str, dict[str, float]] = {work: {} for work in _WORK}
    most_layers = max(layers for _, layers in _WORK.values())
    for dtype in (torch.float32, torch.bfloat16):
        weights = [torch.ones(_INNER, _WIDTH, dtype=dtype, device=device) for _ in range(most_layers)]
        for work, (rows, layers) in _WORK.items():
            states = torch.ones(rows, _WIDTH, dtype=dtype, device=device)
            hopeless = _HOPELESS * seconds[work].get("float32", math.inf)
            seconds[work][str(dtype).removeprefix("torch.")] = _median_seconds(states, weights[:layers], hopeless)
    faster = all(by["float32"] >= _GAIN * by["bfloat16"] for by in seconds.values())
    probe = PrecisionProbe(seconds, torch.bfloat16 if faster else torch.float32)
    logger.info(probe.render())
    return probe


def _median_seconds(states: torch.Tensor, weights: list[torch.Tensor], hopeless: float) -> float:
    """The first of five runs is to warm up; it is all there is where it took longer than `hopeless` seconds."""
    times: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        for weight in weights:
            F.linear(states, weight)
        if states.device.type == "cuda":
            torch.cuda.synchronize(states.device)
        times.append(time.perf_counter() - start)
        if times[0] > hopeless:
            return times[0]
    return statistics.median(times[1:])
