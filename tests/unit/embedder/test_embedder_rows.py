"""Batches divided between cores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from openbook_core.weights import DEFAULT_EMBEDDER
from openbook_database.build.progress import Update
from openbook_database.build.run import BuildResult, build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.testing import tiny_rows, tiny_tokenizer, write_rows
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.rows import RowThreads, padded


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(st.lists(st.lists(st.integers(0, 30_000), min_size=1, max_size=9), min_size=1, max_size=9))
def test_rows_are_filled_up_on_the_right(ids: list[list[int]]) -> None:
    ids_NT, mask_NT = padded(ids, 7)
    longest = max(map(len, ids))
    assert ids_NT.tolist() == [[*row, *[7] * (longest - len(row))] for row in ids]
    assert mask_NT.tolist() == [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    assert ids_NT.dtype == mask_NT.dtype == np.int64


def test_parts_in_order_each_on_one_thread() -> None:
    parts: list[tuple[str, int, int]] = []
    both_at_work = threading.Barrier(2)

    def encode(rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if len(rows) > 1:
            both_at_work.wait(30)
        parts.append((threading.current_thread().name, torch.get_num_threads(), len(rows)))
        return np.array([[row[0]] for row in rows], dtype=np.float32)

    threads = RowThreads(encode, 2)
    found_ND = threads.encode([[number] * 100 for number in range(9)])
    assert found_ND.tolist() == [[number] for number in range(9)]
    assert sorted(rows for _, _, rows in parts) == [4, 5]
    assert {count for _, count, _ in parts} == {1} and len({name for name, _, _ in parts}) == 2

    parts.clear()
    assert threads.encode([[7] * 100]).tolist() == [[7]]  # too little to divide
    assert parts == [(threading.current_thread().name, 2, 1)]


@pytest.mark.parametrize("kind", ["bert", DEFAULT_EMBEDDER])
def test_the_bytes_of_a_list_are_the_same_for_any_number_of_threads(
    encoder_of: Callable[[str], Path], kind: str
) -> None:
    texts = [f"{'word ' * (number % 9 * 9)}number {number}" for number in range(24)]
    found = []
    for threads in (1, 2):
        engine = EncoderEngine.load(encoder_of(kind), dtype="float32", threads=threads)
        assert engine.arithmetic == {"cpu": torch.backends.cpu.get_cpu_capability()}
        ids = engine.tokenize(texts).ids
        in_batches = {}
        for places in engine.batches(ids):
            in_batches |= zip(places, engine.encode_ids([ids[place] for place in places]), strict=True)
        whole_ND = engine.encode(texts)
        assert np.stack([in_batches[place] for place in range(24)]).tobytes() == whole_ND.tobytes()
        found.append(whole_ND.tobytes())
    assert len(set(found)) == 1
    assert len(engine.sub_batches(ids)) > 2


def test_a_build_goes_on_with_another_number_of_threads_to_the_same_bytes(
    encoder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", tiny_rows(20, words=80))
    settings = BuildSettings(chunk_length=16, embed_block=64)

    def build(name: str, threads: int, interrupted: bool = False) -> BuildResult:
        def stop(update: Update) -> None:
            if interrupted and update.stage == "embed" and update.done > 128:
                raise KeyboardInterrupt

        encoder = EncoderEngine.load(encoder_of("bert"), dtype="float32", threads=threads)
        return build_snapshot(
            [source],
            tmp_path / name,
            database="tiny",
            tokenizer=tiny_tokenizer(),
            encoder=encoder,
            settings=settings,
            progress=stop,
        )

    with pytest.raises(KeyboardInterrupt):
        build("parts", 2, interrupted=True)
    parts = build("parts", 1)
    assert parts.resumed and parts.chunks > 192
    assert parts.snapshot_id == build("whole", 2).snapshot_id
