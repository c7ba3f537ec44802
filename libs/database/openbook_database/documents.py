"""The document table of a snapshot: an Arrow file that is mapped, not parsed.

Rows are in canonical order (by the UTF-8 bytes of the external id), so the row is the document number and an id is
found by bisection. Metadata values are kept as JSON text, one column for each name. A document's content digest is over
all that its tokens and vectors follow from, so another build can tell what it need not do again.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, CorruptError

METADATA_PREFIX = "metadata."
DIGEST_BYTES = 32
_FEW_IDS = 48
_TEXT_COLUMNS = ("external_id", "title", "uri", "licence")


def content_digest(title: str | None, text: str) -> bytes:
    """BLAKE3 (32 bytes) over what a document's chunks and passages follow from; headings are part of the text."""
    digest = blake3.blake3(b"\0" if title is None else b"\1%d:" % len(title.encode()) + title.encode())
    return digest.update(text.encode()).digest()


@dataclass(frozen=True)
class DocumentRecord:
    """A document: its number, what its source said of it, and its rows [first_row, first_row + rows)."""

    number: int
    external_id: str
    title: str | None
    uri: str | None
    licence: str | None
    first_row: int
    rows: int
    metadata: dict[str, Any]


def document_schema(metadata_columns: Sequence[str]) -> pa.Schema:
    """Columns of documents.arrow."""
    return pa.schema(
        [(name, pa.large_string()) for name in _TEXT_COLUMNS]
        + [("content", pa.binary(DIGEST_BYTES)), ("first_row", pa.int64()), ("rows", pa.int64())]
        + [(METADATA_PREFIX + name, pa.large_string()) for name in metadata_columns]
    )


class DocumentTable:
    """Documents by number or by external id."""

    def __init__(self, path: Path, *, documents: int) -> None:
        """Raises CorruptError where the file is no document table of `documents` rows."""
        try:
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
                table = reader.read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise CorruptError(f"{path}: is not a document table: {error}") from error
        self.metadata_columns = tuple(
            name.removeprefix(METADATA_PREFIX) for name in table.column_names if name.startswith(METADATA_PREFIX)
        )
        if table.num_rows != documents or table.schema != document_schema(self.metadata_columns):
            raise CorruptError(
                f"{path}: holds {table.num_rows} documents with columns {table.column_names}, expected {documents}"
            )
        batches = table.to_batches()
        if len(batches) != 1:
            raise CorruptError(f"{path}: holds {len(batches)} record batches, expected 1")
        self._batch = batches[0]
        self._columns = {name: self._batch.column(name) for name in self._batch.schema.names}
        self.first_rows: NDArray[np.int64] = self._columns["first_row"].to_numpy()
        self.rows: NDArray[np.int64] = self._columns["rows"].to_numpy()
        _, digests = self._columns["content"].buffers()
        self.contents: NDArray[np.uint8] = np.frombuffer(digests, np.uint8, documents * DIGEST_BYTES).reshape(
            documents, -1
        )
        self._ids = self._columns["external_id"].cast(pa.large_binary())
        _, offsets, data = self._columns["external_id"].buffers()
        self._id_offsets = np.frombuffer(offsets, dtype=np.int64, count=documents + 1)
        self._id_data = memoryview(data)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def table(self) -> pa.Table:
        """All columns, mapped."""
        return pa.Table.from_batches([self._batch])

    def record(self, number: int) -> DocumentRecord:
        """The document `number`; raises ArgumentError for one that there is not."""
        if not 0 <= number < len(self):
            raise ArgumentError(f"document {number}: the snapshot has numbers 0 to {len(self) - 1}", field="document")
        metadata = {}
        for name in self.metadata_columns:
            value = self._columns[METADATA_PREFIX + name][number].as_py()
            if value is not None:
                metadata[name] = json.loads(value)
        return DocumentRecord(
            number=number,
            external_id=self._columns["external_id"][number].as_py(),
            title=self._columns["title"][number].as_py(),
            uri=self._columns["uri"][number].as_py(),
            licence=self._columns["licence"][number].as_py(),
            first_row=int(self.first_rows[number]),
            rows=int(self.rows[number]),
            metadata=metadata,
        )

    def number(self, external_id: str) -> int | None:
        """Number of a document, or None where the snapshot does not hold it."""
        wanted = external_id.encode("utf-8", "surrogatepass")
        place = bisect_left(range(len(self)), wanted, key=self.id_bytes)
        return place if place < len(self) and self.id_bytes(place) == wanted else None

    def numbers(self, external_ids: Iterable[str]) -> tuple[set[int], int]:
        """Numbers of the documents that there are, and how many ids are unknown."""
        found_N = self.find(list(external_ids))
        return set(found_N[found_N >= 0].tolist()), int((found_N < 0).sum())

    def find(self, external_ids: Sequence[str]) -> NDArray[np.int64]:
        """Number of each document, -1 where the snapshot does not hold it: all are looked for at once."""
        if len(external_ids) <= _FEW_IDS:
            found = [self.number(external_id) for external_id in external_ids]
            return np.asarray([-1 if number is None else number for number in found], dtype=np.int64)
        if not len(self):
            return np.full(len(external_ids), -1, dtype=np.int64)
        wanted_N = pa.array([each.encode("utf-8", "surrogatepass") for each in external_ids], pa.large_binary())
        low_N = np.zeros(len(external_ids), dtype=np.int64)
        high_N = np.full(len(external_ids), len(self), dtype=np.int64)
        for _ in range(len(self).bit_length()):
            middle_N = (low_N + high_N) // 2
            less_N = pc.less(self._at(middle_N), wanted_N).to_numpy(zero_copy_only=False) & (low_N < high_N)
            low_N, high_N = np.where(less_N, middle_N + 1, low_N), np.where(less_N, high_N, middle_N)
        same_N = pc.equal(self._at(low_N), wanted_N).to_numpy(zero_copy_only=False)
        return np.where(same_N & (low_N < len(self)), low_N, -1)

    def _at(self, numbers_N: NDArray[np.int64]) -> pa.Array:
        """External ids in UTF-8, the last document's for a number behind it."""
        return self._ids.take(pa.array(np.minimum(numbers_N, len(self) - 1)))

    def of_rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Document number of each chunk id."""
        return np.searchsorted(self.first_rows, ids, side="right") - 1

    def id_bytes(self, number: int) -> bytes:
        """External id of a document, in UTF-8; documents are in the order of these."""
        return bytes(self._id_data[self._id_offsets[number] : self._id_offsets[number + 1]])
