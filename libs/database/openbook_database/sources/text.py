"""Text and Markdown: a folder of files, or one file. A file is a document."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_database.chunking import find_headings
from openbook_database.sources.base import BadLineError, FieldNames, Item, Source

SUFFIXES = (".txt", ".text", ".md", ".markdown")


class TextFiles:
    """Files with one of SUFFIXES at any depth, in the order of their paths; hidden ones are passed over.

    The id is the path below the folder, the title the first Markdown heading or the file's name. Links are followed.
    """

    def __init__(self, source: Source, fields: FieldNames) -> None:
        self.fields, self.share = FieldNames(metadata=fields.metadata), 0.0
        self._path = source.path

    def files(self) -> list[tuple[str, Path]]:
        return list(self._files)

    @cached_property
    def _files(self) -> list[tuple[str, Path]]:
        """Listed once: numbers must not shift when a file is added meanwhile."""
        if not self._path.is_dir():
            return [(self._path.name, self._path)]
        found = sorted(
            (path.relative_to(self._path).as_posix(), path) for path in _walk(self._path, [os.stat(self._path)])
        )
        if not found:
            raise InputError(
                f"{self._path} is a folder without a text or Markdown file ({', '.join(SUFFIXES)}); for other files give "
                "a glob, such as 'FOLDER/*.jsonl'",
                field="input",
            )
        return found

    def rows(self, skip: int) -> Iterator[Item]:
        for number, (name, path) in enumerate(self._files[skip:], start=skip + 1):
            try:
                row: dict[str, Any] | BadLineError = _row(name, path)
            except BadLineError as error:
                row = error
            self.share = number / len(self._files)
            yield Item(number, str(path), row)


def _walk(folder: Path, above: list[os.stat_result]) -> Iterator[Path]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}", field="input") from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            status = path.stat()
            if any(os.path.samestat(status, other) for other in above):
                raise InputError(f"{path} is a link to a folder above itself: remove it", field="input")
            yield from _walk(path, [*above, status])
        elif path.suffix.lower() in SUFFIXES:
            yield path


def _row(name: str, path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", field="input") from error
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadLineError("not UTF-8", f"is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from error
    _, headings = find_headings(text)
    return {"id": name, "title": headings[0] if headings else path.stem, "text": text}
