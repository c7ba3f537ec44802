"""Cached decoding: prompts and single tokens of many sequences in one pass, equal to the full pass of each.

All tokens of a call are one flat batch for the linear layers; only attention looks at whose they are.

Axes: N tokens of the call, T tokens of one sequence, D width, V vocabulary, H heads, G key/value heads, P head size,
L chunks, K neighbours, R tokens of a neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openbook_core.errors import ArgumentError
from openbook_model.attention import attend
from openbook_model.cache import DecodeCache, SlotView
from openbook_model.chunks import default_first_chunk
from openbook_model.crossing import Crossing, Neighbors, Part

if TYPE_CHECKING:
    from openbook_model.model import RetroModel


@torch.no_grad()
def prefill(
    model: RetroModel,
    cache: DecodeCache,
    slots: Sequence[int],
    prompts: Sequence[Tensor],
    neighbors: Sequence[Neighbors | None] | None = None,
    first_chunks: Sequence[int] | None = None,
) -> Tensor:
    """Start a sequence in each of the free `slots`; logits [N, V] after the last token of each prompt [T].

    `first_chunks` are the phases; None picks those with which each prompt's last token completes a chunk. A None
    among the neighbours is OFF for the prompt's chunks. Raises ArgumentError for a slot in use, a prompt that is
    empty or does not fit, and neighbours for another number of chunks.
    """
    for slot in slots:
        if cache.lengths[slot]:
            raise ArgumentError(f"slot {slot} is in use; release it first", field="slots")
    if first_chunks is None:
        first_chunks = [default_first_chunk(max(1, len(prompt)), cache.chunk_length) for prompt in prompts]
    for slot, phase in zip(slots, first_chunks, strict=True):
        if not 1 <= phase <= cache.chunk_length:
            raise ArgumentError(f"first_chunk must be in 1..{cache.chunk_length}, given {phase}", field="first_chunk")
        cache.phases[slot] = phase
    return extend(model, cache, slots, prompts, neighbors)


@torch.no_grad()
def step(
    model: RetroModel,
    cache: DecodeCache,
    slots: Sequence[int],
    token_ids_N: Tensor,
    neighbors: Sequence[Neighbors | None] | None = None,
) -> Tensor:
    """One more token in each of `slots`; logits [N, V].

    A sequence for which `cache.completes_chunk` holds takes the neighbours of the chunk that this token completes;
    None leaves that chunk without any.
    """
    return extend(model, cache, slots, list(token_ids_N.unsqueeze(1)), neighbors)


@torch.no_grad()
def extend(
    model: RetroModel,
    cache: DecodeCache,
    slots: Sequence[int],
    tokens: Sequence[Tensor],
    neighbors: Sequence[Neighbors | None] | None = None,
) -> Tensor:
    """Append tokens [T] (T may differ) to each slot's sequence; logits [N, V] after the last token of each.

    What `prefill` and `step` are made of; also feeds a long prompt in pieces. A refusal (ArgumentError) changes
    nothing; after any other failure the slots are released.
    """
    neighbors = [None] * len(slots) if neighbors is None else neighbors
    parts = _parts(cache, slots, tokens, neighbors)
    ids_N = torch.cat([part.ids_T for part in parts]).to(cache.device)
    positions_N = torch.cat([torch.arange(part.start, part.end, device=cache.device) for part in parts])
    hidden_ND, rotary = model.embed(ids_N, positions_N)
    reader = _Reader(cache, parts, positions_N)
    crossing = Crossing(model, cache, parts) if cache.cross_attention else None
    for layer, block in enumerate(model.decoder_blocks()):
        query_NHP, key_NGP, value_NGP = block.attention.project(block.attention_norm(hidden_ND), rotary)
        hidden_ND = hidden_ND + block.attention.output(reader.attend(layer, query_NHP, key_NGP, value_NGP))
        if block.has_cross and crossing is not None:
            hidden_ND = crossing.add(block, hidden_ND)
        hidden_ND = hidden_ND + block.mlp(block.mlp_norm(hidden_ND))
    logits_NV = model.logits(hidden_ND[[part.row + part.length - 1 for part in parts]])
    for part in parts:
        cache.lengths[part.slot] = part.end
    if crossing is not None:
        crossing.commit()
    return logits_NV


def _parts(
    cache: DecodeCache, slots: Sequence[int], tokens: Sequence[Tensor], neighbors: Sequence[Neighbors | None]
) -> list[Part]:
    if not slots or not len(slots) == len(set(slots)) == len(tokens) == len(neighbors):
        raise ArgumentError(
            f"need one slot each, without repeats: given slots {list(slots)}, {len(tokens)} token sequences and "
            f"{len(neighbors)} sets of neighbours",
            field="slots",
        )
    parts, row = [], 0
    for slot, ids_T, found in zip(slots, tokens, neighbors, strict=True):
        if not 1 <= len(ids_T) <= cache.room(slot):
            raise ArgumentError(
                f"slot {slot} has room for {cache.room(slot)} more tokens; given {len(ids_T)}", field="tokens"
            )
        first_due = cache.chunks(slot)
        num_due = cache.chunks(slot, len(ids_T)) - first_due
        if found is not None:
            _check(cache, slot, found, num_due)
        parts.append(Part(slot, row, cache.lengths[slot], ids_T, found, first_due, num_due))
        row += len(ids_T)
    return parts


def _check(cache: DecodeCache, slot: int, found: Neighbors, num_due: int) -> None:
    shape = found.ids_LKR.shape
    if len(shape) != 3 or shape[0] != num_due:
        raise ArgumentError(
            f"slot {slot} completes {num_due} chunks in this call: neighbour ids must be [{num_due}, K, R], "
            f"given {list(shape)}",
            field="neighbors",
        )
    if found.lengths_LK is not None and found.lengths_LK.shape != shape[:2]:
        raise ArgumentError(
            f"neighbour lengths must be {list(shape[:2])}, given {list(found.lengths_LK.shape)}", field="neighbors"
        )
    if not 1 <= shape[2] <= cache.neighbor_length or shape[1] < 1:
        raise ArgumentError(
            f"neighbour ids [L, K, R] need K >= 1 and R in 1..{cache.neighbor_length}, given {list(shape)}",
            field="neighbors",
        )
    if cache.cross_attention and shape[1] * shape[2] > cache.max_neighbor_tokens:
        raise ArgumentError(
            f"{shape[1]} neighbours of {shape[2]} tokens do not fit in a cache made for {cache.max_neighbor_tokens} "
            "neighbour tokens; make it with a larger num_neighbors",
            field="neighbors",
        )


class _Reader:
    """Writes a call's keys and values into the cache and attends over it."""

    def __init__(self, cache: DecodeCache, parts: list[Part], positions_N: Tensor) -> None:
        self.cache, self.parts, self.positions_N = cache, parts, positions_N
        self.view: SlotView | None = None
        if all(part.length == 1 for part in parts):
            self.slots_N = torch.tensor([part.slot for part in parts], device=cache.device)
            self.view = SlotView([part.slot for part in parts], [part.end for part in parts], cache.device)

    def attend(self, layer: int, query_NHP: Tensor, key_NGP: Tensor, value_NGP: Tensor) -> Tensor:
        """Causal self attention [N, H*P] of every sequence over its own past."""
        keys_ZGSP, values_ZGSP = self.cache.keys[layer], self.cache.values[layer]
        if self.view is not None:
            keys_ZGSP[self.slots_N, :, self.positions_N] = key_NGP.to(keys_ZGSP.dtype)
            values_ZGSP[self.slots_N, :, self.positions_N] = value_NGP.to(values_ZGSP.dtype)
            return self.view.attend(query_NHP, keys_ZGSP, values_ZGSP)
        out = []
        for part in self.parts:
            rows = slice(part.row, part.row + part.length)
            key_TGP, value_TGP = key_NGP[rows], value_NGP[rows]
            keys_ZGSP[part.slot, :, part.start : part.end] = key_TGP.transpose(0, 1)
            values_ZGSP[part.slot, :, part.start : part.end] = value_TGP.transpose(0, 1)
            mask = None
            if part.start:
                key_TGP = keys_ZGSP[part.slot, :, : part.end].transpose(0, 1).to(query_NHP.dtype)
                value_TGP = values_ZGSP[part.slot, :, : part.end].transpose(0, 1).to(query_NHP.dtype)
                visible_T1 = torch.arange(part.start, part.end, device=query_NHP.device)[:, None]
                mask = torch.arange(part.end, device=query_NHP.device) <= visible_T1
            out.append(attend(query_NHP[rows][None], key_TGP[None], value_TGP[None], mask=mask, causal=not part.start))
        return torch.cat(out, dim=1)[0]
