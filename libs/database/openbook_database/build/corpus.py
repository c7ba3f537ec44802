"""The chunked corpus in canonical order, over the mapped blocks of the chunk stage.

Memory does not grow with the corpus: the order of the documents is a file that is mapped, and of the blocks only the
last used are. Making the order takes, once, 16 bytes for each document.

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
from openbook_database.build.chunk_stage import block_path, read_table
from openbook_database.build.workspace import Workspace
from openbook_database.chunking import PassageTemplate
from openbook_database.files import write_atomically
from openbook_database.text import CONTEXT, chunk_text

# Of documents in canonical order: block, place in the block's documents, first row in the block's chunks, rows, first row.
_PLACE = np.dtype([("block", "<i4"), ("place", "<i4"), ("start", "<i8"), ("rows", "<i8"), ("first_row", "<i8")])
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
        if not work.order.exists():
            write_atomically(work.order, lambda path: _write_order(path, work))
        self._order = np.memmap(work.order, _PLACE, mode="r")
        self.document_rows: NDArray[np.int64] = self._order["rows"]
        self.first_rows: NDArray[np.int64] = self._order["first_row"]
        self.chunks = int(self.first_rows[-1] + self.document_rows[-1])
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

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The runs of one document each that make up the chunks [first, end): (document, its first and last + 1 chunk
        in the run, counted in the document)."""
        document = int(np.searchsorted(self.first_rows, first, side="right")) - 1
        while first < end:
            start = int(self.first_rows[document])
            stop = min(end, start + int(self.document_rows[document]))
            yield document, first - start, stop - start
            first, document = stop, document + 1

    def tokens(self, document: int, first: int, end: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint16]]:
        """Token rows [n, m] and tokens used [n] of a run of a document's chunks."""
        block, rows = self._rows(document, first, end)
        return block.tokens_NM[rows], block.lengths_N[rows]

    def passages(self, first: int, end: int, tokenizer: Tokenizer, template: PassageTemplate) -> list[str]:
        """What is embedded for the chunks [first, end)."""
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
            part["start"] = np.cumsum(part["rows"]) - part["rows"]
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
