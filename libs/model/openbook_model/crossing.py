"""The cross attention of cached decoding: what a call's sequences ask for, and what each of its tokens reads.

Axes: N tokens of the call, T tokens of one sequence, D width, H heads, G key/value heads, P head size, L chunks,
K neighbours, R tokens of a neighbour, C due chunks of the call, M chunk length, S keys, E encoder width, A = H*P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from openbook_model.attention import attend
from openbook_model.cache import DecodeCache, SlotView
from openbook_model.chunks import chunk_used_at

if TYPE_CHECKING:
    from openbook_model.block import Block
    from openbook_model.model import RetroModel


@dataclass(frozen=True)
class Neighbors:
    """The neighbours of the chunks that one sequence completes in one call, in order (a step completes at most one).

    Token ids [L, K, R] and each neighbour's length [L, K], 0 for a missing one; no lengths: all present and whole.
    """

    ids_LKR: Tensor
    lengths_LK: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """One sequence's share of a call: rows [row, row + length) of the flat batch, positions [start, end)."""

    slot: int
    row: int
    start: int
    ids_T: Tensor
    neighbors: Neighbors | None
    first_due: int
    num_due: int

    @property
    def length(self) -> int:
        return len(self.ids_T)

    @property
    def end(self) -> int:
        return self.start + self.length


class Crossing:
    """Chunked cross attention of one call: encodes the neighbours that became due and reads each position's chunk."""

    def __init__(self, model: RetroModel, cache: DecodeCache, parts: list[Part]) -> None:
        self.model, self.cache, self.parts = model, cache, parts
        self.layer = 0
        self.encoded_SE: Tensor | None = None
        self.open_states: list[tuple[int, Tensor]] = []
        self._gather_due()
        self._cut_segments()
        self.single = all(part.length == 1 for part in parts)
        reading = [part.slot for part in parts if self.tokens_after[part.slot]]
        counts = [self.tokens_after[slot] for slot in reading]
        self.view = SlotView(reading, counts, cache.device) if self.single and reading else None

    def add(self, block: Block, hidden_ND: Tensor) -> Tensor:
        """Hidden states after this layer's gated cross attention; rows without neighbours stay as they are."""
        normed_ND = block.cross_norm(hidden_ND)
        if self.layer == 0:
            self._encode(normed_ND)
        layer, self.layer = self.layer, self.layer + 1
        keys: list[Tensor] = []
        values: list[Tensor] = []
        if self.encoded_SE is not None:
            key_SGP, value_SGP = block.cross.project_source(self.encoded_SE)
            keys, values = list(key_SGP.split(self.due_tokens)), list(value_SGP.split(self.due_tokens))
        found_NA = self._read_segments(block, normed_ND, layer, keys, values) if not self.single else None
        self._store(layer, keys, values)
        if self.view is not None:
            query_NHP = block.cross.project_query(normed_ND[self.rows])
            found_NA = self.view.attend(query_NHP, self.cache.cross_keys[layer], self.cache.cross_values[layer])
        if found_NA is None:
            return hidden_ND
        return hidden_ND.index_add(0, self.rows, block.gated(block.cross.output(found_NA)))

    def commit(self) -> None:
        for slot, count in self.tokens_after.items():
            self.cache.neighbor_tokens[slot] = count

    def _gather_due(self) -> None:
        """Number the completed chunks that have neighbours: `due[i, c]` for chunk c of part i."""
        ids: list[Tensor] = []
        valid: list[Tensor] = []
        self.due: dict[tuple[int, int], int] = {}
        self.due_tokens: list[int] = []
        self.tokens_after: dict[int, int] = {}
        for i, part in enumerate(self.parts):
            self.tokens_after[part.slot] = self.cache.neighbor_tokens[part.slot]
            for ordinal in range(part.num_due):
                self.tokens_after[part.slot] = 0
                if part.neighbors is None:
                    continue
                ids_KR = part.neighbors.ids_LKR[ordinal].to(self.cache.device)
                lengths_LK = part.neighbors.lengths_LK
                lengths_K = torch.full((len(ids_KR),), ids_KR.shape[1]) if lengths_LK is None else lengths_LK[ordinal]
                valid_KR = self.model.valid_tokens(lengths_K.to(self.cache.device), ids_KR.shape[1])
                count = int(valid_KR.sum())
                if count:
                    self.due[i, part.first_due + ordinal] = len(ids)
                    self.due_tokens.append(count)
                    self.tokens_after[part.slot] = count
                    ids.append(ids_KR)
                    valid.append(valid_KR)
        if ids:
            shape = [max(tensor.shape[axis] for tensor in ids) for axis in (0, 1)]
            self.ids_CKR = torch.stack([_pad(tensor, shape) for tensor in ids])
            self.valid_CKR = torch.stack([_pad(tensor, shape) for tensor in valid])

    def _cut_segments(self) -> None:
        """Runs of rows that read one chunk: (rows, slot to read from the cache or None, due chunk or None)."""
        m = self.cache.chunk_length
        self.segments: list[tuple[int, int | None, int | None]] = []
        rows: list[int] = []
        for i, part in enumerate(self.parts):
            phase, position = self.cache.phases[part.slot], part.start
            while position < part.end:
                chunk = chunk_used_at(position, phase, m)
                end = min(part.end, phase - 1 + (chunk + 1) * m)
                cached = chunk >= 0 and chunk == part.first_due - 1 and self.cache.neighbor_tokens[part.slot] > 0
                due = self.due.get((i, chunk))
                if cached or due is not None:
                    first_row = part.row + position - part.start
                    rows.extend(range(first_row, first_row + end - position))
                    self.segments.append((end - position, part.slot if cached else None, due))
                position = end
        self.rows = torch.tensor(rows, dtype=torch.int64, device=self.cache.device)

    def _encode(self, normed_ND: Tensor) -> None:
        chunk_states: list[Tensor] = []
        if self.cache.chunk_states_ZMD is not None:
            chunk_states = self._advance_chunk_states(normed_ND, self.cache.chunk_states_ZMD)
        if self.due:
            chunk_states_CMD = torch.stack(chunk_states) if chunk_states else None
            valid_CKR = None if bool(self.valid_CKR.all()) else self.valid_CKR
            states_CSE = self.model.encode(self.ids_CKR, valid_CKR, chunk_states_CMD)
            self.encoded_SE = states_CSE[self.valid_CKR.flatten(1)]

    def _advance_chunk_states(self, normed_ND: Tensor, states_ZMD: Tensor) -> list[Tensor]:
        """States [M, D] of each due chunk; what stays open goes to the cache."""
        due_states: dict[int, Tensor] = {}
        m = self.cache.chunk_length
        for i, part in enumerate(self.parts):
            opened = self.cache.open_tokens(part.slot)
            new_TD = normed_ND[part.row : part.row + part.length]
            states_TD = torch.cat((states_ZMD[part.slot, :opened].to(new_TD.dtype), new_TD))
            for chunk in range(part.first_due, part.first_due + part.num_due):
                size = self.cache.phases[part.slot] if chunk == 0 else m
                if (i, chunk) in self.due:
                    due_states[self.due[i, chunk]] = F.pad(states_TD[:size], (0, 0, 0, m - size))
                states_TD = states_TD[size:]
            states_ZMD[part.slot, : len(states_TD)] = states_TD
        return [due_states[number] for number in range(len(self.due))]

    def _read_segments(
        self, block: Block, normed_ND: Tensor, layer: int, keys: list[Tensor], values: list[Tensor]
    ) -> Tensor | None:
        if not self.segments:
            return None
        queries = block.cross.project_query(normed_ND[self.rows]).split([length for length, _, _ in self.segments])
        out = []
        for query_THP, (_, slot, due) in zip(queries, self.segments, strict=True):
            if slot is not None:
                count = self.cache.neighbor_tokens[slot]
                key_SGP = self.cache.cross_keys[layer][slot, :, :count].transpose(0, 1).to(query_THP.dtype)
                value_SGP = self.cache.cross_values[layer][slot, :, :count].transpose(0, 1).to(query_THP.dtype)
            else:
                assert due is not None
                key_SGP, value_SGP = keys[due], values[due]
            out.append(attend(query_THP[None], key_SGP[None], value_SGP[None])[0])
        return torch.cat(out)

    def _store(self, layer: int, keys: list[Tensor], values: list[Tensor]) -> None:
        """Keep each sequence's last complete chunk."""
        for i, part in enumerate(self.parts):
            number = self.due.get((i, part.first_due + part.num_due - 1)) if part.num_due else None
            if number is not None:
                count = self.due_tokens[number]
                self.cache.cross_keys[layer][part.slot, :, :count] = keys[number].transpose(0, 1)
                self.cache.cross_values[layer][part.slot, :, :count] = values[number].transpose(0, 1)


def _pad(tensor_KR: Tensor, shape: list[int]) -> Tensor:
    return F.pad(tensor_KR, (0, shape[1] - tensor_KR.shape[1], 0, shape[0] - tensor_KR.shape[0]))
