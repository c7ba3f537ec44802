"""Rows of several short documents: each computes what it computes alone, on a fused kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from trainer_fakes import SNAPSHOT, FakeRetriever, M, byte_tokenizer

from openbook_model import RetroConfig, RetroModel, initialise
from openbook_model.chunks import complete_chunks
from openbook_trainer.config import BatchConfig, RetrievalConfig
from openbook_trainer.data import IGNORED, Batch, ChunkedCorpus, SequenceOrder
from openbook_trainer.evaluation import summed_loss
from openbook_trainer.neighbours import LiveSource, Neighbors

SIZES = (3, 2 * M, M + 5, M, 1, 2 * M + 1, 5, 3 * M, M - 1, 3 * M + 7)
CPU = torch.device("cpu")


def corpus() -> ChunkedCorpus:
    random = np.random.default_rng(2)
    documents = [(f"d{n}", random.integers(97, 122, size).astype(np.uint32)) for n, size in enumerate(SIZES)]
    return ChunkedCorpus(documents, byte_tokenizer(), M)


def model_of(*, conditioned: bool, positions: str) -> RetroModel:
    """Gates and biases are away from 0."""
    encoder = {"hidden_size": 16, "num_heads": 2, "conditioned": conditioned}
    settings: dict[str, Any] = {
        "vocab_size": 257,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    settings |= {"chunk_length": M, "max_positions": 64, "cross_attention_layers": [2, 3], "positions": positions}
    model = RetroModel.allocate(RetroConfig.parse({**settings, "encoder": encoder}))
    initialise(model, 5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("conditioned", "positions"), [(False, "rotary"), (True, "learned")])
def test_each_document_of_a_row_is_as_it_is_alone(conditioned: bool, positions: str) -> None:
    model = model_of(conditioned=conditioned, positions=positions)
    order = SequenceOrder(corpus(), BatchConfig(chunks=6, neighbor_drop=0.2), seed=1)
    source = LiveSource(FakeRetriever(), RetrievalConfig(address="here", database="book"), SNAPSHOT, 2, M)
    seen, read = set(), 0
    batch = order.samples(0, 30)
    found = source.fetch(batch)
    ids_BLKR, lengths_BLK = torch.from_numpy(found.ids_BLKR), torch.from_numpy(found.lengths_BLK)
    assert batch.document_ids_BT is not None
    documents_BT = torch.from_numpy(batch.document_ids_BT)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where that kernel cannot do it; a CPU's takes masks
        packed_BTV = model(
            torch.from_numpy(batch.input_ids_BT),
            ids_BLKR,
            lengths_BLK,
            first_chunk=batch.first_chunk,
            document_ids_BT=documents_BT,
        )
        total = summed_loss(model, batch, found, CPU)
        torch.autograd.backward(total)
    alone_loss = torch.tensor(0.0)
    for row, phase in enumerate(batch.first_chunk):
        used_T = batch.labels_BT[row] != IGNORED
        for document in np.unique(batch.document_ids_BT[row][used_T]):
            places = np.flatnonzero(used_T & (batch.document_ids_BT[row] == document))
            start, end = int(places[0]), int(places[-1]) + 1
            assert end - start == len(places)
            first = 0 if start == 0 else 1 + (start - phase) // M
            own_phase = phase if start == 0 else M
            assert start == 0 or (start - phase) % M == 0, "a document starts on a border"
            chunks = slice(first, first + complete_chunks(end - start, own_phase, M))
            alone_TV = model(
                torch.from_numpy(batch.input_ids_BT[row, start:end])[None],
                ids_BLKR[row : row + 1, chunks],
                lengths_BLK[row : row + 1, chunks],
                first_chunk=own_phase,
            )[0]
            difference = (packed_BTV[row, start:end] - alone_TV).abs().max()
            assert difference <= 2e-5 * alone_TV.abs().max()
            labels_T = torch.from_numpy(batch.labels_BT[row, start:end])
            alone_loss = alone_loss + F.cross_entropy(alone_TV, labels_T, reduction="sum")
            seen.add(int(document))
            read += int(lengths_BLK[row, chunks].sum() > 0)
    assert len(seen) == len(SIZES)
    assert read > len(SIZES)
    torch.testing.assert_close(total, alone_loss, rtol=2e-6, atol=0)


WHOLE, MISSING = 2 * M, 0


@pytest.mark.parametrize(
    ("lengths", "attended", "masks"),
    [
        ({}, False, False),
        ({0: (MISSING, MISSING)}, False, False),
        ({0: (WHOLE, MISSING)}, False, True),
        ({0: (WHOLE, 5)}, False, True),
        ({0: (WHOLE, 5), 2: (MISSING, MISSING)}, True, False),
        ({0: (5, MISSING)}, True, True),
    ],
)
@pytest.mark.parametrize("conditioned", [False, True])
def test_attention_has_a_mask_only_where_a_neighbour_is_padded(
    conditioned: bool,
    lengths: dict[int, tuple[int, int]],
    attended: bool,
    masks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU a mask rules the flash kernel out. With or without, loss and gradients are those of the lengths."""
    seen: list[bool] = []
    real = F.scaled_dot_product_attention

    def noted(*args: Any, attn_mask: Any = None, **options: Any) -> Any:
        seen.append(attn_mask is not None)
        return real(*args, attn_mask=attn_mask, **options)

    model = model_of(conditioned=conditioned, positions="rotary")
    model.config = model.config.model_copy(update={"neighbor_padding": "attended" if attended else "masked"})
    random = np.random.default_rng(3)
    tokens_BT = random.integers(97, 122, (2, 4 * M))
    batch = Batch(tokens_BT, np.roll(tokens_BT, -1, axis=1), None, (M, 3), ())
    found = Neighbors(random.integers(1, 250, (2, 4, 2, 2 * M)), np.full((2, 4, 2), WHOLE))
    for chunk, of_chunk in lengths.items():
        found.lengths_BLK[1, chunk] = of_chunk
    with monkeypatch.context() as noting:
        noting.setattr(F, "scaled_dot_product_attention", noted)
        loss = summed_loss(model, batch, found, CPU)
    assert any(seen) is masks
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    logits_BTV = model(
        torch.from_numpy(tokens_BT),
        torch.from_numpy(found.ids_BLKR),
        torch.from_numpy(found.lengths_BLK),
        first_chunk=batch.first_chunk,
    )
    expected = F.cross_entropy(logits_BTV.flatten(0, 1), torch.from_numpy(batch.labels_BT).flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for one, other in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_chunks_whose_document_ends_within_them_ask_nothing() -> None:
    grid = corpus()
    order = SequenceOrder(grid, BatchConfig(chunks=grid.chunks, neighbor_drop=0.0, vary_phase=False), seed=1)
    (asked,) = order.samples(0, 1).queries
    assert [query is not None for query in asked] == (grid.lengths_C == M).tolist()


def test_without_retrieval_only_the_queries_are_gone() -> None:
    settings = BatchConfig(chunks=6, neighbor_drop=0.2)
    asking, silent = (SequenceOrder(corpus(), settings, seed=1, asks=asks) for asks in (True, False))
    for number in range(2 * asking.sequences):
        one, other = asking.samples(number, 1), silent.samples(number, 1)
        np.testing.assert_array_equal(one.input_ids_BT, other.input_ids_BT)
        np.testing.assert_array_equal(one.labels_BT, other.labels_BT)
        assert one.first_chunk == other.first_chunk
        assert not any(other.queries[0])
