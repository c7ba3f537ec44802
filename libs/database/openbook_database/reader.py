"""Documents from the rows of a source, with fields by name, and what is done about rows that hold none."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import blake3

from openbook_core.fingerprint import canonical_json
from openbook_database.sources.base import BadLineError, FieldNames, Source
from openbook_database.sources.formats import open_rows
from openbook_database.sources.jsonl import kind_name

__all__ = ["BadLineError", "Document", "DocumentReader", "FieldNames", "Source"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Document:
    """One document. `metadata` has the JSON text of each kept column, or None where the row lacks it."""

    external_id: str
    text: str
    title: str | None
    uri: str | None
    licence: str | None
    metadata: tuple[str | None, ...]


class DocumentReader:
    """Reads one source from its beginning, whatever its format.

    `line` is the number of the last row (line, file, document) taken, `skipped` the bad rows by kind, `left_out` the
    documents that the source's weight left out.
    """

    def __init__(self, source: Source, fields: FieldNames, *, skip_bad_lines: bool, known: set[str]) -> None:
        """`known`: ids seen so far, over all sources; the reader adds those of documents that it keeps."""
        self.line = 0
        self.skipped: Counter[str] = Counter()
        self.left_out = 0
        self._source = source
        self._skip_bad_lines = skip_bad_lines
        self._known = known
        self._rows = open_rows(source, fields)
        self._fields = self._rows.fields

    @property
    def share(self) -> float:
        """What has been read of the source, 0 to 1: an estimate for a display."""
        return self._rows.share

    def skip_to(self, line: int) -> None:
        """Pass over rows up to and including number `line`, which an earlier run has read."""
        self.line = max(self.line, line)

    def read(self, use: Callable[[Document], Result]) -> Iterator[Result]:
        """`use(document)` for each document.

        A bad row, for the reader or for `use` (which raises BadLineError), is skipped and counted or raises
        BadLineError with the file's name and the row's number.
        """
        for item in self._rows.rows(self.line):
            self.line = item.number
            try:
                if isinstance(item.row, BadLineError):
                    raise item.row
                document = self._document(item.row, item.number)
                if not is_chosen(document.external_id, self._source.weight):
                    self.left_out += 1
                    continue
                result = use(document)
            except BadLineError as error:
                if self._skip_bad_lines:
                    self.skipped[error.kind] += 1
                    continue
                raise BadLineError(
                    error.kind,
                    f"{item.where}: {error}. Correct it, or skip and count such lines (--skip-bad-lines)",
                ) from error
            self._known.add(document.external_id)
            yield result

    def _document(self, row: Mapping[str, Any], number: int) -> Document:
        fields = self._fields
        external_id = self._external_id(row, number)
        text = row.get(fields.text)
        if fields.text not in row:
            raise BadLineError("no text", f"has no field {fields.text!r} for the text; it has {_names(row)}")
        if not isinstance(text, str):
            raise BadLineError("text is no string", f"field {fields.text!r} is a {kind_name(text)}, expected a string")
        if not text.strip():
            raise BadLineError("empty text", f"document {external_id!r} has an empty text")
        return Document(
            external_id=external_id,
            text=_clean(text, fields.text),
            title=_first_string(row, fields.title),
            uri=_first_string(row, fields.uri),
            licence=_first_string(row, fields.licence) or self._source.licence,
            metadata=tuple(
                None if row.get(name) is None else metadata_json(row[name], name) for name in fields.metadata
            ),
        )

    def _external_id(self, row: Mapping[str, Any], number: int) -> str:
        name = self._fields.id
        value = row.get(name) if name else f"{self._source.path.name}:{number}"
        if value is None or value == "":
            raise BadLineError(
                "no id",
                f"has no field {name!r} for the document's id; it has {_names(row)}: name another field for the id, or none "
                "to have the rows numbered (--id-field)",
            )
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadLineError(
                "id is no string", f"field {name!r} is a {kind_name(value)}, expected a string or an integer"
            )
        external_id = _clean(str(value), name)
        if external_id in self._known:
            raise BadLineError("duplicate id", f"the id {external_id!r} was used by an earlier document")
        return external_id


def is_chosen(external_id: str, weight: float) -> bool:
    """Whether a document is in the share `weight` of its source: its id's hash, as a number in [0, 1), is below it."""
    if weight >= 1:
        return True
    return int.from_bytes(blake3.blake3(external_id.encode()).digest(8), "big") < weight * 2**64


def metadata_json(value: Any, name: str) -> str:
    """A kept value as JSON: times as ISO 8601 or seconds, decimals and UUIDs as strings, bytes as base64, and numbers
    that are not finite as strings, since JSON has none of them."""
    return _clean(canonical_json(_plain(value)), name)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _first_string(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
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


def _names(row: Mapping[str, Any]) -> str:
    names = sorted(str(name) for name in row)
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "") if names else "no fields"
