"""The advice to read ahead names the pages of the rows that are asked for, all of them and no others."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from openbook_database import files
from openbook_database.files import map_array, read_ahead
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot

ROWS, ELEMENTS = 5000, 50  # rows of 100 bytes, some of which cross a page's border


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Address and bytes of each advice that the system took."""
    taken: list[tuple[int, int]] = []
    advise = files._madvise

    def recorded(address: int, length: int, advice: int) -> None:
        assert advice == mmap.MADV_WILLNEED and address % mmap.PAGESIZE == 0
        assert advise(address, length, advice) == 0
        taken.append((address, length))

    monkeypatch.setattr(files, "_madvise", recorded)
    monkeypatch.setattr(files, "_READ_AHEAD_BYTES", 0)
    return taken


def test_the_pages_of_the_rows_are_asked_for(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    values = np.random.default_rng(1).integers(0, 60_000, (ROWS, ELEMENTS)).astype("<u2")
    values.tofile(tmp_path / "rows.bin")
    mapped = map_array(tmp_path / "rows.bin", "u2", values.shape)
    for rows in (
        np.arange(100),
        np.random.default_rng(2).integers(0, ROWS, 300),
        np.full(9, ROWS - 1),
        np.arange(ROWS),
    ):
        asked.clear()
        read_ahead(mapped, rows)
        pages = {page for start, length in asked for page in range(start, start + length, mmap.PAGESIZE)}
        base, row_bytes = mapped.ctypes.data, 2 * ELEMENTS
        wanted = {
            place // mmap.PAGESIZE * mmap.PAGESIZE
            for row in rows.tolist()
            for place in (base + row * row_bytes, base + (row + 1) * row_bytes - 1)
        }
        assert pages == wanted
        assert len(asked) <= len(wanted)
        np.testing.assert_array_equal(mapped[rows], values[rows])
    assert len(asked) == 1, "pages side by side are one advice"
    asked.clear()
    read_ahead(mapped, np.arange(3))
    assert not asked


def test_chunks_are_read_ahead_with_their_continuations(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    shard = Snapshot.open(build_tiny_snapshot(tmp_path / "s", documents=40).path, "sizes").shards[0]
    expected = [shard.tokens(np.asarray([number])) for number in range(shard.rows)]
    asked.clear()
    tokens_N2M, lengths_N2 = shard.tokens(np.arange(shard.rows))
    assert asked
    np.testing.assert_array_equal(tokens_N2M, np.concatenate([tokens for tokens, _ in expected]))
    np.testing.assert_array_equal(lengths_N2, np.concatenate([lengths for _, lengths in expected]))
