"""A document's text to chunks: tokens, headings, and the passage that is embedded for each chunk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ConfigError
from openbook_core.tokenizer import Tokenizer

SLICE_CHARACTERS = 1 << 18
_WINDOW = 256
_TRIES = 32
# Between a letter or digit and a blank: no rule of the byte-pair tokenizers in use joins across it.
_BORDER = re.compile(r"\w(?=\s)")
_HEADING = re.compile(r"^(?:(?P<fence>```|~~~)|#{1,6}[ \t]+(?P<heading>[^\n]*))", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PARTS = ("text", "title", "heading")


class PassageTemplate:
    """How a chunk's text, its document's title and its nearest heading make up the passage that is embedded.

    "{title} > {heading}: {text}" gives "Angola > Economy: ...", "Angola: ..." where there is no heading, and the bare
    text where there is neither: a missing part goes with the separator that joins it.
    """

    def __init__(self, template: str) -> None:
        """Raises ConfigError for a template without {text} or with another placeholder."""
        names = _PLACEHOLDER.findall(template)
        unknown = [name for name in names if name not in _PARTS]
        if names.count("text") != 1 or unknown:
            raise ConfigError(
                f"passage template {template!r}: use {{text}} once, and {{title}} and {{heading}} if wanted"
                + (f"; {{{unknown[0]}}} is not known" if unknown else ""),
                field="passage_template",
            )
        self.template = template
        before, after = template.split("{text}")
        self._before, self._after = _PLACEHOLDER.split(before), _PLACEHOLDER.split(after)

    def passage(self, text: str, title: str | None, heading: str | None) -> str:
        """The passage for one chunk."""
        parts = {"title": title, "heading": heading}
        return _fill(self._before, parts) + text + _fill(self._after, parts)


def _fill(piece: list[str], parts: Mapping[str, str | None]) -> str:
    """`piece` holds literals and, between them, names of parts."""
    present = [place for place in range(1, len(piece), 2) if parts[piece[place]]]
    if len(piece) > 1 and not present:
        return ""
    filled = piece[0]
    for count, place in enumerate(present):
        filled += (piece[place - 1] if count else "") + (parts[piece[place]] or "")
    return filled + (piece[-1] if len(piece) > 1 else "")


@dataclass(frozen=True)
class Chunks:
    """Chunks of one document: tokens uint32 [n] (n rows of m but for the last), and the nearest heading of each chunk."""

    tokens: NDArray[np.uint32]
    headings: list[str | None]


def chunk_document(text: str, tokenizer: Tokenizer, chunk_length: int) -> Chunks:
    """Tokenise `text` and find, for each run of `chunk_length` tokens, the markdown heading that it stands under:
    the last heading line that begins before the chunk's first character that is not blank, or with it."""
    tokens_parts: list[NDArray[np.uint32]] = []
    starts: list[int] = []
    count = 0
    for offset, piece in slices(text, tokenizer):
        ids, offsets_N2 = tokenizer.encode_with_offsets(piece)
        starts += (offsets_N2[-count % chunk_length :: chunk_length, 0] + offset).tolist()
        tokens_parts.append(ids)
        count += len(ids)
    tokens = np.concatenate(tokens_parts)
    places, names = find_headings(text)
    under = np.searchsorted(places, _first_letters(text, starts), side="right") - 1
    return Chunks(tokens, [names[place] if place >= 0 else None for place in under.tolist()])


def _first_letters(text: str, starts: Sequence[int]) -> list[int]:
    """For each of the rising `starts`, the first character from there on that is not blank; one pass over `text`."""
    found = []
    place = 0
    for start in starts:
        place = max(place, start)
        while place < len(text) and text[place].isspace():
            place += 1
        found.append(place)
    return found


def slices(text: str, tokenizer: Tokenizer, size: int = SLICE_CHARACTERS) -> Iterator[tuple[int, str]]:
    """(first character, slice) of a long text, so that tokenising takes bounded memory.

    A cut is tried before blanks past `size` characters and kept where the text around it has the same tokens cut and
    uncut, so the slices have the tokens of the whole. A text without such a place (no blank in a quarter of `size`) is
    cut at `size` all the same: its tokens are defined by its slices.
    """
    start = 0
    while len(text) - start > size + size // 4:
        cut = _cut(text, start + size, start + size + size // 4, tokenizer)
        yield start, text[start:cut]
        start = cut
    yield start, text[start:]


def _cut(text: str, least: int, most: int, tokenizer: Tokenizer) -> int:
    position = least
    for _ in range(_TRIES):
        match = _BORDER.search(text, position, most)
        if match is None:
            break
        cut = match.end()
        left, right = text[max(0, cut - _WINDOW) : cut], text[cut : cut + _WINDOW]
        parts = np.concatenate([tokenizer.encode(left), tokenizer.encode(right)])
        if np.array_equal(parts, tokenizer.encode(left + right)):
            return cut
        position = cut
    return least


def find_headings(text: str) -> tuple[NDArray[np.int64], list[str]]:
    """First character and wording of each heading line outside of fenced code."""
    places, names = [], []
    fenced = False
    for match in _HEADING.finditer(text):
        if match["fence"]:
            fenced = not fenced
        elif not fenced and (heading := match["heading"].rstrip(" \t#")):
            places.append(match.start())
            names.append(heading)
    return np.asarray(places, dtype=np.int64), names
