"""What a step took: tokens a second, model FLOPs utilisation, waiting, memory; and the gates' values."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from openbook_model import RetroModel
from openbook_model.accounting import training_flops
from openbook_trainer.compute import measured_peak_flops
from openbook_trainer.config import TrainConfig
from openbook_trainer.distributed import World, whole


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one optimiser step, over all processes.

    `batch.sequences` times those of `openbook_model.accounting.training_flops`: 2 FLOPs per parameter and token forward,
    2 backward for the inputs and 2 for the weights, attention likewise; of frozen weights not the last 2, and no backward
    pass below the first cross attention. Neighbours that were dropped or are missing count, as they are computed;
    what activation checkpointing computes a second time does not.
    """
    frozen = config.init is not None and config.init.base_learning_rate is None
    tokens = config.batch.chunks * config.model.chunk_length
    return config.batch.sequences * training_flops(config.model, tokens, frozen_base=frozen)


class Meter:
    """Turns times into figures; the peak is measured once, by the first process, where it is not configured."""

    def __init__(self, config: TrainConfig, world: World, model: RetroModel) -> None:
        self._model, self._world, self._step_flops = model, world, step_flops(config)
        given, dtype = config.compute.peak_tflops, getattr(torch, config.compute.dtype)
        self.peak_flops = world.from_first(lambda: given * 1e12 if given else measured_peak_flops(world.device, dtype))

    def mfu(self, steps: int, seconds: float) -> float:
        """Model FLOPs of `steps` steps over what all processes could do in that time at their peak."""
        return steps * self._step_flops / (seconds * self.peak_flops * self._world.size)

    def figures(self, tokens: int, seconds: float, waited: float) -> dict[str, Any]:
        """Of a step that trained on `tokens` labels in `seconds` after having waited `waited` s for its neighbours.

        Memory is that of this process now, and the most that its GPU held. Called by every process.
        """
        whole = seconds + waited
        record: dict[str, Any] = {
            "tokens_per_s": tokens / whole,
            "mfu": self.mfu(1, whole),
            "neighbour_wait_share": waited / whole,
            "resident_memory_bytes": psutil.Process().memory_info().rss,
        }
        if self._world.device.type == "cuda":
            record["device_memory_bytes"] = torch.cuda.max_memory_allocated(self._world.device)
        gates = gate_values(self._model)
        if gates:
            record["gates"] = gates
        return record


@torch.no_grad()
def gate_values(model: RetroModel) -> dict[str, float]:
    """The learned gates by number of their layer, from 1. Called by every process."""
    gates = {}
    for layer, block in enumerate(model.decoder_blocks(), start=1):
        if block.has_cross and block.gate is not None:
            gates[str(layer)] = float(whole(block.gate))
    return gates
