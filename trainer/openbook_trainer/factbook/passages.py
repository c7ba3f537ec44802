"""The Factbook's lines as passages that each fit into one chunk and say which country they are about.

A line "Canada - Executive branch: chief of state: ...; head of government: ..." becomes passages "Executive branch of
Canada: chief of state: ...", each with the title and as many of the line's parts as fit. The name stands after "of" as
it does in the questions, so that it has the same tokens in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from openbook_core.tokenizer import Tokenizer
from openbook_trainer.rows import read_rows, text_of

# Tokens of a text that stands after other text.
Count = Callable[[str], int]

_BETWEEN_PARTS = re.compile(r"; | \+\+ ")


@dataclass(frozen=True)
class Line:
    """One field of a country: `parts` are what "; " or " ++ " divides in the book."""

    country: str
    field: str
    parts: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.field} of {self.country}:"


def lines_of(country: str, text: str) -> Iterator[Line]:
    """The fields of a country's document; headings and lines that do not name the country are left out."""
    start = f"{country} - "
    for line in text.split("\n"):
        field, colon, content = line.removeprefix(start).partition(": ")
        if line.startswith(start) and colon and (parts := [part.strip() for part in _BETWEEN_PARTS.split(content)]):
            yield Line(country, field, tuple(part for part in parts if part))


def join(title: str, parts: Iterable[str]) -> str:
    """A passage."""
    return f"{title} {'; '.join(parts)}"


def cut(line: Line, count: Count, limit: int) -> list[str]:
    """Passages of at most `limit` tokens with all of the line's parts in order, as many as fit in each.

    A part that does not fit by itself is cut between words, a word that does not fit is left out.
    """
    room = limit - count(line.title)
    passages: list[list[str]] = [[]]
    used = 0
    for piece in (piece for part in line.parts for piece in _pieces(part, count, room)):
        size = count(f" {piece};")
        if passages[-1] and used + size > room:
            passages.append([])
            used = 0
        passages[-1].append(piece)
        used += size
    return [join(line.title, parts) for parts in passages if parts]


def _pieces(part: str, count: Count, room: int) -> list[str]:
    """`part`, or runs of its words that have at most `room` tokens each."""
    if count(f" {part};") <= room:
        return [part]
    pieces: list[list[str]] = [[]]
    used = 0
    for word in part.split():
        size = count(f" {word};")
        if size > room:
            continue
        if used + size > room:
            pieces.append([])
            used = 0
        pieces[-1].append(word)
        used += size
    return [" ".join(words) for words in pieces if words]


def counter(tokenizer: Tokenizer) -> Count:
    """Counts with a tokenizer whose tokens never reach across a blank."""
    return lambda text: len(tokenizer.encode(text))


def edition_lines(file: Path) -> dict[str, tuple[Line, ...]]:
    """The lines of each document of an edition, by the document's id. Errors as of `rows`."""
    return {
        text_of(row, "id", place): tuple(lines_of(text_of(row, "country", place), text_of(row, "text", place)))
        for place, row in read_rows(file)
    }
