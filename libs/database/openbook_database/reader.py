"""Documents from JSON Lines files, with fields by name, and what is done about lines that hold none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from openbook_core.config import FrozenConfig
from openbook_core.errors import InputError
from openbook_core.fingerprint import canonical_json
from openbook_database.streams import read_lines

Result = TypeVar("Result")


class FieldNames(FrozenConfig):
    """Where in a row a document's parts are. Of several names the first that a row has is taken."""

    text: str = "text"
    id: str = "id"
    title: tuple[str, ...] = ("title", "country", "name")
    uri: tuple[str, ...] = ("uri", "url")
    licence: tuple[str, ...] = ("licence", "license")
    metadata: tuple[str, ...] = Field(default=(), description="columns to keep, which come back with neighbours")


class Source(FrozenConfig):
    """One input file. `licence` is for rows that name none themselves."""

    path: Path
    licence: str | None = None


@dataclass(frozen=True)
class Document:
    """One document. `metadata` has the JSON text of each kept column, or None where the row lacks it."""

    external_id: str
    text: str
    title: str | None
    uri: str | None
    licence: str | None
    metadata: tuple[str | None, ...]


class BadLineError(InputError):
    """A line that holds no document; `kind` groups such lines in counts."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message, field="input")
        self.kind = kind


class DocumentReader:
    """Reads one source from its beginning; `line` is the number of the last line taken, `skipped` what was left out."""

    def __init__(self, source: Source, fields: FieldNames, *, skip_bad_lines: bool, known: set[str]) -> None:
        """`known`: ids seen so far, over all sources; the reader adds those of documents that it keeps."""
        self.line = 0
        self.skipped: Counter[str] = Counter()
        self._source = source
        self._fields = fields
        self._skip_bad_lines = skip_bad_lines
        self._known = known
        self._lines = read_lines(source.path)

    def skip_to(self, line: int) -> None:
        """Pass over lines up to and including number `line`, which an earlier run has read."""
        while self.line < line and next(self._lines, None) is not None:
            self.line += 1

    def read(self, use: Callable[[Document], Result]) -> Iterator[Result]:
        """`use(document)` for each document.

        A bad line, for the reader or for `use` (which raises BadLineError), is skipped and counted or raises
        BadLineError with the file's name and the line's number.
        """
        for data in self._lines:
            self.line += 1
            if not data.strip():
                continue
            try:
                document = self._parse(data.removeprefix(b"\xef\xbb\xbf") if self.line == 1 else data)
                result = use(document)
            except BadLineError as error:
                if self._skip_bad_lines:
                    self.skipped[error.kind] += 1
                    continue
                raise BadLineError(
                    error.kind,
                    f"{self._source.path}, line {self.line}: {error}. Correct it, or skip and count such lines "
                    "(--skip-bad-lines)",
                ) from error
            self._known.add(document.external_id)
            yield result

    def _parse(self, data: bytes) -> Document:
        try:
            row = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadLineError("not UTF-8", f"is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from error
        except (ValueError, RecursionError) as error:
            raise BadLineError("not JSON", f"is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadLineError("not an object", f"holds a JSON {_kind(row)}, expected an object with fields")
        fields = self._fields
        external_id = self._external_id(row)
        text = row.get(fields.text)
        if fields.text not in row:
            raise BadLineError("no text", f"has no field {fields.text!r} for the text; it has {_names(row)}")
        if not isinstance(text, str):
            raise BadLineError("text is no string", f"field {fields.text!r} is a {_kind(text)}, expected a string")
        if not text.strip():
            raise BadLineError("empty text", f"document {external_id!r} has an empty text")
        return Document(
            external_id=external_id,
            text=_clean(text, fields.text),
            title=_first_string(row, fields.title),
            uri=_first_string(row, fields.uri),
            licence=_first_string(row, fields.licence) or self._source.licence,
            metadata=tuple(
                None if row.get(name) is None else _clean(canonical_json(row[name]), name) for name in fields.metadata
            ),
        )

    def _external_id(self, row: dict[str, Any]) -> str:
        name = self._fields.id
        value = row.get(name)
        if value is None or value == "":
            raise BadLineError(
                "no id",
                f"has no field {name!r} for the document's id; it has {_names(row)}: name another field for the id (--id-field)",
            )
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadLineError(
                "id is no string", f"field {name!r} is a {_kind(value)}, expected a string or an integer"
            )
        external_id = _clean(str(value), name)
        if external_id in self._known:
            raise BadLineError("duplicate id", f"the id {external_id!r} was used by an earlier document")
        return external_id


def _first_string(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return _clean(value, name)
    return None


def _clean(text: str, name: str) -> str:
    """`text` where it is Unicode; JSON can hold half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadLineError("not Unicode", f"field {name!r} holds half of a surrogate pair at {error.start}") from error
    return text


def _kind(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", int: "number", float: "number", list: "list", dict: "object"}
    return kinds.get(type(value), "null")


def _names(row: dict[str, Any]) -> str:
    names = sorted(str(name) for name in row)
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "") if names else "no fields"
