"""A folder at an fsspec URL (file, s3, gs, ...): few operations, each tried again while the network fails, each error
in words.

Files appear whole: object stores do that by themselves, in a local folder a file is written beside and renamed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

import blake3

from openbook_core.errors import (
    ArgumentError,
    ConfigError,
    CorruptError,
    ForbiddenError,
    InputError,
    NotFoundError,
    OpenbookError,
    UnavailableError,
)
from openbook_core.files import sync
from openbook_database.files import write_error
from openbook_database.manifest import FileEntry
from openbook_database.transport.meter import StoppedError

Result = TypeVar("Result")

STAGING: Final = ".publishing"
PART_BYTES = 32 << 20
PIECE_BYTES = 8 << 20
_MAX_PARTS = 9_000  # S3 takes 10,000 parts of a file
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}


class Store:
    """Files below `url`, by their names relative to it. Safe to use from several threads."""

    def __init__(self, url: str, *, tries: int = 5, delay_s: float = 0.5) -> None:
        """A failed operation is tried `tries` times in all, after `delay_s` and twice as long each time.

        Raises ConfigError for a protocol that is not known or not installed.
        """
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.url = url.rstrip("/") or url
        self._tries, self._delay_s = tries, delay_s
        try:
            self._fs, root = url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            extra = _EXTRAS.get(self.url.partition("://")[0])
            install = f"pip install 'openbook-database[{extra}]'" if extra else str(error)
            raise ConfigError(f"{url}: a part that this URL needs is not installed: {install}", field="url") from error
        except ValueError as error:
            raise ConfigError(f"{url}: {error}", field="url") from error
        self._root = str(root).rstrip("/")
        self._folder = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def sizes(self) -> dict[str, int]:
        """Size of every file, by name; empty where there is none. Raises InputError where the URL is that of a file."""
        found = self._call("listing", lambda: self._fs.find(self._root, detail=True))
        if found.get(self._root, {}).get("type") == "file":
            raise InputError(f"{self.url} is a file, expected a folder", field="url")
        prefix = len(self._root) + 1
        return {path[prefix:]: int(info["size"]) for path, info in found.items() if info["type"] == "file"}

    def read(self, name: str) -> bytes:
        """All of a small file. Raises NotFoundError."""
        return bytes(self._call(name, lambda: self._fs.cat_file(self._path(name))))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end). Raises NotFoundError, and CorruptError where the file is shorter."""
        data = bytes(self._call(name, lambda: self._fs.cat_file(self._path(name), start=start, end=end)))
        if len(data) != end - start:
            raise CorruptError(f"{self.url}/{name}: ends before byte {end}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """A small file, in place of one of that name."""
        if self._folder is None:
            self._call(name, lambda: self._fs.pipe_file(self._path(name), data))
        else:
            self._call(name, lambda: self._write_local(name, iter([data])))

    def upload(
        self, name: str, file: Path, entry: FileEntry, advance: Callable[[int], None], part_bytes: int = PART_BYTES
    ) -> None:
        """Copy `file`, in parts, checking on the way that it is what the manifest says; CorruptError where not.

        `advance` is told of each piece, with a negative number where they are lost and sent again; it may raise to
        stop. A file that is not sent to its end does not appear in a store with multipart uploads, nor in a local folder.
        """
        part_bytes = max(part_bytes, -(-entry.size // _MAX_PARTS))

        def send() -> None:
            sent = 0

            def counted() -> Iterator[bytes]:
                nonlocal sent
                for piece in _checked(file, entry, part_bytes):
                    yield piece
                    sent += len(piece)
                    advance(len(piece))

            try:
                if self._folder is None:
                    self._write_remote(name, counted(), part_bytes)
                else:
                    self._write_local(name, counted())
            except BaseException:
                advance(-sent)
                raise

        self._call(name, send)

    def remove_staging(self) -> None:
        """Remove what a finished publish no longer needs; gone already is well."""
        if self._folder is not None:
            shutil.rmtree(self._folder / STAGING, ignore_errors=True)
            return
        try:
            self._call(STAGING, lambda: self._fs.rm(self._path(STAGING), recursive=True))
        except NotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write_local(self, name: str, pieces: Iterator[bytes]) -> None:
        assert self._folder is not None, "a local folder"
        path = self._folder / name
        temporary = self._folder / STAGING / f"{uuid4().hex}.tmp"
        try:
            for folder in (path.parent, temporary.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                for piece in pieces:
                    stream.write(piece)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_remote(self, name: str, pieces: Iterator[bytes], part_bytes: int) -> None:
        stream: Any = self._fs.open(self._path(name), "wb", block_size=part_bytes)
        try:
            for piece in pieces:
                stream.write(piece)
        except BaseException:
            # Closing would complete the upload of a part as if it were the whole.
            if hasattr(stream, "discard"):
                stream.discard()
            stream.closed = True
            raise
        stream.close()

    def _call(self, name: str, function: Callable[[], Result]) -> Result:
        delay = self._delay_s
        for left in reversed(range(self._tries)):
            try:
                return function()
            except (OpenbookError, StoppedError):
                raise
            except Exception as error:
                found = self._in_words(name, error)
                if not left or not isinstance(found, UnavailableError):
                    raise found from error
            time.sleep(delay)
            delay = min(2 * delay, 30.0)
        raise AssertionError("tries is at least 1")

    def _in_words(self, name: str, error: Exception) -> OpenbookError:
        where = f"{self.url}/{name}" if name != "listing" else self.url
        if self._folder is not None and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return write_error(Path(where), error)
        if isinstance(error, FileNotFoundError):
            return NotFoundError(f"{where}: {error or 'not found'}", field="url")
        if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
            return ForbiddenError(
                f"{where}: the store does not allow it ({error}); check the credentials and their rights", field="url"
            )
        if isinstance(error, ArgumentError | ValueError | IsADirectoryError | NotADirectoryError):
            return InputError(f"{where}: {error}", field="url")
        return UnavailableError(
            f"{where}: {type(error).__name__}: {error}; tried {self._tries} times. Run the same command again when the "
            "store answers: it goes on where it stopped",
            field="url",
        )


def _checked(file: Path, entry: FileEntry, part_bytes: int) -> Iterator[bytes]:
    """The bytes of `file` in pieces; the last one is held back until the digest is known to be right."""
    digest, held = blake3.blake3(), b""
    with file.open("rb") as stream:
        while piece := stream.read(min(part_bytes, PIECE_BYTES)):
            digest.update(piece)
            if held:
                yield held
            held = piece
    if digest.hexdigest() != entry.blake3:
        raise CorruptError(
            f"{file}: checksum is {digest.hexdigest()}, the manifest says {entry.blake3}: the snapshot is damaged and "
            "cannot be published"
        )
    if held:
        yield held
