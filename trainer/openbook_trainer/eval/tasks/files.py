"""Rows of the tasks' files, checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_database.streams import read_lines


def read_rows(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each line; every row must have `keys`."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: is not JSON: {error}", field="data") from None
        require(row, keys, place)
        yield place, row


def require(row: Any, keys: tuple[str, ...], place: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{place}: holds a JSON {type(row).__name__}, expected an object", field="data")
    missing = [key for key in keys if key not in row]
    if missing:
        raise InputError(
            f"{place}: without {', '.join(missing)}; expected the keys {', '.join(keys)}, found "
            f"{', '.join(row) or 'none'}",
            field="data",
        )


def require_answers(values: Iterable[str], place: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(value for value in values if isinstance(value, str) and value.strip()))
    if not found:
        raise InputError(f"{place}: has no answer; expected one or more strings", field="data")
    return found
