"""The full pass against a dense oracle, and what it promises about causality, missing neighbours and packing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_oracle import dense_forward
from hypothesis import given
from hypothesis import strategies as st
from model_factory import random_model, small_config
from torch import Tensor

from openbook_core.errors import ArgumentError
from openbook_model.chunks import chunks_due, complete_chunks, default_first_chunk
from openbook_model.config import RetroConfig
from openbook_model.initialisation import start_copying
from openbook_model.model import RetroModel, cross_attention_state

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"norm": "rmsnorm", "gate": "learned"},
    "gpt2": {
        "norm": "layernorm",
        "norm_bias": True,
        "positions": "learned",
        "mlp": "gelu",
        "num_kv_heads": 4,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "cross_attention_bias": True,
        "conditioned": True,
        "encoder": {"bias": True, "positions": "learned"},
    },
    "nvidia": {
        "norm": "layernorm1p",
        "norm_bias": True,
        "rotary_fraction": 0.5,
        "tied_embeddings": False,
        "conditioned": True,
        "encoder": {"positions": "none", "final_norm": False, "cross_attention_residual": "normalised"},
    },
    "ours": {
        "norm": "layernorm",
        "mlp": "gelu_tanh",
        "cross_attention_layers": (1, 2, 4),
        "encoder": {"convolution": 3},
    },
}


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def model(request: pytest.FixtureRequest) -> RetroModel:
    return random_model(small_config(**VARIANTS[request.param]))


def neighbors(model: RetroModel, batch: int, chunks: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random neighbours of random lengths; some missing, one whole."""
    generator = torch.Generator().manual_seed(seed)
    r = model.config.neighbor_length
    ids = torch.randint(0, model.config.vocab_size, (batch, chunks, k, r), generator=generator)
    lengths = torch.randint(0, r + 1, (batch, chunks, k), generator=generator)
    lengths[0, 0, 0] = r
    if chunks > 1:
        lengths[0, 1] = 0
    return ids, lengths


def tokens(model: RetroModel, batch: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize(("first_chunk", "k"), [(1, 1), (5, 2), (8, 3), (None, 5)])
def test_equals_the_dense_oracle(model: RetroModel, first_chunk: int | None, k: int) -> None:
    length, m = 27, model.config.chunk_length
    phase = first_chunk or default_first_chunk(length, m)
    ids = tokens(model, 2, length)
    found, lengths = neighbors(model, 2, complete_chunks(length, phase, m), k, seed=2)
    logits = model(ids, found, lengths, first_chunk=first_chunk)
    for row in range(2):
        expected = dense_forward(model, ids[row], found[row], lengths[row], phase)
        assert (logits[row] - expected).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_rows_of_mixed_phase_equal_each_row_alone(model: RetroModel) -> None:
    phases, length, m = [3, 8, 1, 6], 18, model.config.chunk_length
    counts = [complete_chunks(length, phase, m) for phase in phases]
    assert len(set(counts)) > 1
    ids = tokens(model, 4, length)
    found, lengths = neighbors(model, 4, max(counts), 2, seed=3)
    mixed = model(ids, found, lengths, first_chunk=torch.tensor(phases))
    for row, (phase, count) in enumerate(zip(phases, counts, strict=True)):
        part = slice(row, row + 1)
        alone = model(ids[part], found[part, :count], lengths[part, :count], first_chunk=phase)
        torch.testing.assert_close(mixed[part], alone, atol=2e-5 * alone.abs().max().item(), rtol=0)


@torch.no_grad()
def test_a_later_token_or_neighbor_changes_nothing_before(model: RetroModel) -> None:
    length, phase, m = 29, 5, model.config.chunk_length
    ids = tokens(model, 1, length)
    found, lengths = neighbors(model, 1, complete_chunks(length, phase, m), 2, seed=4)
    lengths.clamp_(min=3)
    before = model(ids, found, lengths, first_chunk=phase)
    for position in range(1, length):
        other = ids.clone()
        other[0, position] = (other[0, position] + 1) % model.config.vocab_size
        after = model(other, found, lengths, first_chunk=phase)
        assert torch.equal(before[:, :position], after[:, :position])
        assert not torch.equal(before[:, position], after[:, position])
    for chunk in range(found.shape[1]):
        other_found = found.clone()
        other_found[:, chunk] = (other_found[:, chunk] + 1) % model.config.vocab_size
        after = model(ids, other_found, lengths, first_chunk=phase)
        first_user = phase - 1 + chunk * m
        assert torch.equal(before[:, :first_user], after[:, :first_user])
        assert not torch.equal(before[:, first_user], after[:, first_user])


@torch.no_grad()
def test_missing_neighbors_are_off_exactly(model: RetroModel) -> None:
    ids = tokens(model, 2, 21)
    found, lengths = neighbors(model, 2, 3, 2, seed=5)
    lengths[1] = 0
    logits, off = model(ids, found, lengths), model(ids)
    assert torch.equal(logits[1], off[1])
    assert not torch.allclose(logits[0], off[0])
    assert torch.equal(model(ids[:, :4], found[:, :0], first_chunk=6), model(ids[:, :4]))


@torch.no_grad()
def test_rows_that_share_neighbours_equal_each_row_alone() -> None:
    """Of mixed phases; one group without any neighbour."""
    model = random_model(small_config(**VARIANTS["ours"]))
    ids, phases = tokens(model, 6, 11), [5, 8, 6, 7, 8, 4]
    found, lengths = neighbors(model, 3, 1, 2, seed=5)
    lengths[2] = 0
    shared = model(ids, found, lengths, first_chunk=phases)
    for row, phase in enumerate(phases):
        own = slice(row // 2, row // 2 + 1)
        alone = model(ids[row : row + 1], found[own], lengths[own], first_chunk=phase)
        torch.testing.assert_close(shared[row], alone[0], atol=2e-5 * alone.abs().max().item(), rtol=0)
    assert not torch.allclose(shared[0], model(ids)[0])
    conditioned = random_model(small_config(conditioned=True))
    with pytest.raises(ArgumentError, match="neighbor_ids"):
        conditioned(ids, found, lengths, first_chunk=phases)


@torch.no_grad()
def test_what_starts_to_copy_adds_what_it_attends_to() -> None:
    shape = {"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    model = random_model(RetroConfig(**shape, cross_attention_layers=(2,)))
    start_copying(model, 0)
    for block in model.decoder_blocks():
        if block.has_cross:
            states_RE = torch.randn(1, 1, 32)
            torch.testing.assert_close(block.cross(torch.randn(1, 3, 32), states_RE), states_RE.expand(1, 3, 32))
    with pytest.raises(ArgumentError, match="copying"):
        start_copying(random_model(small_config()), 0)


@torch.no_grad()
def test_all_or_none_needs_no_masks(model: RetroModel) -> None:
    ids = tokens(model, 2, 21)
    found, lengths = neighbors(model, 2, 3, 2, seed=5)
    lengths[:], lengths[0, 1], lengths[1] = found.shape[-1], 0, 0
    logits = model(ids, found, lengths, all_or_none=True)
    torch.testing.assert_close(logits, model(ids, found, lengths), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits[1], model(ids)[1])


@torch.no_grad()
def test_padding_tokens_and_their_number_do_not_matter(model: RetroModel) -> None:
    ids = tokens(model, 1, 16)
    found, lengths = neighbors(model, 1, 2, 2, seed=6)
    lengths.clamp_(max=11)
    before = model(ids, found, lengths)
    padding = torch.arange(found.shape[-1]) >= lengths[..., None]
    changed = torch.where(padding, 7, found)
    torch.testing.assert_close(model(ids, changed, lengths), before, atol=0, rtol=0)
    torch.testing.assert_close(model(ids, found[..., :11], lengths), before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_packed_documents_equal_each_document_alone(model: RetroModel) -> None:
    m = model.config.chunk_length
    spans = [(0, 3 * m), (3 * m, 4 * m), (4 * m, 6 * m)]
    ids = tokens(model, 1, 6 * m)
    documents = torch.cat([torch.full((1, end - start), 10 + i) for i, (start, end) in enumerate(spans)], dim=1)
    found, lengths = neighbors(model, 1, 6, 2, seed=7)
    lengths.clamp_(min=2)
    packed = model(ids, found, lengths, first_chunk=m, document_ids_BT=documents)
    for start, end in spans:
        chunks = slice(start // m, end // m)
        alone = model(ids[:, start:end], found[:, chunks], lengths[:, chunks], first_chunk=m)
        torch.testing.assert_close(packed[:, start:end], alone, atol=2e-5 * alone.abs().max().item(), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("conditioned", [False, True])
def test_padding_before_a_packed_document_is_its_phase(conditioned: bool) -> None:
    model = random_model(small_config(conditioned=conditioned))
    m = model.config.chunk_length
    sizes = [(3, 2 * m + 5), (m, m + 1), (6, 6)]
    ids, documents, spans = [], [], []
    for number, (phase, length) in enumerate(sizes):
        before, after = m - phase, -(m - phase + length) % m
        start = sum(map(len, ids)) + before
        spans.append((start, start + length))
        ids.append(torch.randint(0, 50, (before + length + after,), generator=torch.Generator().manual_seed(number)))
        documents.append(torch.tensor([-1] * before + [number] * length + [-1] * after))
    ids_BT, documents_BT = torch.cat(ids)[None], torch.cat(documents)[None]
    found, lengths = neighbors(model, 1, ids_BT.shape[1] // m, 2, seed=7)
    lengths.clamp_(min=2)
    packed = model(ids_BT, found, lengths, first_chunk=m, document_ids_BT=documents_BT)
    for (start, end), (phase, length) in zip(spans, sizes, strict=True):
        first = start // m
        chunks = slice(first, first + complete_chunks(length, phase, m))
        alone = model(ids_BT[:, start:end], found[:, chunks], lengths[:, chunks], first_chunk=phase)
        torch.testing.assert_close(packed[:, start:end], alone, atol=2e-5 * alone.abs().max().item(), rtol=0)
    wanted_BT = documents_BT == 1
    some = model(ids_BT, found, lengths, first_chunk=m, document_ids_BT=documents_BT, wanted_BT=wanted_BT)
    torch.testing.assert_close(some, packed[wanted_BT], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "lengths", "first_chunk", "field"),
    [
        ((1, 3, 2, 16), None, 8, "neighbor_ids"),
        ((2, 2, 2, 16), None, 8, "neighbor_ids"),
        ((1, 2, 2, 17), None, 8, "neighbor_ids"),
        ((1, 2, 2, 0), None, 8, "neighbor_ids"),
        ((1, 2, 2, 16), (1, 2, 1), 8, "neighbor_lengths"),
        ((1, 2, 2, 16), None, 9, "first_chunk"),
        ((1, 2, 2, 16), None, 0, "first_chunk"),
        ((1, 2, 2, 16), None, [8, 8], "first_chunk"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    shape: tuple[int, ...], lengths: tuple[int, ...] | None, first_chunk: int | list[int], field: str
) -> None:
    model = random_model(small_config())
    found = torch.zeros(shape, dtype=torch.int64)
    counts = None if lengths is None else torch.ones(lengths, dtype=torch.int64)
    with pytest.raises(ArgumentError) as caught:
        model(torch.zeros(1, 16, dtype=torch.int64), found, counts, first_chunk=first_chunk)
    assert caught.value.field == field


def test_input_longer_than_the_context_is_refused() -> None:
    model = random_model(small_config(max_positions=16))
    with pytest.raises(ArgumentError, match="17 tokens are more than the model's 16"):
        model(torch.zeros(1, 17, dtype=torch.int64))


def test_cross_attention_state() -> None:
    on = random_model(small_config(gate="learned"))
    assert cross_attention_state(on) == "on"
    for name, parameter in on.named_parameters():
        if name.endswith(".gate"):
            parameter.data.zero_()
    assert cross_attention_state(on) == "off (gate 0)"
    assert cross_attention_state(random_model(small_config(gate=0.0))) == "off (gate 0)"
    assert cross_attention_state(random_model(small_config())) == "on"
    assert cross_attention_state(random_model(small_config(cross_attention_layers=()))) == "absent"


@given(length=st.integers(1, 40), fed=st.integers(0, 39), first=st.integers(1, 8))
def test_chunks_that_come_due_are_those_that_end_after_what_was_fed(length: int, fed: int, first: int) -> None:
    tokens, fed = list(range(length)), min(fed, length - 1)
    chunks = [tokens[:first], *(tokens[start : start + 8] for start in range(first, length, 8))]
    sizes = [first] + [8] * (len(chunks) - 1)
    whole = [chunk for chunk, size in zip(chunks, sizes, strict=True) if len(chunk) == size]
    assert chunks_due(tokens, fed, first, 8) == [chunk for chunk in whole if chunk[-1] >= fed]
