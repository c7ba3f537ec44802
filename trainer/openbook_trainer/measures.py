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
from openbook_trainer.neighbours import Neighbors


def step_flops(config: TrainConfig, neighbors: int | None = None, neighbor_length: int | None = None) -> int:
    """Model FLOPs of one optimiser step, over all processes; for as many neighbours, as long, as its chunks were given.

    `batch.sequences` times those of `openbook_model.accounting.training_flops`: 2 FLOPs per parameter and token forward,
    2 backward for the inputs and 2 for the weights, attention likewise; of frozen weights not the last 2, and no backward
    pass below the first cross attention. Neighbours that were dropped or are missing count, as they are computed;
    what activation checkpointing computes a second time does not.
    """
    frozen = config.init is not None and config.init.base_learning_rate is None
    tokens = config.batch.chunks * config.model.chunk_length
    read = {"neighbors": neighbors, "neighbor_length": neighbor_length}
    return config.batch.sequences * training_flops(config.model, tokens, frozen_base=frozen, **read)


class Meter:
    """Turns times into figures; the peak is measured once, by the first process, where it is not configured."""

    def __init__(self, config: TrainConfig, world: World, model: RetroModel) -> None:
        self._config, self._model, self._world = config, model, world
        self._flops = 0
        given, dtype = config.compute.peak_tflops, getattr(torch, config.compute.dtype)
        self.peak_flops = world.from_first(lambda: given * 1e12 if given else measured_peak_flops(world.device, dtype))

    def count(self, neighbors: Neighbors) -> int:
        """Model FLOPs of a step whose chunks were given such neighbours; they are added to those of the run."""
        flops = step_flops(self._config, *neighbors.ids_BLKR.shape[2:])
        self._flops += flops
        return flops

    def mfu(self, seconds: float, flops: int | None = None) -> float:
        """Model FLOPs, by default all that were counted, over what all processes could do in that time at their peak."""
        return (self._flops if flops is None else flops) / (seconds * self.peak_flops * self._world.size)

    def figures(self, flops: int, tokens: int, seconds: float, waited: float) -> dict[str, Any]:
        """Of a step that trained on `tokens` labels in `seconds` after having waited `waited` s for its neighbours.

        Memory is that of this process now, and the most that its GPU held. Called by every process.
        """
        duration = seconds + waited
        record: dict[str, Any] = {
            "tokens_per_s": tokens / duration,
            "mfu": self.mfu(duration, flops),
            "neighbour_wait_share": waited / duration,
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
