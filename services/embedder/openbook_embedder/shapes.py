"""A network at fixed shapes: batches are padded up to one of them, in buffers that stay where they are.

That is what a CUDA graph needs, which starts all kernels of a pass at once; small batches would else wait for the CPU.
Axes: N texts, T tokens of the longest, D elements of a vector; a shape is (rows, tokens), at least (N, T).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Padded tokens of the largest shape: beyond it a GPU is busy anyway, and padding costs more than it saves.
_LARGEST = 8192
# Every 16 tokens where most chunks are (64 tokens of a language model and a title), coarser above.
_TOKENS = (*range(16, 129, 16), 192, 256, 384, 512)

# Token ids and mask, None where all tokens are texts', to vectors.
Run = Callable[[Tensor, Tensor | None], Tensor]
Shape = tuple[int, int]
# A computation to what does it again, and the tensor that then holds its result.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


def usual_shapes(max_tokens: int) -> list[Shape]:
    """(rows, tokens): rows are powers of two, up to the largest product, tokens up to the encoder's limit."""
    lengths = sorted({min(tokens, max_tokens) for tokens in _TOKENS})
    return [(1 << power, tokens) for tokens in lengths for power in range((_LARGEST // tokens).bit_length())]


@dataclass(frozen=True)
class _Slot:
    """Inputs are ids and mask in one tensor [2, rows, tokens], on the host and on the device; `out` is [rows, D]."""

    host: Tensor
    device: Tensor
    replay: Callable[[], object]
    out: Tensor


class FixedShapes:
    """Owns the buffers; calls from several threads take turns.

    Each shape is recorded with a mask, and without for texts that are all as long as the shape.
    """

    def __init__(self, run: Run, shapes: Sequence[Shape], *, pad_id: int, device: str, record: Record) -> None:
        self._lock = threading.Lock()
        self._pad_id = pad_id
        self._rows = {tokens: sorted(rows for rows, of in shapes if of == tokens) for _, tokens in shapes}
        self._tokens = sorted(self._rows)
        # The largest first: graphs share one pool of memory, and the smaller ones find room in it.
        order = sorted(shapes, key=lambda shape: shape[0] * shape[1], reverse=True)
        with torch.inference_mode():
            self._slots = {
                (shape, full): _slot(run, shape, full, pad_id, device, record)
                for shape in order
                for full in (False, True)
            }

    def shape_for(self, rows: int, tokens: int) -> Shape | None:
        """The shape that a batch is padded to: the fewest tokens, then the fewest rows; None where none is enough."""
        place = bisect_left(self._tokens, tokens)
        if place == len(self._tokens):
            return None
        choices = self._rows[self._tokens[place]]
        row = bisect_left(choices, rows)
        return None if row == len(choices) else (choices[row], self._tokens[place])

    def __call__(self, ids_NT: NDArray[np.int64], mask_NT: NDArray[np.int64]) -> Tensor | None:
        """Vectors [N, D] on the host, or None for a batch that no shape holds."""
        rows, tokens = ids_NT.shape
        shape = self.shape_for(rows, tokens)
        if shape is None:
            return None
        slot = self._slots[shape, tokens == shape[1] and bool(mask_NT.all())]
        with self._lock, torch.inference_mode():
            _clear(slot.host, self._pad_id)
            slot.host[0, :rows, :tokens] = torch.from_numpy(ids_NT)
            slot.host[1, :rows, :tokens] = torch.from_numpy(mask_NT)
            slot.device.copy_(slot.host, non_blocking=True)
            slot.replay()
            return slot.out[:rows].to("cpu", copy=True)


def _clear(host: Tensor, pad_id: int) -> None:
    """Padding everywhere, and one token a row: the mean of none would be none."""
    host[0] = pad_id
    host[1] = 0
    host[1, :, 0] = 1


def _slot(run: Run, shape: Shape, full: bool, pad_id: int, device: str, record: Record) -> _Slot:
    host = torch.empty((2, *shape), dtype=torch.long, pin_memory=device != "cpu")
    _clear(host, pad_id)
    inputs = host.to(device, copy=True)
    replay, out = record(lambda: run(inputs[0], None if full else inputs[1]))
    return _Slot(host, inputs, replay, out)


def rerun(compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A Record without a graph, for any device."""
    out = compute()
    return lambda: out.copy_(compute()), out


def cuda_graph() -> Record:
    """A Record of CUDA graphs that share one pool of memory: a result must be copied before the next one runs."""
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what libraries set up at a first call must not be captured
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = compute()
        return graph.replay, out

    return record
