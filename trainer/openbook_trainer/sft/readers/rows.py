"""What a reader gives and what readers share: files, rows, fields, options."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook_core.errors import ConfigError, InputError, NotFoundError
from openbook_database.streams import read_lines


@dataclass(frozen=True)
class Example:
    """A question, its answer and further spellings of it; what was said before; the question's own passages.

    `turns`: (role, text) each, with the roles of chat templates. `passages` None: they are to be retrieved.
    """

    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    passages: tuple[str, ...] | None = None
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reader:
    """A format. `options`: the allowed values of each, the first as default; or the default of one that may be any text."""

    read: Callable[[Path, Mapping[str, str]], Iterator[Example]]
    options: Mapping[str, tuple[str, ...] | str]

    def __call__(self, path: str, options: Mapping[str, str]) -> list[Example]:
        """The examples of a file, whose `path` may name environment variables.

        Raises ConfigError for an option, NotFoundError for a missing file, InputError for a bad row or no example.
        """
        found = list(self.read(existing(path), self.resolve(options)))
        if not found:
            raise InputError(f"{path} has no example that its options let through", field="blend")
        return found

    def resolve(self, options: Mapping[str, str]) -> dict[str, str]:
        """All options, given or by default. Raises ConfigError for one that is unknown or has a value that is not."""
        for name, value in options.items():
            allowed = self.options.get(name)
            if allowed is None:
                known = ", ".join(self.options) or "none"
                raise ConfigError(f"unknown option {name!r}; this format has {known}", field=f"options.{name}")
            if isinstance(allowed, tuple) and value not in allowed:
                raise ConfigError(
                    f"option {name} is {value!r}; it may be {', '.join(allowed)}", field=f"options.{name}"
                )
        return {name: each if isinstance(each, str) else each[0] for name, each in self.options.items()} | dict(options)


def existing(path: str) -> Path:
    """The file of a blend's `path`. Raises NotFoundError."""
    file = Path(os.path.expandvars(path)).expanduser()
    if not file.is_file():
        raise NotFoundError(f"{path} of the blend is missing (looked for {file})", field="blend")
    return file


def read_whole(file: Path) -> Any:
    """The one JSON value of a file. Raises InputError."""
    try:
        return json.loads(b"\n".join(read_lines(file)))
    except ValueError as error:
        raise InputError(f"{file}: is not JSON ({error})", field="blend") from error


def read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of JSON Lines, or of one JSON list. Raises InputError."""
    is_list = next((line.lstrip()[:1] for line in read_lines(file) if line.strip()), b"") == b"["
    for place, row in _list_rows(file) if is_list else _line_rows(file):
        if not isinstance(row, dict):
            raise InputError(f"{place}: is a JSON {type(row).__name__}, expected an object", field="blend")
        yield place, row


def _list_rows(file: Path) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(read_whole(file), start=1):
        yield f"{file}, row {number}", row


def _line_rows(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            yield place, json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: is not JSON ({error})", field="blend") from error


def text_of(row: Any, name: str, place: str) -> str:
    """The text of a field without the space around it. Raises InputError where there is none.

    `name` may lead into objects and lists: "answers.text.0".
    """
    return filled(optional_text(row, name, place), name, place)


def optional_text(row: Any, name: str, place: str) -> str:
    """As `text_of`, but "" for a field that is missing, null or blank. Raises InputError for what is not text."""
    value = row
    for step in name.split("."):
        if isinstance(value, list):
            value = value[int(step)] if step.isdecimal() and int(step) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: field {name!r} is a {type(value).__name__}, expected text", field="blend")
    return (value or "").strip()


def filled(text: str, name: str, place: str) -> str:
    """`text` of field `name` without the space around it. Raises InputError where nothing is left."""
    if not text.strip():
        raise InputError(f"{place}: has no text in field {name!r}; mend or leave out the row", field="blend")
    return text.strip()


def list_of(row: Mapping[str, Any], name: str, place: str) -> list[Any]:
    """The list in a field. Raises InputError for anything else."""
    value = row.get(name)
    if not isinstance(value, list):
        raise InputError(f"{place}: field {name!r} is a {type(value).__name__}, expected a list", field="blend")
    return value


def join(*parts: str) -> str:
    """Those that are not empty, as paragraphs."""
    return "\n\n".join(part for part in parts if part)
