"""What a source is, and what every format gives: rows with numbers, from any row on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from openbook_core.config import FrozenConfig
from openbook_core.errors import InputError

Format = Literal["jsonl", "text", "parquet", "huggingface", "megatron"]


class FieldNames(FrozenConfig):
    """Where in a row a document's parts are. Of several names the first that a row has is taken."""

    text: str = "text"
    id: str = Field(default="id", description="empty: NAME:NUMBER of the source and the row")
    title: tuple[str, ...] = ("title", "country", "name")
    uri: tuple[str, ...] = ("uri", "url")
    licence: tuple[str, ...] = ("licence", "license")
    metadata: tuple[str, ...] = Field(default=(), description="columns to keep, which come back with neighbours")

    @property
    def columns(self) -> set[str]:
        """Every name that could be asked for."""
        return {self.text, *([self.id] if self.id else []), *self.title, *self.uri, *self.licence, *self.metadata}


class Source(FrozenConfig):
    """One input: a file, a folder, or (until it is expanded) a glob."""

    path: Path
    format: Format | None = Field(default=None, description="else by the name, see `formats.format_of`")
    licence: str | None = Field(default=None, description="for rows that name none themselves")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the documents that is kept, chosen by a hash of the document's id: the same documents on "
        "every machine, whatever the order, and those of a smaller weight are among those of a larger one. At most 1: "
        "a database holds a document once",
    )
    fields: FieldNames | None = Field(default=None, description="else those of the build")
    split: str | None = Field(default=None, description="of a Hugging Face dataset that has several")
    tokenizer: str | None = Field(default=None, description="of a Megatron dataset; GPT-2's if none is named")


class BadLineError(InputError):
    """A line, row or file that holds no document; `kind` groups such ones in counts."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message, field="input")
        self.kind = kind


@dataclass(frozen=True)
class Item:
    """Row `number` (from 1) of a source, `where` for messages, and its fields or why it has none."""

    number: int
    where: str
    row: Mapping[str, Any] | BadLineError


class Rows(Protocol):
    """One source in one format."""

    @property
    def fields(self) -> FieldNames:
        """Where in its rows the parts are."""

    def files(self) -> list[tuple[str, Path]]:
        """Every file that is read, with its name below the source, sorted by name. Raises InputError for none."""

    share: float
    """What has been read of the source, 0 to 1: an estimate for a display."""

    def rows(self, skip: int) -> Iterator[Item]:
        """Rows in order after the first `skip`, in bounded memory. Raises InputError where it cannot go on.

        Numbers grow and may leave gaps (a blank line); a row has the same number in every run.
        """


def read_json(path: Path) -> Any:
    """A small JSON file of a format; raises InputError."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", field="input") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", field="input") from error
