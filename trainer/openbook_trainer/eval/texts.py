"""The text whose perplexity is measured: documents with their tokens, and what a run of tokens stands for.

Axes: N tokens of a document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.chunking import slices
from openbook_database.reader import Document, DocumentReader, FieldNames, Source
from openbook_database.streams import read_lines

Kind = Literal["wikitext", "documents", "text"]
_KINDS: dict[str, Kind] = {".tokens": "wikitext", ".jsonl": "documents", ".txt": "text"}
_PACKED = (".zst", ".gz")


@dataclass(frozen=True)
class MeasuredText:
    """A document: its id (None where the file names none), tokens [N] and each token's first character [N + 1].

    The last of `starts` is where the text ends. With `line_ends_are_words` each line end is a word, as WikiText counts.
    """

    external_id: str | None
    text: str
    tokens_N: NDArray[np.int64]
    starts: NDArray[np.int64]
    line_ends_are_words: bool

    def bytes_of(self, first: int, end: int) -> int:
        """UTF-8 bytes of the tokens [first, end); a character cut between tokens counts with one of them."""
        return len(self.text[self.starts[first] : self.starts[end]].encode())

    def words_of(self, first: int, end: int) -> int:
        """Words that begin in the tokens [first, end): runs of characters without blanks."""
        return int(np.diff(np.searchsorted(self._word_starts, self.starts[[first, end]]))[0])

    def cut(self, tokens: int) -> MeasuredText:
        """The first `tokens` tokens."""
        starts = self.starts[: tokens + 1]
        return MeasuredText(self.external_id, self.text, self.tokens_N[:tokens], starts, self.line_ends_are_words)

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes [N] of each token, counted as in `bytes_of`."""
        points = np.frombuffer(self.text.encode("utf-32-le"), dtype="<u4")
        lengths = 1 + (points > 0x7F) + (points > 0x7FF).astype(np.int64) + (points > 0xFFFF)
        return np.diff(np.concatenate([[0], np.cumsum(lengths)])[self.starts])

    @cached_property
    def _word_starts(self) -> NDArray[np.int64]:
        blank = np.fromiter((character.isspace() for character in self.text), dtype=np.bool_, count=len(self.text))
        begins = ~blank & np.concatenate([[True], blank[:-1]]) if len(blank) else blank
        if self.line_ends_are_words:
            begins |= np.fromiter((character == "\n" for character in self.text), dtype=np.bool_, count=len(self.text))
        return np.flatnonzero(begins)


def kind_of(path: Path) -> Kind:
    """By the file's name, less .zst or .gz: .tokens is WikiText's, .jsonl documents, .txt one text. Else InputError."""
    name = Path(path.stem) if path.suffix in _PACKED else path
    if name.suffix not in _KINDS:
        raise InputError(
            f"{path}: measured are .tokens (WikiText), .jsonl (documents) and .txt files, plain, .zst or .gz; given "
            f"{name.suffix or 'no suffix'}",
            field="data",
        )
    return _KINDS[name.suffix]


def read_texts(path: Path, tokenizer: Tokenizer, limit_tokens: int | None = None) -> list[MeasuredText]:
    """The documents of a file up to `limit_tokens` tokens in all; a WikiText or .txt file is one document.

    Each line of such a file ends with a line end, the last one too. Raises InputError for a file that cannot be read
    or that has no document of two tokens, of which the second could be predicted.
    """
    kind = kind_of(path)
    texts: list[MeasuredText] = []
    left = limit_tokens
    for external_id, text in _documents(path, kind):
        found = _tokenised(external_id, text, tokenizer, line_ends_are_words=kind == "wikitext")
        if left is not None:
            found = found.cut(left)
            left -= len(found.tokens_N)
        if len(found.tokens_N) > 1:
            texts.append(found)
        if left is not None and left < 2:
            break
    if not texts:
        raise InputError(f"{path}: no document of two or more tokens, so there is nothing to predict", field="data")
    return texts


def _documents(path: Path, kind: Kind) -> Iterator[tuple[str | None, str]]:
    if kind == "documents":
        yield from DocumentReader(Source(path=path), FieldNames(), skip_bad_lines=False, known=set()).read(_id_and_text)
        return
    data = b"".join(line + b"\n" for line in read_lines(path))
    try:
        yield None, data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {data[error.start]:#04x} at {error.start}", field="data") from None


def _id_and_text(document: Document) -> tuple[str | None, str]:
    return document.external_id, document.text


def _tokenised(external_id: str | None, text: str, tokenizer: Tokenizer, *, line_ends_are_words: bool) -> MeasuredText:
    tokens, starts = [], []
    for offset, piece in slices(text, tokenizer):
        ids, offsets_N2 = tokenizer.encode_with_offsets(piece)
        tokens.append(ids.astype(np.int64))
        starts.append(offsets_N2[:, 0] + offset)
    return MeasuredText(
        external_id, text, np.concatenate(tokens), np.concatenate([*starts, [len(text)]]), line_ends_are_words
    )
