"""Tokens of the documents that are kept, read back from the finished blocks of the chunk stage."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of a block: rows of each document int64 [n], token rows [N, m], tokens used uint16 [N].
BlockTokens = tuple[NDArray[np.int64], NDArray[Any], NDArray[np.uint16]]
_OPEN_BLOCKS = 16


class KeptTokens:
    """Documents numbered from 0; those of the block in work are held, the others are mapped."""

    def __init__(self, read_block: Callable[[int], BlockTokens]) -> None:
        self._firsts = [0]
        self._pending: list[NDArray[Any]] = []
        self._read = lru_cache(_OPEN_BLOCKS)(read_block)

    def add(self, tokens: NDArray[Any]) -> None:
        self._pending.append(tokens)

    def block_written(self, documents: int) -> None:
        """The next block is finished and holds the next `documents`."""
        self._firsts.append(self._firsts[-1] + documents)
        del self._pending[:documents]

    def tokens(self, number: int) -> NDArray[Any]:
        """Token ids of a document."""
        if number >= self._firsts[-1]:
            return self._pending[number - self._firsts[-1]]
        block = bisect_right(self._firsts, number) - 1
        rows, tokens_NM, lengths_N = self._read(block)
        place = number - self._firsts[block]
        first = int(rows[:place].sum())
        end = first + int(rows[place])
        return tokens_NM[first:end].reshape(-1)[: int(lengths_N[first:end].sum())]
