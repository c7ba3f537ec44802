"""The chunked corpus in canonical order, over the mapped blocks of the chunk stage.

Axes: N chunks, M tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openbook_core.tokenizer import Tokenizer
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

    def __init__(self, work: Workspace, chunk_length: int) -> None:
        self._blocks: list[_Block] = []
        tables: list[pa.Table] = []
        blocks: list[NDArray[np.int64]] = []
        firsts: list[NDArray[np.int64]] = []
        while block_path(work.chunks, len(tables)).exists():
            number = len(tables)
            table = read_table(block_path(work.documents, number))
            rows = table.column("rows").to_numpy()
            tables.append(table)
            blocks.append(np.full(len(rows), number, dtype=np.int64))
            firsts.append(np.cumsum(rows) - rows)
            self._blocks.append(_open_block(read_table(block_path(work.chunks, number)), chunk_length))
        documents = pa.concat_tables(tables)
        ids = documents.column("external_id").to_pylist()
        order = np.asarray(sorted(range(len(ids)), key=lambda place: ids[place].encode()), dtype=np.int64)
        self._table = documents.take(pa.array(order))
        self._block_of = np.concatenate(blocks)[order]
        self._first_in_block = np.concatenate(firsts)[order]
        self.document_rows: NDArray[np.int64] = self._table.column("rows").to_numpy()
        self.first_rows: NDArray[np.int64] = np.cumsum(self.document_rows) - self.document_rows
        self.chunk_length = chunk_length
        self.chunks = int(self.document_rows.sum())

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
