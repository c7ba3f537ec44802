"""Rows of question files and their fields, checked: each error names the file, the line or row, and the field.

Functions that take a `name` follow its dots into objects and lists ("answers.text.0"). All raise InputError.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from openbook_core.errors import InputError
from openbook_database.streams import read_lines


def read_whole(file: Path, field: str = "data") -> Any:
    """The one JSON value of a file. `field`: that of the error, here and below."""
    return _parse(b"\n".join(read_lines(file)), str(file), field)


def read_rows(file: Path, field: str = "data") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of JSON Lines, in which blank lines are passed over, or of one JSON list."""
    lines = read_lines(file)
    start = next(((number, line) for number, line in enumerate(lines, start=1) if line.strip()), None)
    if start is None:
        return
    first, line = start
    rows: Iterable[tuple[str, Any]]
    if line.lstrip().startswith(b"["):
        rows = ((f"{file}, row {number}", row) for number, row in enumerate(read_whole(file, field), start=1))
    else:
        numbered = enumerate(chain([line], lines), start=first)
        places = ((f"{file}, line {number}", line) for number, line in numbered if line.strip())
        rows = ((place, _parse(line, place, field)) for place, line in places)
    for place, row in rows:
        yield place, _object(row, place, field)


def text_of(row: Any, name: str, place: str) -> str:
    """The text of a field without the space around it; there must be some."""
    text = optional_text(row, name, place)
    if not text and isinstance(row, dict) and name.split(".")[0] not in row:
        raise InputError(f"{place}: has no field {name!r}; its fields are {', '.join(row) or 'none'}", field="data")
    return filled(text, name, place)


def verbatim_of(row: Any, name: str, place: str) -> str:
    """The text of a field with the space around it; there must be more than space."""
    text_of(row, name, place)
    return str(_value(row, name))


def id_of(row: Any, name: str, place: str) -> str:
    """The text or whole number of a field, as text."""
    value = _value(row, name)
    return str(value) if isinstance(value, int) else text_of(row, name, place)


def optional_text(row: Any, name: str, place: str) -> str:
    """As `text_of`, but "" for a field that is missing, null or blank."""
    value = _value(row, name)
    if value is not None and not isinstance(value, str):
        raise _another(value, name, "text", place)
    return (value or "").strip()


def filled(text: str, name: str, place: str) -> str:
    """`text` of field `name` without the space around it; something must be left."""
    if not text.strip():
        raise InputError(f"{place}: has no text in field {name!r}; mend or leave out the row", field="data")
    return text.strip()


def list_of(row: Any, name: str, place: str) -> list[Any]:
    """The list in a field."""
    value = _value(row, name)
    if not isinstance(value, list):
        raise _another(value, name, "a list", place)
    return value


def texts_of(row: Any, name: str, place: str) -> list[str]:
    """The list of texts in a field; none is blank."""
    return [text_of(row, f"{name}.{number}", place) for number in range(len(list_of(row, name, place)))]


def objects_of(row: Any, name: str, place: str) -> list[dict[str, Any]]:
    """The list of objects in a field."""
    return [
        _object(each, f"{place}, {name} {number}") for number, each in enumerate(list_of(row, name, place), start=1)
    ]


def flag_of(row: Any, name: str, place: str) -> bool:
    """The true or false in a field."""
    value = _value(row, name)
    if not isinstance(value, bool):
        raise _another(value, name, "true or false", place)
    return value


def distinct(answers: Iterable[str], place: str) -> tuple[str, ...]:
    """Each answer once, in order; there must be one."""
    found = tuple(dict.fromkeys(answers))
    if not found:
        raise InputError(f"{place}: has no answer; mend or leave out the row", field="data")
    return found


def _parse(text: bytes, place: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: is not JSON ({error})", field=field) from None


def _object(value: Any, place: str, field: str = "data") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: holds a JSON {type(value).__name__}, expected an object", field=field)
    return value


def _value(row: Any, name: str) -> Any:
    value = row
    for step in name.split("."):
        if isinstance(value, list):
            value = value[int(step)] if step.isdecimal() and int(step) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def _another(value: Any, name: str, expected: str, place: str) -> InputError:
    given = "missing or null" if value is None else f"a {type(value).__name__}"
    return InputError(f"{place}: field {name!r} is {given}, expected {expected}", field="data")
