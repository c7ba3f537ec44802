"""Cached decoding equals the full pass of the same phase: every split, ragged batches, missing and short neighbours."""

from __future__ import annotations

import pytest
import torch
from model_factory import random_model, small_config
from torch import Tensor

from openbook_core.errors import ArgumentError
from openbook_model.cache import DecodeCache
from openbook_model.chunks import complete_chunks
from openbook_model.crossing import Neighbors
from openbook_model.model import RetroModel

LENGTH, M, R = 38, 8, 16


@pytest.fixture(scope="module", params=["unconditioned", "conditioned", "biased", "attended"])
def model(request: pytest.FixtureRequest) -> RetroModel:
    settings: dict[str, dict[str, object]] = {
        "unconditioned": {"norm": "rmsnorm", "gate": "learned"},
        "conditioned": {"conditioned": True, "positions": "learned", "num_kv_heads": 4},
        "biased": {
            "conditioned": True,
            "norm_bias": True,
            "qkv_bias": True,
            "output_bias": True,
            "cross_attention_bias": True,
            "encoder": {"bias": True, "positions": "learned"},
        },
        "attended": {"conditioned": True, "neighbor_padding": "attended", "encoder": {"positions": "none"}},
    }
    return random_model(small_config(**settings[request.param]))  # type: ignore[arg-type]


class Sequence:
    """A sequence with its neighbours, its full pass, and what a call needs of them."""

    def __init__(self, model: RetroModel, phase: int, k: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        chunks = complete_chunks(LENGTH, phase, M)
        self.phase = phase
        self.ids = torch.randint(0, 50, (LENGTH,), generator=generator)
        self.neighbor_ids = torch.randint(0, 50, (chunks, k, R), generator=generator)
        self.lengths = torch.randint(0, R + 1, (chunks, k), generator=generator)
        self.lengths[0, 0] = R
        self.lengths[2] = 0
        with torch.no_grad():
            self.full = model(self.ids[None], self.neighbor_ids[None], self.lengths[None], first_chunk=phase)[0]

    def neighbors(self, start: int, end: int) -> Neighbors:
        first, last = (complete_chunks(t, self.phase, M) for t in (start, end))
        return Neighbors(self.neighbor_ids[first:last], self.lengths[first:last])

    def check(self, logits_V: Tensor, length: int) -> None:
        assert (logits_V - self.full[length - 1]).abs().max() <= 2e-5 * self.full.abs().max(), length


def step(model: RetroModel, cache: DecodeCache, sequences: dict[int, Sequence]) -> None:
    slots = list(sequences)
    ids = torch.stack([sequences[slot].ids[cache.lengths[slot]] for slot in slots])
    found = [
        sequences[slot].neighbors(cache.lengths[slot], cache.lengths[slot] + 1) if cache.completes_chunk(slot) else None
        for slot in slots
    ]
    logits = model.step(cache, slots, ids, found)
    for row, slot in enumerate(slots):
        sequences[slot].check(logits[row], cache.lengths[slot])


@pytest.mark.parametrize(("phase", "k"), [(1, 1), (5, 2), (8, 5)])
def test_every_split(model: RetroModel, phase: int, k: int) -> None:
    sequence = Sequence(model, phase, k, seed=phase)
    for split in range(1, LENGTH):
        cache = model.new_cache(2, LENGTH, num_neighbors=k)
        logits = model.prefill(cache, [1], [sequence.ids[:split]], [sequence.neighbors(0, split)], [phase])
        sequence.check(logits[0], split)
        for _ in range(min(LENGTH - split, M + 2)):
            step(model, cache, {1: sequence})


def test_ragged_batch_with_slots_that_come_and_go(model: RetroModel) -> None:
    sequences = {
        slot: Sequence(model, phase, k, seed=40 + slot) for slot, phase, k in [(0, 3, 2), (2, 8, 5), (3, 1, 1)]
    }
    starts = {0: 3, 2: 20, 3: 9}
    cache = model.new_cache(6, LENGTH, num_neighbors=5)
    logits = model.prefill(
        cache,
        list(sequences),
        [sequences[slot].ids[: starts[slot]] for slot in sequences],
        [sequences[slot].neighbors(0, starts[slot]) for slot in sequences],
        [sequence.phase for sequence in sequences.values()],
    )
    for row, slot in enumerate(sequences):
        sequences[slot].check(logits[row], starts[slot])
    for _ in range(10):
        step(model, cache, sequences)
    cache.release(2)
    del sequences[2]
    late = Sequence(model, 6, 3, seed=50)
    model.prefill(cache, [2], [late.ids[:4]], None, [6])
    sequences = {3: sequences[3], 2: late, 0: sequences[0]}
    for _ in range(12):
        step(model, cache, sequences)
    cache.release(0)
    del sequences[0]
    far = Sequence(model, 2, 4, seed=51)
    model.prefill(cache, [5], [far.ids[:30]], [far.neighbors(0, 30)], [2])
    for _ in range(5):
        step(model, cache, sequences | {5: far})


def test_a_prompt_in_pieces_beside_a_decoding_sequence(model: RetroModel) -> None:
    sequence, other = Sequence(model, 5, 2, seed=60), Sequence(model, 4, 2, seed=61)
    cache = model.new_cache(2, LENGTH)
    model.prefill(cache, [0], [other.ids[:7]], [other.neighbors(0, 7)], [4])
    model.prefill(cache, [1], [sequence.ids[:3]], None, [5])
    for start, end in [(3, 4), (4, 17), (17, 18), (18, 30), (30, 38)]:
        position = cache.lengths[0]
        logits = model.extend(
            cache,
            [1, 0],
            [sequence.ids[start:end], other.ids[position : position + 1]],
            [sequence.neighbors(start, end), other.neighbors(position, position + 1)],
        )
        sequence.check(logits[0], end)
        other.check(logits[1], position + 1)


def test_off_in_one_slot_changes_nothing_in_another(model: RetroModel) -> None:
    sequence, off = Sequence(model, 5, 2, seed=70), Sequence(model, 5, 2, seed=71)
    with torch.no_grad():
        off.full = model(off.ids[None])[0]
    cache = model.new_cache(2, LENGTH)
    logits = model.prefill(cache, [0, 1], [off.ids[:12], sequence.ids[:12]], [None, sequence.neighbors(0, 12)], [5, 5])
    off.check(logits[0], 12)
    while cache.room(0):
        found = [None, sequence.neighbors(cache.lengths[1], cache.lengths[1] + 1)]
        position = cache.lengths[0]
        logits = model.step(cache, [0, 1], torch.stack([off.ids[position], sequence.ids[position]]), found)
        off.check(logits[0], position + 1)
        sequence.check(logits[1], position + 1)


def test_default_phase_lets_the_last_prompt_token_retrieve() -> None:
    model = random_model(small_config())
    for length in range(1, 2 * M + 2):
        cache = model.new_cache(1, 40)
        model.prefill(cache, [0], [torch.zeros(length, dtype=torch.int64)])
        assert cache.chunks(0) == -(-length // M)
        steps = 0
        while not cache.completes_chunk(0):
            model.step(cache, [0], torch.zeros(1, dtype=torch.int64))
            steps += 1
        assert steps == M - 1


def test_zero_gates_skip_the_cross_attention() -> None:
    model = random_model(small_config(gate="learned"))
    for name, parameter in model.named_parameters():
        if name.endswith(".gate"):
            parameter.data.zero_()
    cache = model.new_cache(1, 40)
    assert not cache.cross_attention
    assert not cache.cross_keys
    ids = torch.arange(12)
    found = Neighbors(torch.zeros(2, 2, R, dtype=torch.int64))
    logits = model.prefill(cache, [0], [ids], [found])
    with torch.no_grad():
        torch.testing.assert_close(logits[0], model(ids[None])[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_stays_near_the_full_pass(dtype: torch.dtype) -> None:
    model = random_model(small_config())
    sequence = Sequence(model, 5, 2, seed=80)
    low = random_model(small_config()).to(torch.bfloat16)
    cache = low.new_cache(1, LENGTH, dtype)
    logits = [low.prefill(cache, [0], [sequence.ids[:20]], [sequence.neighbors(0, 20)], [5])]
    for position in range(20, LENGTH):
        found = sequence.neighbors(position, position + 1)
        logits.append(low.step(cache, [0], sequence.ids[position : position + 1], [found]))
    difference = (torch.cat(logits).float() - sequence.full[19:]).abs().max()
    assert difference <= 0.06 * sequence.full.abs().max()


def test_refusals_change_nothing() -> None:
    model = random_model(small_config())
    with pytest.raises(ArgumentError, match=r"1\.\.128"):
        model.new_cache(1, 129)
    cache = model.new_cache(2, 12)
    ids = torch.arange(9)
    found = Neighbors(torch.zeros(2, 2, R, dtype=torch.int64))
    model.prefill(cache, [0], [ids], [found])
    cases = [
        lambda: model.prefill(cache, [0], [ids], [found]),
        lambda: model.prefill(cache, [1], [ids[:0]]),
        lambda: model.prefill(cache, [1], [torch.arange(13)]),
        lambda: model.prefill(cache, [1], [ids], first_chunks=[9]),
        lambda: model.prefill(cache, [1], [ids], [Neighbors(found.ids_LKR[:1])]),
        lambda: model.prefill(cache, [1], [ids], [Neighbors(found.ids_LKR, torch.ones(2, 1))]),
        lambda: model.prefill(cache, [1], [ids], [Neighbors(torch.zeros(2, 3, R, dtype=torch.int64))]),
        lambda: model.prefill(cache, [1], [ids], [Neighbors(torch.zeros(2, 1, R + 1, dtype=torch.int64))]),
        lambda: model.step(cache, [0, 0], ids[:2]),
        lambda: model.step(cache, [0], ids[:1], [Neighbors(found.ids_LKR[:1])]),
    ]
    for case in cases:
        with pytest.raises(ArgumentError):
            case()
        assert cache.lengths == [9, 0]
    assert cache.free_slots == [1]
    assert cache.room(0) == 3
