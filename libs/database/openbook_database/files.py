"""Files that appear whole or not at all, and files that are mapped instead of read."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blake3
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import CorruptError, InputError
from openbook_core.files import sync

BLOCK_BYTES = 64 << 20
_READ_BYTES = 1 << 20
# Fewer rows, or those of a file that stays in memory by itself, are not worth the advice.
_READ_AHEAD_ROWS, _READ_AHEAD_BYTES = 8, 16 << 20


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file beside `path`, flush it to the disk, and rename it.

    A crash leaves either no `path` or all of it; no two writers share a temporary file.
    Raises InputError where the disk is full or writing is not allowed.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with clear_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """As `write_atomically`, for bytes at hand."""
    write_atomically(path, lambda temporary: _write(temporary, data))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full: free some space and run it again, it goes on where it stopped",
    errno.EDQUOT: "the disk quota is used up: free some space and run it again, it goes on where it stopped",
    errno.EACCES: "permission denied: choose a folder that you may write to",
    errno.EPERM: "permission denied: choose a folder that you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EFBIG: "the file is larger than this file system or a limit allows",
}


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into an InputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> InputError:
    """The InputError for an operating system's refusal to write `path`."""
    advice = _WRITE_ERRORS.get(error.errno or 0, str(error))
    return InputError(f"{path} cannot be written: {advice}", field="out", errno=error.errno)


def file_digests(path: Path) -> tuple[str, list[str]]:
    """BLAKE3 of a file, and of each of its blocks of BLOCK_BYTES (empty for a file of one block or less)."""
    whole = blake3.blake3()
    blocks = []
    with path.open("rb") as stream:
        while True:
            block = blake3.blake3()
            left = BLOCK_BYTES
            while left and (data := stream.read(min(left, _READ_BYTES))):
                whole.update(data)
                block.update(data)
                left -= len(data)
            if left < BLOCK_BYTES:
                blocks.append(block.hexdigest())
            if left:
                break
    return whole.hexdigest(), blocks if len(blocks) > 1 else []


def block_digest(path: Path, block: int) -> str:
    """BLAKE3 of one block of BLOCK_BYTES."""
    digest = blake3.blake3()
    with path.open("rb") as stream:
        stream.seek(block * BLOCK_BYTES)
        left = BLOCK_BYTES
        while left and (data := stream.read(min(left, _READ_BYTES))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def map_array(path: Path, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """A read-only little-endian array over a mapped file, read page by page as it is touched (MADV_RANDOM).

    Raises CorruptError where the file is missing or its size is not that of `shape`.
    """
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != expected:
                raise CorruptError(f"{path}: {size} bytes, expected {expected}")
            mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read: {error}") from error
    mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, dtype=np.dtype(dtype).newbyteorder("<")).reshape(shape)


def read_ahead(array_NX: NDArray[Any], rows_N: NDArray[np.int64]) -> None:
    """Have the system read the pages of these rows of a mapped array now, side by side: touched one after the other, each one
    that is not in memory would be waited for."""
    if len(rows_N) < _READ_AHEAD_ROWS or array_NX.nbytes < _READ_AHEAD_BYTES:
        return
    address, row_bytes = array_NX.ctypes.data, array_NX.strides[0]
    starts_N = address + rows_N * row_bytes
    pages = np.unique(np.concatenate([starts_N, starts_N + row_bytes - 1]) // mmap.PAGESIZE)
    firsts = np.flatnonzero(np.diff(pages, prepend=-1) != 1)
    counts = np.diff(firsts, append=len(pages))
    for page, count in zip((pages[firsts] * mmap.PAGESIZE).tolist(), (counts * mmap.PAGESIZE).tolist(), strict=True):
        _madvise(page, count, mmap.MADV_WILLNEED)


def _libc_madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


_madvise = _libc_madvise()
