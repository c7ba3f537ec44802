"""One process or many: the process group, failures that all of them share, and FSDP2 per block."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from openbook_core.errors import ConfigError, OpenbookError, UnavailableError
from openbook_model import RetroModel

Value = TypeVar("Value")
_PEER_ENDED = re.compile(r"gloo/transport|connection (closed|reset) by peer|remote process exited", re.IGNORECASE)


@dataclass(frozen=True)
class World:
    """This process's place among all, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on process 0, the only one that calls it; its OpenbookError is raised on every process."""
        box = [_attempt(make) if self.first else None]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        assert box[0] is not None
        return box[0].take()

    def together(self, make: Callable[[], Value]) -> Value:
        """This process's own `make()`, in which no process waits for another.

        Where it raises OpenbookError on some, every process raises that of the first of them.
        """
        own = _attempt(make)
        if self.total(float(own.error is not None)):
            errors = [own.error]
            if self.size > 1:
                errors = [None] * self.size
                dist.all_gather_object(errors, own.error)
            raise next(error for error in errors if error is not None)
        return own.take()

    def total(self, value: float) -> float:
        """The sum over processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor)
        return float(tensor)


@dataclass(frozen=True)
class _Outcome(Generic[Value]):
    """What a call returned, or the error that it raised."""

    values: tuple[Value, ...]
    error: OpenbookError | None = None

    def take(self) -> Value:
        if self.error is not None:
            raise self.error
        return self.values[0]


def _attempt(make: Callable[[], Value]) -> _Outcome[Value]:
    try:
        return _Outcome((make(),))
    except OpenbookError as error:
        return _Outcome((), error)


@contextmanager
def process_group(device: str) -> Iterator[World]:
    """Join torchrun's group, or make one of this process alone.

    Raises ConfigError for a device that there is not, and UnavailableError where another process ended during a
    collective call.
    """
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
    except RuntimeError as error:
        if dist.get_world_size() == 1 or not _PEER_ENDED.search(str(error)):
            raise
        raise UnavailableError(
            "another process of this run ended, so this one cannot go on; see what that one said, and run the same "
            "command to go on from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def be_deterministic() -> None:
    """The same inputs give the same bits, on a CPU; memory is not filled before it is written, which torch would do at the
    cost of some percent of a step."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def shard(model: RetroModel, world: World, dtype: torch.dtype = torch.float32) -> None:
    """Shard each block's parameters over all processes, and the rest as one group.

    Weights stay as they are; each block computes in `dtype`, and gradients are summed over processes in float32. One
    process keeps the copies in `dtype` from the forward to the backward pass: letting go of them would free little.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    # True of attention outputs that are reshaped last; nothing changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in (*(model.encoder.blocks if model.encoder else ()), *model.blocks):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=world.size > 1)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor in one piece, on every process; all of them call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
