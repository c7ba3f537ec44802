"""Batches divided between cores: each core encodes rows of its own, on one thread.

torch divides every operation instead, and at the end of each all cores wait for the slowest. Where callers and other
services work on the same cores, that adds up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

# Where there is less than this for each core, torch divides the operations: one core alone would take too long.
_LEAST_TOKENS = 64
# From so many for each core a larger batch is less than a tenth quicker for each text.
ENOUGH_TOKENS = 256
# Padded tokens of a batch that a core's caches hold best.
BEST_TOKENS = 1024

Rows = Sequence[Sequence[int]]
EncodeRows = Callable[[Rows], NDArray[np.float32]]


class RowThreads:
    """`count` single-threaded threads around `encode` of one batch; with 1 all is encoded on the caller's."""

    def __init__(self, encode: EncodeRows, count: int) -> None:
        self._encode = encode
        self.count = count
        self._pool = ThreadPoolExecutor(self.count, "embedder-rows", initializer=_use_one_thread)
        if self.count > 1:
            all_begun = threading.Barrier(self.count)
            list(self._pool.map(lambda _: all_begun.wait(), range(self.count)))
            # What a thread sets holds for itself and for those that begin later.
            torch.set_num_threads(self.count)

    def encode(self, ids: Rows) -> NDArray[np.float32]:
        """The vectors of one batch, in equal parts on all threads where each is worth it.

        The parts follow from the rows' lengths and the number of threads.
        """
        padded = len(ids) * max(map(len, ids))
        if self.count == 1 or len(ids) < self.count or padded < _LEAST_TOKENS * self.count:
            return self._encode(ids)
        ends = [len(ids) * part // self.count for part in range(self.count + 1)]
        parts = [ids[first:last] for first, last in pairwise(ends)]
        return np.concatenate(list(self._pool.map(self._encode, parts)))

    def map(self, batches: Sequence[Rows]) -> Iterator[NDArray[np.float32]]:
        """The vectors of each batch, each computed by one thread, so that the bits follow from the batch alone."""
        return self._pool.map(self._encode, batches) if self.count > 1 else map(self._encode, batches)


def padded(ids: Rows, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids [rows, longest] filled up on the right with `pad_id`, and the mask that is 1 at those of the rows."""
    lengths_N = np.fromiter(map(len, ids), np.int64, len(ids))
    mask_NT = np.arange(lengths_N.max()) < lengths_N[:, None]
    ids_NT = np.full(mask_NT.shape, pad_id, dtype=np.int64)
    ids_NT[mask_NT] = np.fromiter(chain.from_iterable(ids), np.int64, lengths_N.sum())
    return ids_NT, mask_NT.astype(np.int64)


def _use_one_thread() -> None:
    torch.get_num_threads()  # or the first operation of the thread would set its number once more
    torch.set_num_threads(1)
