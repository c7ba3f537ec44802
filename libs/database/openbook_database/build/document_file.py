"""documents.arrow: written column by column through files, so that its one record batch need not fit into memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from openbook_database.build.corpus import Corpus
from openbook_database.documents import DIGEST_BYTES, document_schema
from openbook_database.files import clear_write_errors, write_atomically

# A multiple of 8: the bits that say which values there are fill whole bytes.
_STEP = 1 << 14


def write_document_file(path: Path, corpus: Corpus, metadata_columns: Sequence[str], scratch: Path) -> None:
    """Write the document table at `path`; `scratch` is a folder for the columns, removed at the end."""
    schema = document_schema(metadata_columns)
    texts = [field.name for field in schema if field.type == pa.large_string()]
    shutil.rmtree(scratch, ignore_errors=True)
    with clear_write_errors(scratch):
        scratch.mkdir()
    try:
        with clear_write_errors(scratch):
            for name in texts:
                (scratch / name).mkdir()
            present = _write_columns(corpus, texts, scratch)
        columns = {name: _read_column(scratch / name, corpus.documents, present[name]) for name in texts}
        columns["content"] = pa.FixedSizeBinaryArray.from_buffers(
            schema.field("content").type, corpus.documents, [None, _mapped(scratch / "content")]
        )
        columns["first_row"] = pa.array(corpus.first_rows)
        columns["rows"] = pa.array(corpus.document_rows)
        batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

        def write(temporary: Path) -> None:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_batch(batch)

        write_atomically(path, write)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_columns(corpus: Corpus, names: Sequence[str], scratch: Path) -> dict[str, int]:
    """Offsets, bytes and presence of each column, as Arrow lays them out; how many values are present in each."""
    sizes, present = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for name in names:
        (scratch / name / "offsets").write_bytes(bytes(8))
    for first in range(0, corpus.documents, _STEP):
        records = corpus.records(first, min(first + _STEP, corpus.documents), [*names, "content"])
        digests = records.column("content").chunk(0)
        _append(scratch / "content", memoryview(digests.buffers()[1])[: len(digests) * DIGEST_BYTES])
        for name in names:
            values = records.column(name).chunk(0)
            _, offsets, data = values.buffers()
            ends = np.frombuffer(offsets, "<i8", len(values) + 1)
            held = values.is_valid().to_numpy(zero_copy_only=False)
            folder = scratch / name
            _append(folder / "offsets", (ends[1:] + sizes[name]).tobytes())
            _append(folder / "data", b"" if data is None else memoryview(data)[: int(ends[-1])])
            _append(folder / "present", np.packbits(held, bitorder="little").tobytes())
            sizes[name] += int(ends[-1])
            present[name] += int(held.sum())
    return present


def _append(path: Path, data: bytes | memoryview) -> None:
    with path.open("ab") as stream:
        stream.write(data)


def _read_column(folder: Path, rows: int, present: int) -> pa.Array:
    held = None if present == rows else _mapped(folder / "present")
    return pa.LargeStringArray.from_buffers(
        rows, _mapped(folder / "offsets"), _mapped(folder / "data"), held, rows - present
    )


def _mapped(path: Path) -> pa.Buffer:
    if not path.stat().st_size:
        return pa.py_buffer(b"")
    with pa.memory_map(str(path)) as source:
        return source.read_buffer()
