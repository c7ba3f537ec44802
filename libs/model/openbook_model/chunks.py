"""The chunk grid of a batch of sequences: which positions ask, and which use what was found (design, section 6).

A sequence's phase f in 1..m is the length of its first chunk. Chunk c is complete once its last token, position
f - 1 + c*m, is there; that position and the next m - 1 use the chunk's neighbours.

Axes: B batch, T tokens, D width, L chunks, M chunk length (m), C = B*L chunks of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from openbook_core.errors import ArgumentError


def default_first_chunk(length: int, chunk_length: int) -> int:
    """NVIDIA's rule, and the one of serving: the phase with which the last of `length` tokens completes a chunk."""
    return (length - 1) % chunk_length + 1


def complete_chunks(length: int, first_chunk: int, chunk_length: int) -> int:
    """How many chunks the first `length` tokens of a sequence complete."""
    return 0 if length < first_chunk else 1 + (length - first_chunk) // chunk_length


def chunks_due(tokens: Sequence[int], fed: int, first_chunk: int, chunk_length: int) -> list[list[int]]:
    """The token ids of each chunk that `tokens` complete and their first `fed` do not; the first may be short."""
    first, last = (complete_chunks(length, first_chunk, chunk_length) for length in (fed, len(tokens)))
    ends = [first_chunk + chunk * chunk_length for chunk in range(first, last)]
    return [list(tokens[max(0, end - chunk_length) : end]) for end in ends]


def chunk_used_at(position: int, first_chunk: int, chunk_length: int) -> int:
    """The chunk whose neighbours `position` uses; -1 before the first chunk is complete."""
    return -1 if position < first_chunk - 1 else (position - (first_chunk - 1)) // chunk_length


def resolve_first_chunk(
    first_chunk: int | Sequence[int] | Tensor | None, batch: int, length: int, chunk_length: int
) -> tuple[int, ...]:
    """One phase per row; raises ArgumentError for a phase outside 1..m or another number of rows."""
    if first_chunk is None:
        return (default_first_chunk(length, chunk_length),) * batch
    phases = (first_chunk,) * batch if isinstance(first_chunk, int) else tuple(int(phase) for phase in first_chunk)
    if len(phases) != batch:
        raise ArgumentError(f"first_chunk has {len(phases)} values for a batch of {batch}", field="first_chunk")
    wrong = [phase for phase in phases if not 1 <= phase <= chunk_length]
    if wrong:
        raise ArgumentError(f"first_chunk must be in 1..{chunk_length}, given {wrong[0]}", field="first_chunk")
    return phases


class ChunkGrid:
    """Moves states between the token grid [B, T, D] and the chunk grid [C, M, D] by shift and reshape.

    Queries have `width` positions of a chunk, fewer than M where no row has a second chunk.

    Rows of equal phase need slices and padding only; mixed phases go through one gather per move.
    """

    def __init__(self, phases: Sequence[int], length: int, chunk_length: int, device: torch.device) -> None:
        self.phases = tuple(phases)
        self.batch, self.length, self.chunk_length = len(self.phases), length, chunk_length
        self.device = device
        self.chunks_per_row = tuple(complete_chunks(length, phase, chunk_length) for phase in self.phases)
        self.num_chunks = max(self.chunks_per_row, default=0)
        # One chunk is used by what is left of the sequence, often much less than m positions: a prompt and its answer.
        left = max((length - phase + 1 for phase in self.phases), default=0)
        self.width = min(chunk_length, left) if self.num_chunks == 1 else chunk_length
        self._uniform = len(set(self.phases)) <= 1

    def to_queries(self, hidden_BTD: Tensor) -> Tensor:
        """[C, width, D]: row u of chunk c is the u-th position that uses c; zeros past the sequence's end."""
        if not self._uniform:
            return self._gather(hidden_BTD, self._query_index_BN, self.width)
        start = self.phases[0] - 1
        padding = start + self.num_chunks * self.width - self.length
        return F.pad(hidden_BTD[:, start:], (0, 0, 0, padding)).reshape(-1, self.width, hidden_BTD.shape[-1])

    def from_queries(self, states_CMD: Tensor) -> Tensor:
        """[B, T, D]: back to the token grid; exactly zero where no chunk is used."""
        states_BND = states_CMD.reshape(self.batch, -1, states_CMD.shape[-1])
        if not self._uniform:
            padded_BND = F.pad(states_BND, (0, 0, 0, 1))
            return padded_BND[self._rows_B1, self._token_index_BT]
        return F.pad(states_BND, (0, 0, self.phases[0] - 1, 0))[:, : self.length]

    def to_chunks(self, hidden_BTD: Tensor) -> Tensor:
        """[C, M, D]: the tokens of each complete chunk; a short first chunk is filled up with zeros at its end."""
        if not self._uniform:
            return self._gather(hidden_BTD, self._chunk_index_BN, self.chunk_length)
        first, m = self.phases[0], self.chunk_length
        head = F.pad(hidden_BTD[:, :first], (0, 0, 0, m - first))
        rest = hidden_BTD[:, first : first + (self.num_chunks - 1) * m]
        return torch.cat((head, rest), dim=1).reshape(-1, m, hidden_BTD.shape[-1])

    @cached_property
    def used_BT(self) -> Tensor:
        """The chunk whose neighbours each position uses, -1 for none (int64)."""
        positions_BT = torch.arange(self.length, device=self.device) - (self._phases_B1 - 1)
        return torch.where(positions_BT < 0, -1, positions_BT.clamp(min=0) // self.chunk_length)

    @cached_property
    def ends_BL(self) -> Tensor:
        """The last position of each complete chunk, clamped to the sequence (int64)."""
        ends_BL = self._phases_B1 - 1 + torch.arange(self.num_chunks, device=self.device) * self.chunk_length
        return ends_BL.clamp(max=self.length - 1)

    def _gather(self, hidden_BTD: Tensor, index_BN: Tensor, width: int) -> Tensor:
        padded_BTD = F.pad(hidden_BTD, (0, 0, 0, 1))
        return padded_BTD[self._rows_B1, index_BN].reshape(-1, width, hidden_BTD.shape[-1])

    @cached_property
    def _rows_B1(self) -> Tensor:
        return torch.arange(self.batch, device=self.device)[:, None]

    @cached_property
    def _phases_B1(self) -> Tensor:
        return torch.tensor(self.phases, device=self.device)[:, None]

    @cached_property
    def _slots_N(self) -> Tensor:
        return torch.arange(self.num_chunks * self.chunk_length, device=self.device)

    @cached_property
    def _query_index_BN(self) -> Tensor:
        slots_N = torch.arange(self.num_chunks * self.width, device=self.device)
        return (self._phases_B1 - 1 + slots_N).clamp(max=self.length)

    @cached_property
    def _token_index_BT(self) -> Tensor:
        index_BT = torch.arange(self.length, device=self.device) - (self._phases_B1 - 1)
        nothing = self.num_chunks * self.width
        return torch.where(index_BT < 0, nothing, index_BT).clamp(max=nothing)

    @cached_property
    def _chunk_index_BN(self) -> Tensor:
        chunk_N, offset_N = self._slots_N // self.chunk_length, self._slots_N % self.chunk_length
        first_BN = torch.where(offset_N < self._phases_B1, offset_N, self.length)
        later_BN = (self._phases_B1 + self._slots_N - self.chunk_length).clamp(max=self.length)
        return torch.where(chunk_N == 0, first_BN, later_BN)
