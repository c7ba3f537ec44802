"""Lines of a plain, gzip or Zstandard file, with its digest; a cut file is an error, not a short one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import blake3

from openbook_core.errors import InputError

_DIGEST_BYTES = 1 << 20
_LINE_BYTES = 1 << 16  # little, so that the share read is known well


def file_digest(path: Path) -> tuple[int, str]:
    """Size and BLAKE3 of a file as it lies on the disk; raises InputError where it cannot be read."""
    digest = blake3.blake3()
    size = 0
    with _open(path) as stream:
        while data := stream.read(_DIGEST_BYTES):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()


def read_lines(path: Path, read: Callable[[int], None] = lambda position: None) -> Iterator[bytes]:
    """Lines without their ends; decompressed by the file's suffix (.gz, .zst). Raises InputError for a damaged file.

    `read` is told the bytes of the file as it lies on the disk that have been read."""
    rest: list[bytes] = []
    with _open(path) as stream:
        for data in _decompressed(path, stream):
            read(stream.tell())
            first, newline, others = data.partition(b"\n")
            rest.append(first)
            if newline:
                yield b"".join(rest)
                *whole, tail = others.split(b"\n")
                yield from whole
                rest = [tail]
    if last := b"".join(rest):
        yield last


def _open(path: Path) -> BinaryIO:
    try:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder, expected a JSON Lines file (.jsonl, .jsonl.gz or .jsonl.zst)", field="input"
            )
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(f"no such input file: {path}", field="input") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", field="input") from error


def _decompressed(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    if path.suffix == ".gz":
        return _frames(path, stream, "gzip", lambda: zlib.decompressobj(wbits=31))
    if path.suffix == ".zst":
        from zstandard import ZstdDecompressor

        return _frames(path, stream, "Zstandard", lambda: ZstdDecompressor().decompressobj())
    return iter(lambda: stream.read(_LINE_BYTES), b"")


def _frames(path: Path, stream: BinaryIO, name: str, start: Any) -> Iterator[bytes]:
    """Data of one frame after another; both libraries mark the end of a frame and what follows it alike."""
    from zstandard import ZstdError

    frame = start()
    fed = False
    try:
        while data := stream.read(_LINE_BYTES):
            while data:
                if frame.eof:
                    frame, fed = start(), False
                fed = True
                yield frame.decompress(data)
                data = frame.unused_data
    except (zlib.error, ZstdError) as error:
        raise InputError(f"{path} is damaged or not {name}: {error}", field="input") from error
    if fed and not frame.eof:
        raise InputError(f"{path} is cut short: its {name} data do not end", field="input")
