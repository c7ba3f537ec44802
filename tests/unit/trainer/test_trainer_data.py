"""The corpus grid and the order of data, against a plain reading of the same documents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as settings_
from hypothesis import strategies as st
from trainer_fakes import M, byte_tokenizer, settings, write_corpus

from openbook_core.errors import InputError
from openbook_model.chunks import complete_chunks
from openbook_trainer.config import BatchConfig, TrainConfig
from openbook_trainer.data import IGNORED, ChunkedCorpus, SequenceOrder, read_corpus

END = 256


def corpus_of(*texts: str) -> ChunkedCorpus:
    tokenizer = byte_tokenizer()
    return ChunkedCorpus([(f"d{n}", tokenizer.encode(text)) for n, text in enumerate(texts)], tokenizer, M)


def test_documents_start_on_borders_and_labels_follow_within_a_document() -> None:
    texts = ("abcdefghijk", "x" * M, "yz")
    corpus = corpus_of(*texts)
    assert corpus.chunks == 4
    assert corpus.document_C.tolist() == [0, 0, 1, 2]
    assert corpus.lengths_C.tolist() == [8, 3, 8, 2]
    tokenizer = byte_tokenizer()
    inputs, labels = corpus.tokens_CM.ravel(), corpus.labels_CM.ravel()
    used = labels != IGNORED
    expected_inputs = [token for text in texts for token in tokenizer.encode(text).tolist()]
    expected_labels = [token for text in texts for token in [*tokenizer.encode(text).tolist()[1:], END]]
    assert inputs[used].tolist() == expected_inputs
    assert labels[used].tolist() == expected_labels


def test_queries_are_the_chunks_text_and_name_their_document() -> None:
    corpus = corpus_of("abcdefghijk", " " * M)
    assert [corpus.query(c) and corpus.query(c).text for c in range(3)] == ["abcdefgh", "ijk", None]  # type: ignore[union-attr]
    query = corpus.query(0, dropped=5)
    assert query is not None
    assert (query.text, query.document_id) == ("fgh", "d0")


def order_of(seed: int = 1, **changes: object) -> SequenceOrder:
    corpus = corpus_of(*("abcdefghijklmnopqrstuvwxyz" * n for n in range(1, 9)))
    return SequenceOrder(corpus, BatchConfig.parse({"chunks": 3, **changes}), seed)


def test_a_batch_is_a_function_of_its_place_alone() -> None:
    straight, jumping = order_of(), order_of()
    far = jumping.samples(100, 2)
    for number in range(102):
        batch = straight.samples(number, 1)
        if number >= 100:
            row = number - 100
            np.testing.assert_array_equal(batch.input_ids_BT[0], far.input_ids_BT[row])
            assert (batch.first_chunk[0], batch.queries[0]) == (far.first_chunk[row], far.queries[row])
    assert not np.array_equal(order_of(seed=2).samples(100, 2).input_ids_BT, far.input_ids_BT)


@given(
    seed=st.integers(0, 2**32),
    first=st.integers(0, 10_000),
    count=st.integers(1, 6),
    micro=st.integers(1, 3),
    before=st.lists(st.integers(0, 10_000), max_size=3),
)
@example(seed=0, first=0, count=6, micro=1, before=[9_999])
@settings_(max_examples=20, deadline=None, derandomize=True)
def test_data_order_is_a_function_of_seed_epoch_and_index(
    seed: int, first: int, count: int, micro: int, before: list[int]
) -> None:
    """Whatever was asked before, and however the samples are cut into batches."""
    once, cut = order_of(seed), order_of(seed)
    for number in before:
        cut.samples(number, 1)
    wanted = once.samples(first, count)
    rows = 0
    for start in range(first, first + count, micro):
        batch = cut.samples(start, min(micro, first + count - start))
        for row in range(len(batch.queries)):
            np.testing.assert_array_equal(batch.input_ids_BT[row], wanted.input_ids_BT[rows])
            np.testing.assert_array_equal(batch.labels_BT[row], wanted.labels_BT[rows])
            assert batch.queries[row] == wanted.queries[rows]
            assert batch.first_chunk[row] == wanted.first_chunk[rows]
            rows += 1
    assert rows == count


def test_an_epoch_visits_each_sequence_once_on_the_grid() -> None:
    order = order_of(vary_phase=False)
    for epoch in range(3):
        rows = order.samples(epoch * order.sequences, order.sequences).input_ids_BT.reshape(order.sequences, 3, M)
        grid = order.corpus.tokens_CM
        starts = [
            next(
                start
                for start in range(epoch_offset, len(grid) - 2, 3)
                if np.array_equal(grid[start : start + 3], row) and start not in seen
            )
            for epoch_offset, seen in [(order._offset, set())]
            for row in rows
        ]
        assert sorted(starts)[0] >= order._offset
        assert {start % 3 for start in starts} == {order._offset % 3}


def test_dropped_tokens_leave_later_borders_on_the_grid() -> None:
    order, whole = order_of(neighbor_drop=0.0), order_of(neighbor_drop=0.0, vary_phase=False)
    phases = set()
    for number in range(60):
        cut, full = order.samples(number, 1), whole.samples(number, 1)
        phase = cut.first_chunk[0]
        phases.add(phase)
        length = 3 * M
        assert complete_chunks(length, phase, M) == 3
        kept = length - (M - phase)
        np.testing.assert_array_equal(cut.input_ids_BT[0, :kept], full.input_ids_BT[0, M - phase :])
        assert (cut.labels_BT[0, kept:] == IGNORED).all()
        assert cut.queries[0][1:] == full.queries[0][1:]
    assert phases == set(range(1, M + 1))


def test_no_two_random_streams_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real, starts = np.random.PCG64, []

    def noted(seed: list[int]) -> np.random.PCG64:
        generator = real(seed)
        starts.append(generator.state["state"]["state"])
        return generator

    monkeypatch.setattr(np.random, "PCG64", noted)
    order = order_of(seed=0)
    order.samples(0, 2 * order.sequences)
    assert len(starts) == 2 * order.sequences + 2 * 2, "one for each sample; offset and permutation of each epoch"
    assert len(set(starts)) == len(starts)


def test_neighbours_are_dropped_at_the_given_rate() -> None:
    order = order_of(neighbor_drop=0.25)
    queries = [query for number in range(800) for query in order.samples(number, 1).queries[0]]
    dropped = sum(query is None for query in queries) / len(queries)
    assert 0.21 < dropped < 0.29


def test_held_out_documents_are_apart(tmp_path: Path) -> None:
    write_corpus(tmp_path, documents=20)
    config = TrainConfig.parse(settings(tmp_path, corpus={"held_out": 0.2}))
    train, held_out = read_corpus(config.corpus, byte_tokenizer(), M)
    assert len(held_out.document_ids) == 4
    assert sorted(train.document_ids + held_out.document_ids) == sorted(f"d{n}" for n in range(20))


def test_max_documents_holds_over_all_sources(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in paths:
        rows = [{"id": f"{path.stem}{n}", "text": "some words"} for n in range(4)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [f"{path.stem}{n}" for path in paths for n in range(4)]
    for most in (3, 4, 6, 9):
        corpus = {"sources": [{"path": str(path)} for path in paths], "max_documents": most}
        parts = read_corpus(TrainConfig.parse(settings(tmp_path, corpus=corpus)).corpus, byte_tokenizer(), M)
        assert sorted(parts[0].document_ids + parts[1].document_ids) == names[:most]


def test_bad_corpora(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    write_corpus(tmp_path, documents=1)
    config = TrainConfig.parse(settings(tmp_path)).corpus
    with pytest.raises(InputError, match="at least 2"):
        read_corpus(config, byte_tokenizer(), M)
    path.write_text(json.dumps({"id": "a", "text": "x"}) + "\nnot json\n")
    with pytest.raises(InputError, match="line 2"):
        read_corpus(config, byte_tokenizer(), M)
