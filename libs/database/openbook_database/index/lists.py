"""The inverted lists of one shard on disk: Faiss' own form of them, and the place of each row in them.

lists.faiss holds "ilar", the number of lists and the size of a code (u64), the sizes of the lists ("full": all; "sprs":
pairs of list and size), then for each list its codes and its rows (i64). places.bin holds for each row its list and its
position there (u4, u4). Integers are little-endian.
"""

from __future__ import annotations

import mmap
import struct
import weakref
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from openbook_core.errors import CorruptError
from openbook_database.files import map_array

_HEAD = struct.Struct("<4sQQ4sQ")
PLACE_BYTES = 8
_STEP = 1 << 13


class Lists:
    """Inverted lists, mapped. `sizes`: rows of each list; `faiss`: the same lists for Faiss to scan."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptError where the file is cut or is something else."""
        self.path = path
        try:
            with path.open("rb") as stream:
                mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path}: cannot be read: {error}") from error
        mapping.madvise(mmap.MADV_RANDOM)
        self._bytes: NDArray[np.uint8] = np.frombuffer(mapping, dtype=np.uint8)
        if len(mapping) < _HEAD.size:
            raise CorruptError(f"{path}: is not an index: {len(mapping)} bytes")
        name, count, self.code_size, form, length = _HEAD.unpack_from(mapping)
        body = _HEAD.size + 8 * length
        if name != b"ilar" or form not in (b"full", b"sprs") or len(mapping) < body or count > 1 << 32:
            raise CorruptError(f"{path}: is not an index: holds no inverted lists")
        numbers = np.frombuffer(mapping, dtype="<u8", count=length, offset=_HEAD.size).astype(np.int64)
        if form == b"full":
            self.sizes = numbers
        else:
            self.sizes = np.zeros(count, dtype=np.int64)
            self.sizes[np.minimum(numbers[::2], count - 1)] = numbers[1::2]
        bytes_of = self.sizes * (self.code_size + 8)
        if len(self.sizes) != count or body + int(bytes_of.sum()) != len(mapping):
            raise CorruptError(f"{path}: {len(mapping)} bytes are not those of its {count} lists")
        self._starts = body + np.cumsum(bytes_of) - bytes_of
        # One window for each byte: a code is copied whole, not byte by byte.
        self._windows = sliding_window_view(self._bytes, self.code_size) if self.code_size <= len(mapping) else None
        self.faiss: Any = faiss.read_InvertedLists(faiss.FileIOReader(str(path)), faiss.IO_FLAG_MMAP)
        # Python does not own what Faiss reads: without this it would stay mapped for ever.
        kind: Any = faiss.OnDiskInvertedLists
        weakref.finalize(self, kind.__swig_destroy__, self.faiss).atexit = False

    @property
    def rows(self) -> int:
        """Rows of all lists."""
        return int(self.sizes.sum())

    def codes(self, lists_N: NDArray[np.int64], positions_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The codes [n, b] at places."""
        starts_N = self._starts[lists_N] + positions_N * self.code_size
        assert self._windows is not None, "lists without rows hold no codes"
        codes_NB: NDArray[np.uint8] = self._windows[starts_N]
        return codes_NB

    def list_codes(self, number: int) -> NDArray[np.uint8]:
        """All codes [n, b] of a list."""
        start, size = int(self._starts[number]), int(self.sizes[number])
        return self._bytes[start : start + size * self.code_size].reshape(size, self.code_size)

    def list_rows(self, number: int) -> NDArray[np.int64]:
        """The rows [n] of a list."""
        size = int(self.sizes[number])
        start = int(self._starts[number]) + size * self.code_size
        return np.frombuffer(self._bytes[start : start + 8 * size].tobytes(), dtype="<i8")


def write_lists(path: Path, lists_N: NDArray[np.integer], codes_NB: NDArray[np.uint8], count: int) -> None:
    """Write `count` inverted lists, given the list [n] and the code [n, b] of each row; 8 more bytes of memory for each.

    The bytes are those of Faiss' `write_InvertedLists`.
    """
    sizes = np.bincount(lists_N, minlength=count)
    used = np.flatnonzero(sizes)
    full = len(used) > count // 2
    numbers = sizes if full else np.stack([used, sizes[used]], axis=1).reshape(-1)
    order = np.argsort(lists_N, kind="stable")
    with path.open("wb") as stream:
        form = b"full" if full else b"sprs"
        stream.write(
            _HEAD.pack(b"ilar", count, codes_NB.shape[1], form, len(numbers)) + numbers.astype("<u8").tobytes()
        )
        for end, size in zip(np.cumsum(sizes[used]).tolist(), sizes[used].tolist(), strict=True):
            rows = order[end - size : end]
            for first in range(0, size, _STEP):
                stream.write(codes_NB[rows[first : first + _STEP]].data)
            stream.write(rows.astype("<i8").data)


def write_places(path: Path, lists_path: Path) -> None:
    """Write the place of every row of the lists in `lists_path`."""
    lists = Lists(lists_path)
    places_N2 = np.empty((lists.rows, 2), dtype="<u4")
    for number in np.flatnonzero(lists.sizes).tolist():
        rows = lists.list_rows(number)
        places_N2[rows, 0] = number
        places_N2[rows, 1] = np.arange(len(rows))
    path.write_bytes(places_N2.tobytes())


def map_places(path: Path, rows: int) -> NDArray[np.uint32]:
    """List and position [n, 2] of each row, mapped."""
    return map_array(path, "u4", (rows, 2))
