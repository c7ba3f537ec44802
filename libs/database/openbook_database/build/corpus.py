"""The chunked corpus in canonical order, over the mapped blocks of the chunk stage.

Axes: N chunks, M tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openbook_core.tokenizer import Tokenizer
from openbook_database.build.base import Base
from openbook_database.build.chunk_stage import block_path, read_table
from openbook_database.build.workspace import Workspace
from openbook_database.chunking import PassageTemplate
from openbook_database.documents import document_schema
from openbook_database.text import CONTEXT, chunk_text


@dataclass(frozen=True)
class _Block:
    tokens_NM: NDArray[np.unsignedinteger]
    lengths_N: NDArray[np.uint16]
    headings: pa.Array


class Corpus:
    """Documents sorted by the UTF-8 bytes of their external ids, chunks in order."""

    def __init__(
        self,
        documents: pa.Table,
        blocks: Sequence[_Block],
        places: tuple[NDArray[np.int64], NDArray[np.int64]],
        chunk_length: int,
        base: Base | None,
    ) -> None:
        """`documents`: columns of the chunk stage, in order. `places`: block of each, and its first row there."""
        self._table, self._blocks = documents, blocks
        self._block_of, self._first_in_block = places
        self.document_rows: NDArray[np.int64] = documents.column("rows").to_numpy()
        self.first_rows: NDArray[np.int64] = np.cumsum(self.document_rows) - self.document_rows
        self.chunk_length = chunk_length
        self.chunks = int(self.document_rows.sum())
        self.base = base
        # Number in the base of each document that is as it was there, else -1.
        self.base_documents: NDArray[np.int64] = documents.column("base").to_numpy()
        self.encode(np.ones(len(self.document_rows), dtype=np.bool_))

    @classmethod
    def open(cls, work: Workspace, chunk_length: int, base: Base | None = None) -> Self:
        """What the chunk stage made."""
        blocks: list[_Block] = []
        tables: list[pa.Table] = []
        block_of: list[NDArray[np.int64]] = []
        firsts: list[NDArray[np.int64]] = []
        while block_path(work.chunks, len(tables)).exists():
            number = len(tables)
            table = read_table(block_path(work.documents, number))
            rows = table.column("rows").to_numpy()
            if base is not None and base.has_vectors:
                rows = np.where(table.column("base").to_numpy() < 0, rows, 0)
            tables.append(table)
            block_of.append(np.full(len(rows), number, dtype=np.int64))
            firsts.append(np.cumsum(rows) - rows)
            blocks.append(_open_block(read_table(block_path(work.chunks, number)), chunk_length))
        documents = pa.concat_tables(tables)
        ids = documents.column("external_id").to_pylist()
        order = np.asarray(sorted(range(len(ids)), key=lambda place: ids[place].encode()), dtype=np.int64)
        places = (np.concatenate(block_of)[order], np.concatenate(firsts)[order])
        return cls(documents.take(pa.array(order)), blocks, places, chunk_length, base)

    @classmethod
    def of_base(cls, base: Base, numbers: NDArray[np.int64]) -> Self:
        """The documents `numbers` of `base`, in order, without a chunk stage."""
        documents = base.documents.table.take(pa.array(numbers)).append_column("base", pa.array(numbers))
        return cls(documents, [], (numbers, numbers), base.manifest.contract.chunk_length, base)

    def encode(self, chosen: NDArray[np.bool_]) -> None:
        """Leave the rows of the `chosen` documents alone to the embed stage (at first all are)."""
        rows = np.where(chosen, self.document_rows, 0)
        self._encoded: NDArray[np.int64] = np.flatnonzero(chosen)
        # The first row of each document in the order of the embed stage, which passes over the others.
        self._encoded_first: NDArray[np.int64] = np.where(chosen, np.cumsum(rows) - rows, -1)
        self.encoded_chunks = int(rows.sum())

    @property
    def documents(self) -> int:
        return len(self.document_rows)

    def external_id(self, document: int) -> str:
        return str(self._table.column("external_id")[document].as_py())

    def document_batch(self, metadata_columns: Sequence[str]) -> pa.RecordBatch:
        """The rows of documents.arrow, as one batch."""
        schema = document_schema(metadata_columns)
        values = {name: self._table.column(name).to_pylist() for name in schema.names if name != "first_row"}
        values["first_row"] = self.first_rows.tolist()
        return pa.RecordBatch.from_arrays(
            [pa.array(values[name], schema.field(name).type) for name in schema.names], schema=schema
        )

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The runs of one document each that make up the rows [first, end) of the embed stage: (document, its first and
        last + 1 chunk in the run, counted in the document)."""
        place = int(np.searchsorted(self._encoded_first[self._encoded], first, side="right")) - 1
        while first < end:
            document = int(self._encoded[place])
            start = int(self._encoded_first[document])
            stop = min(end, start + int(self.document_rows[document]))
            yield document, first - start, stop - start
            first, place = stop, place + 1

    def runs(self, first: int, end: int) -> list[tuple[bool, int, int]]:
        """Where the vectors of the chunks [first, end) are: (whether in the base, first and last + 1 row there or in the
        order of the embed stage), one run after the other."""
        if self.base is None:
            return [(False, first, end)]
        found: list[tuple[bool, int, int]] = []
        document = int(np.searchsorted(self.first_rows, first, side="right")) - 1
        while first < end:
            start, place = int(self.first_rows[document]), int(self._encoded_first[document])
            in_base = place < 0
            if in_base:
                place = int(self.base.documents.first_rows[self.base_documents[document]])
            stop = min(end, start + int(self.document_rows[document]))
            run = (in_base, place + first - start, place + stop - start)
            if found and found[-1][0] == in_base and found[-1][2] == run[1]:
                run = (in_base, found.pop()[1], run[2])
            found.append(run)
            first, document = stop, document + 1
        return found

    def tokens(self, document: int, first: int, end: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint16]]:
        """Token rows [n, m] and tokens used [n] of a run of a document's chunks."""
        number = int(self.base_documents[document])
        if self.base is not None and self.base.has_vectors and number >= 0:
            return self.base.tokens(number, first, end)
        block, rows = self._rows(document, first, end)
        return block.tokens_NM[rows], block.lengths_N[rows]

    def passages(self, first: int, end: int, tokenizer: Tokenizer, template: PassageTemplate) -> list[str]:
        """What is embedded for the rows [first, end) of the embed stage."""
        passages = []
        for document, begin, stop in self.pieces(first, end):
            title = self._table.column("title")[document].as_py()
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

    def _rows(self, document: int, first: int, end: int) -> tuple[_Block, slice]:
        start = int(self._first_in_block[document])
        return self._blocks[int(self._block_of[document])], slice(start + first, start + end)


def _open_block(table: pa.Table, chunk_length: int) -> _Block:
    columns = table.combine_chunks()
    if not table.num_rows:
        return _Block(np.empty((0, chunk_length), np.uint16), np.empty(0, np.uint16), pa.array([], pa.large_string()))
    return _Block(
        tokens_NM=columns.column("tokens").chunk(0).values.to_numpy().reshape(-1, chunk_length),
        lengths_N=columns.column("lengths").chunk(0).to_numpy(),
        headings=columns.column("headings").chunk(0),
    )
