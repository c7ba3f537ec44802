"""The slot cache of cached decoding: keys, values, neighbours and phase of several sequences of different lengths.

Axes: Z slots, G key/value heads, S positions or neighbour tokens, P head size, M chunk length, D width, N active slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openbook_core.errors import ArgumentError
from openbook_model.chunks import complete_chunks
from openbook_model.config import RetroConfig


class DecodeCache:
    """State of up to `slots` sequences; a slot is free while its length is 0. Used by one thread at a time.

    `lengths` and `phases` are plain numbers per slot. Memory on a CPU is claimed from the system as it is written.
    """

    def __init__(
        self,
        config: RetroConfig,
        slots: int,
        max_length: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        num_neighbors: int,
        cross_attention: bool,
    ) -> None:
        if slots < 1:
            raise ArgumentError(f"a cache needs at least 1 slot, given {slots}", field="slots")
        if not 1 <= max_length <= config.max_positions:
            raise ArgumentError(
                f"max_length must be in 1..{config.max_positions} (the model's positions), given {max_length}",
                field="max_length",
            )
        self.slots, self.max_length, self.chunk_length = slots, max_length, config.chunk_length
        self.dtype, self.device = dtype, device
        self.cross_attention = cross_attention
        self.lengths = [0] * slots
        self.phases = [config.chunk_length] * slots
        self.neighbor_tokens = [0] * slots
        self.neighbor_length = config.neighbor_length
        self.max_neighbor_tokens = num_neighbors * config.neighbor_length if cross_attention else 0
        heads, size = config.num_kv_heads, config.head_dim

        def storage(layers: int, length: int) -> list[Tensor]:
            return [_lazy_zeros((slots, heads, length, size), dtype, device) for _ in range(layers)]

        self.keys = storage(config.num_layers, max_length)
        self.values = storage(config.num_layers, max_length)
        cross_layers = len(config.cross_attention_layers) if cross_attention else 0
        self.cross_keys = storage(cross_layers, self.max_neighbor_tokens)
        self.cross_values = storage(cross_layers, self.max_neighbor_tokens)
        self.chunk_states_ZMD: Tensor | None = None
        if cross_attention and config.encoder.conditioned:
            self.chunk_states_ZMD = _lazy_zeros((slots, config.chunk_length, config.hidden_size), dtype, device)

    @property
    def free_slots(self) -> list[int]:
        return [slot for slot, length in enumerate(self.lengths) if length == 0]

    def release(self, slot: int) -> None:
        """Free a slot; its next sequence sees nothing of this one."""
        self.lengths[slot] = self.neighbor_tokens[slot] = 0

    def room(self, slot: int) -> int:
        """How many more tokens the slot can hold."""
        return self.max_length - self.lengths[slot]

    def chunks(self, slot: int, more: int = 0) -> int:
        """Complete chunks of the slot's sequence, also after `more` tokens."""
        return complete_chunks(self.lengths[slot] + more, self.phases[slot], self.chunk_length)

    def completes_chunk(self, slot: int) -> bool:
        """Whether the next token of the slot's sequence completes a chunk, so that its step takes neighbours."""
        return self.chunks(slot, 1) > self.chunks(slot)

    def open_tokens(self, slot: int) -> int:
        """Tokens after the last complete chunk."""
        length, phase = self.lengths[slot], self.phases[slot]
        return length if length < phase else (length - phase) % self.chunk_length


class SlotView:
    """One query per active slot against that slot's first `counts` entries, the same for every layer of a step.

    Slots that lie close together are one batched call over the range they span, without copying the cache; else each
    slot is a call of its own.
    """

    def __init__(self, slots: Sequence[int], counts: Sequence[int], device: torch.device) -> None:
        self.slots, self.counts = list(slots), list(counts)
        self.low, self.high, self.longest = min(slots), max(slots) + 1, max(counts)
        span = self.high - self.low
        self.batched = len(self.slots) > 1 and span * self.longest <= 2 * sum(self.counts)
        self.rows = torch.tensor([slot - self.low for slot in slots], device=device)
        self.whole = self.slots == list(range(self.low, self.high))
        self.mask: Tensor | None = None
        if (self.batched and min(self.counts) < self.longest) or not self.whole:
            visible_Z = torch.ones(span, dtype=torch.int64, device=device)
            visible_Z[self.rows] = torch.tensor(self.counts, device=device)
            self.mask = (torch.arange(self.longest, device=device) < visible_Z[:, None])[:, None, None]

    def attend(self, query_NHP: Tensor, keys_ZGSP: Tensor, values_ZGSP: Tensor) -> Tensor:
        """Attention [N, H*P] in the query's dtype."""
        grouped_NGQP = query_NHP.to(keys_ZGSP.dtype).unflatten(1, (keys_ZGSP.shape[1], -1))
        if not self.batched:
            parts = [
                F.scaled_dot_product_attention(
                    grouped_NGQP[row : row + 1],
                    keys_ZGSP[slot : slot + 1, :, :count],
                    values_ZGSP[slot : slot + 1, :, :count],
                )
                for row, (slot, count) in enumerate(zip(self.slots, self.counts, strict=True))
            ]
            return torch.cat(parts).flatten(1).to(query_NHP.dtype)
        spread_ZGQP = grouped_NGQP
        if not self.whole:
            spread_ZGQP = grouped_NGQP.new_zeros((self.high - self.low, *grouped_NGQP.shape[1:]))
            spread_ZGQP[self.rows] = grouped_NGQP
        out_ZGQP = F.scaled_dot_product_attention(
            spread_ZGQP,
            keys_ZGSP[self.low : self.high, :, : self.longest],
            values_ZGSP[self.low : self.high, :, : self.longest],
            attn_mask=self.mask,
        )
        out_NGQP = out_ZGQP if self.whole else out_ZGQP[self.rows]
        return out_NGQP.flatten(1).to(query_NHP.dtype)


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU from calloc, so that pages nobody wrote take no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
