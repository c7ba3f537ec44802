"""Rows of the tasks' files, checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    """Raises InputError unless `row` is an object with `keys`; as the others here, it names the place and what it found."""
    if not isinstance(row, dict):
        raise InputError(f"{place}: holds a JSON {type(row).__name__}, expected an object", field="data")
    missing = [key for key in keys if key not in row]
    if missing:
        raise InputError(
            f"{place}: without {', '.join(missing)}; expected the keys {', '.join(keys)}, found "
            f"{', '.join(row) or 'none'}",
            field="data",
        )


def require_list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise _another(value, "a list", place)
    return value


def require_rows(value: Any, keys: tuple[str, ...], place: str) -> list[dict[str, Any]]:
    for row in require_list(value, place):
        require(row, keys, place)
    return list(value)


def require_text(row: dict[str, Any], key: str, place: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise _another(value, f"text under {key!r}", place)
    return value


def require_answers(values: Any, place: str) -> tuple[str, ...]:
    found = tuple(
        dict.fromkeys(value for value in require_list(values, place) if isinstance(value, str) and value.strip())
    )
    if not found:
        raise InputError(f"{place}: has no answer; expected one or more strings", field="data")
    return found


def _another(value: Any, expected: str, place: str) -> InputError:
    return InputError(f"{place}: expected {expected}, found {json.dumps(value)[:60]}", field="data")
