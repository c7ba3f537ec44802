"""JSON Lines, plain, .gz or .zst."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openbook_database.sources.base import BadLineError, FieldNames, Item, Source
from openbook_database.streams import read_lines


class JsonLines:
    """A row is a line; blank lines are none."""

    def __init__(self, source: Source, fields: FieldNames) -> None:
        self.fields, self.share = fields, 0.0
        self._path = source.path

    def files(self) -> list[tuple[str, Path]]:
        return [(self._path.name, self._path)]

    def rows(self, skip: int) -> Iterator[Item]:
        for number, data in enumerate(read_lines(self._path, self._read), start=1):
            if number <= skip or not data.strip():
                continue
            try:
                row: dict[str, Any] | BadLineError = _parse(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data)
            except BadLineError as error:
                row = error
            yield Item(number, f"{self._path}, line {number}", row)

    def _read(self, position: int) -> None:
        self.share = position / self._path.stat().st_size


def _parse(data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLineError("not UTF-8", f"is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise BadLineError("not JSON", f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadLineError("not an object", f"holds a JSON {kind_name(row)}, expected an object with fields")
    return row


def kind_name(value: Any) -> str:
    """What JSON calls the type of `value`."""
    kinds = {str: "string", bool: "boolean", int: "number", float: "number", list: "list", dict: "object"}
    return kinds.get(type(value), "null" if value is None else type(value).__name__)
