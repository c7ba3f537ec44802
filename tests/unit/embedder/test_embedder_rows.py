"""Batches divided between cores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from openbook_embedder.engine import EncoderEngine
from openbook_embedder.rows import RowThreads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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


def test_vectors_are_those_of_one_thread(encoder_of: Callable[[str], Path]) -> None:
    texts = [f"{'word ' * (number % 9)}number {number}" for number in range(150)]
    two = EncoderEngine.load(encoder_of("bert"), dtype="float32", threads=2).encode(texts)
    one = EncoderEngine.load(encoder_of("bert"), dtype="float32", threads=1).encode(texts)
    assert np.abs(two - one).max() <= 1e-5
