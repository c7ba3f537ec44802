"""The chunked corpus in canonical order, over the mapped blocks of the chunk stage.

Memory does not grow with the corpus: the order of the documents is a file that is mapped, and of the blocks only the
last used are. Making the order takes, once, 16 bytes for each document.

In a build from a base, the rows of documents that are as they were there are the base's, tokens and vectors alike; the
embed stage has rows of its own, numbered from 0, which are those of the other documents.

Axes: N chunks, M tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from openbook_core.tokenizer import Tokenizer
from openbook_database.build.base import Base
from openbook_database.build.chunk_stage import block_path, read_table
from openbook_database.build.workspace import Workspace
from openbook_database.chunking import PassageTemplate
from openbook_database.files import write_atomically, write_bytes_atomically
from openbook_database.text import CONTEXT, chunk_text

# Of documents in canonical order: block, place in the block's documents, first row in the block's chunks (-1 where the rows
# are the base's), number in the base if it is as it was there or else -1, rows, first row.
_PLACE = np.dtype(
    [("block", "<i4"), ("place", "<i4"), ("start", "<i8"), ("base", "<i8"), ("rows", "<i8"), ("first_row", "<i8")]
)
_MAPPED_BLOCKS = 32
_STEP = 1 << 16


@dataclass(frozen=True)
class _Block:
    tokens_NM: NDArray[np.unsignedinteger]
    lengths_N: NDArray[np.uint16]
    headings: pa.Array


class Corpus:
    """Documents sorted by the UTF-8 bytes of their external ids, chunks in order."""

    def __init__(self, work: Workspace, chunk_length: int) -> None:
        """What the chunk stage made, once that is done; another process may open it too."""
        self._work = work
        self.chunk_length = chunk_length
        self.base = None if work.base is None else Base(work.base)
        if not work.order.exists():
            write_atomically(work.order, lambda path: _write_order(path, work))
        self._order = np.memmap(work.order, _PLACE, mode="r")
        self.document_rows: NDArray[np.int64] = self._order["rows"]
        self.first_rows: NDArray[np.int64] = self._order["first_row"]
        self.chunks = int(self.first_rows[-1] + self.document_rows[-1])
        self.base_documents: NDArray[np.int64] = self._order["base"]
        self._encoded_ends: NDArray[np.int64] | None = None
        self.encoded_chunks = self.chunks
        if work.encoded.exists():
            self._read_encoded()
        self._block = lru_cache(_MAPPED_BLOCKS)(lambda block: _open_block(block_path(work.chunks, block), chunk_length))
        self._table = lru_cache(_MAPPED_BLOCKS)(lambda block: read_table(block_path(work.documents, block)))

    @property
    def documents(self) -> int:
        return len(self._order)

    def external_id(self, document: int) -> str:
        return str(self._value(document, "external_id"))

    def records(self, first: int, end: int, columns: Sequence[str]) -> pa.Table:
        """`columns` of the documents [first, end), each of one chunk of strings."""
        blocks, places = self._order["block"][first:end], self._order["place"][first:end]
        by_block = np.argsort(blocks, kind="stable")
        taken = [
            self._table(int(block)).select(columns).take(pa.array(places[by_block[blocks[by_block] == block]]))
            for block in np.unique(blocks)
        ]
        back = np.empty(end - first, np.int64)
        back[by_block] = np.arange(end - first)
        return pa.concat_tables(taken).combine_chunks().take(pa.array(back)).combine_chunks()

    @property
    def has_vectors(self) -> bool:
        """Whether the vectors of all chunks can be read, once the embed stage is done."""
        return self.base is None or self.base.has_vectors or self.encoded_chunks == self.chunks

    def encode(self, chosen: NDArray[np.bool_]) -> None:
        """Leave the rows of the `chosen` documents alone to the embed stage, in every process; before, all are."""
        ends = np.cumsum(np.where(chosen, self.document_rows, 0), dtype="<i8")
        write_bytes_atomically(self._work.encoded, ends.tobytes())
        self._read_encoded()

    def _read_encoded(self) -> None:
        """For each document, how many rows the embed stage has up to its end."""
        self._encoded_ends = np.memmap(self._work.encoded, "<i8", mode="r")
        self.encoded_chunks = int(self._encoded_ends[-1])

    def _encoded_document(self, row: int) -> tuple[int, int]:
        """The document of a row of the embed stage, and its first row there."""
        if self._encoded_ends is None:
            document = int(np.searchsorted(self.first_rows, row, side="right")) - 1
            return document, int(self.first_rows[document])
        document = int(np.searchsorted(self._encoded_ends, row, side="right"))
        return document, int(self._encoded_ends[document] - self.document_rows[document])

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The runs of one document each that make up the rows [first, end) of the embed stage: (document, its first and
        last + 1 chunk in the run, counted in the document)."""
        while first < end:
            document, start = self._encoded_document(first)
            stop = min(end, start + int(self.document_rows[document]))
            yield document, first - start, stop - start
            first = stop

    def runs(self, first: int, end: int) -> list[tuple[bool, int, int]]:
        """Where the vectors of the chunks [first, end) are: (whether in the base, first and last + 1 row there or of the
        embed stage), one run after the other."""
        if self.base is None or self._encoded_ends is None:
            return [(False, first, end)]
        found: list[tuple[bool, int, int]] = []
        document = int(np.searchsorted(self.first_rows, first, side="right")) - 1
        before = int(self._encoded_ends[document - 1]) if document else 0
        while first < end:
            start, after = int(self.first_rows[document]), int(self._encoded_ends[document])
            in_base = after == before
            place = int(self.base.documents.first_rows[self.base_documents[document]]) if in_base else before
            stop = min(end, start + int(self.document_rows[document]))
            run = (in_base, place + first - start, place + stop - start)
            if found and found[-1][0] == in_base and found[-1][2] == run[1]:
                run = (in_base, found.pop()[1], run[2])
            found.append(run)
            first, document, before = stop, document + 1, after
        return found

    def tokens(self, document: int, first: int, end: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint16]]:
        """Token rows [n, m] and tokens used [n] of a run of a document's chunks."""
        if self.base is not None and int(self._order["start"][document]) < 0:
            return self.base.tokens(int(self.base_documents[document]), first, end)
        block, rows = self._rows(document, first, end)
        return block.tokens_NM[rows], block.lengths_N[rows]

    def passages(self, first: int, end: int, tokenizer: Tokenizer, template: PassageTemplate) -> list[str]:
        """What is embedded for the rows [first, end) of the embed stage."""
        passages = []
        for document, begin, stop in self.pieces(first, end):
            title = self._value(document, "title")
            block, rows = self._rows(document, begin, stop)
            headings = block.headings[rows].to_pylist()
            texts = self.texts(document, begin, stop, tokenizer)
            passages += [template.passage(text, title, heading) for text, heading in zip(texts, headings, strict=True)]
        return passages

    def texts(self, document: int, first: int, end: int, tokenizer: Tokenizer) -> list[str]:
        """Text of a run of a document's chunks."""
        m, rows = self.chunk_length, int(self.document_rows[document])
        before = max(0, first - -(-CONTEXT // m))
        tokens_NM, lengths_N = self.tokens(document, before, end)
        flat = tokens_NM.reshape(-1)
        texts = []
        for chunk in range(first, end):
            start = (chunk - before) * m
            tokens = flat[start : start + int(lengths_N[chunk - before])]
            left = flat[max(0, start - CONTEXT) : start]
            texts.append(chunk_text(tokenizer, left, tokens, last=chunk == rows - 1))
        return texts

    def _value(self, document: int, column: str) -> str | None:
        place = self._order[document]
        value: str | None = self._table(int(place["block"])).column(column)[int(place["place"])].as_py()
        return value

    def _rows(self, document: int, first: int, end: int) -> tuple[_Block, slice]:
        place = self._order[document]
        start = int(place["start"])
        return self._block(int(place["block"])), slice(start + first, start + end)


def _write_order(path: Path, work: Workspace) -> None:
    ids: list[pa.Array] = []
    unsorted = path.with_name("unsorted.tmp")
    with unsorted.open("wb") as stream:
        number = 0
        while block_path(work.chunks, number).exists():
            table = read_table(block_path(work.documents, number))
            part = np.zeros(table.num_rows, _PLACE)
            part["block"], part["place"] = number, np.arange(table.num_rows)
            part["rows"] = table.column("rows").to_numpy()
            part["base"] = table.column("base").to_numpy()
            held = table.column("held").to_numpy()
            part["start"] = np.where(held > 0, np.cumsum(held) - held, -1)
            stream.write(part.tobytes())
            ids += table.column("external_id").chunks
            number += 1
    # Arrow compares strings by their bytes.
    order = pc.sort_indices(pa.chunked_array(ids, pa.large_string()))
    places = np.memmap(unsorted, _PLACE, mode="r")
    first_row = 0
    with path.open("wb") as stream:
        for first in range(0, len(order), _STEP):
            part = places[order[first : first + _STEP].to_numpy()]
            ends = first_row + np.cumsum(part["rows"])
            part["first_row"], first_row = ends - part["rows"], int(ends[-1])
            stream.write(part.tobytes())
    unsorted.unlink()


def _open_block(path: Path, chunk_length: int) -> _Block:
    table = read_table(path)
    columns = table.combine_chunks()
    if not table.num_rows:
        return _Block(np.empty((0, chunk_length), np.uint16), np.empty(0, np.uint16), pa.array([], pa.large_string()))
    return _Block(
        tokens_NM=columns.column("tokens").chunk(0).values.to_numpy().reshape(-1, chunk_length),
        lengths_N=columns.column("lengths").chunk(0).to_numpy(),
        headings=columns.column("headings").chunk(0),
    )
