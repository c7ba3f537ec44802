"""One process or many: the process group, and FSDP2 per block."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from openbook_core.errors import ConfigError
from openbook_model import RetroModel

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """This process's place among all, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def from_first(self, value: Value | None) -> Value:
        """What process 0 gives, on every process."""
        box: list[Value | None] = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        assert box[0] is not None
        return box[0]

    def total(self, value: float) -> float:
        """The sum over processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor)
        return float(tensor)


@contextmanager
def process_group(device: str) -> Iterator[World]:
    """Join torchrun's group, or make one of this process alone. Raises ConfigError for a device that there is not."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for and there is no GPU; use cpu or auto", field="device")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        place = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else "cpu")
        if kind == "cuda":
            torch.cuda.set_device(place)
        yield World(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()


def shard(model: RetroModel, world: World) -> None:
    """Shard each block's parameters over all processes, and the rest as one group."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    assert model.encoder is not None
    # True of attention outputs that are reshaped last; nothing changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in (*model.encoder.blocks, *model.blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
