"""Parquet, read by batches of about BATCH_BYTES and only the columns that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openbook_core.errors import InputError
from openbook_database.sources.base import FieldNames, Item, Source

BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1024


class ParquetFile:
    """A row is a row. Memory: one batch, and the pages and dictionaries of one row group that it lies in."""

    def __init__(self, source: Source, fields: FieldNames) -> None:
        self.fields, self.share = fields, 0.0
        self._path = source.path

    def files(self) -> list[tuple[str, Path]]:
        return [(self._path.name, self._path)]

    def rows(self, skip: int) -> Iterator[Item]:
        with (
            arrow_errors(self._path, "Parquet"),
            pq.ParquetFile(self._path, buffer_size=1 << 20, pre_buffer=False) as file,
        ):
            columns = wanted_columns(self._path, file.schema_arrow.names, self.fields)
            first = 0
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                end = first + metadata.num_rows
                if end > skip:
                    size = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
                    batch_rows = min(_BATCH_ROWS, max(1, BATCH_BYTES // size))
                    batches = file.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False)
                    for item in batch_items(self._path, batches, first, skip):
                        self.share = item.number / file.metadata.num_rows
                        yield item
                first = end


def batch_items(path: Path, batches: Iterator[pa.RecordBatch], first: int, skip: int) -> Iterator[Item]:
    """Rows of record batches, the first of them with number `first` + 1, after the first `skip` of the source."""
    for batch in batches:
        done = max(0, skip - first)
        for place, row in enumerate(batch.slice(done).to_pylist(), start=first + done + 1):
            yield Item(place, f"{path}, row {place}", row)
        first += batch.num_rows


def wanted_columns(path: Path, names: list[str], fields: FieldNames) -> list[str]:
    """Those of `fields` that there are; raises InputError where there is none for the text or the id."""
    for wanted, what, advice in (
        (fields.text, "text", "name another (--text-field)"),
        (fields.id, "document's id", "name another, or none to have the rows numbered (--id-field)"),
    ):
        if wanted and wanted not in names:
            listing = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
            raise InputError(
                f"{path} has no column {wanted!r} for the {what}; it has {listing}: {advice}", field="input"
            )
    return [name for name in names if name in fields.columns]


@contextmanager
def arrow_errors(path: Path, what: str) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into an InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"no such input file: {path}", field="input") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged or not {what}: {error}", field="input") from error
