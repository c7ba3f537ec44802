"""A dataset as `datasets.save_to_disk` writes it: a folder of Arrow stream files, or of such folders by split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from openbook_core.errors import InputError
from openbook_database.sources.base import FieldNames, Item, Source, read_json
from openbook_database.sources.parquet import BATCH_BYTES, arrow_errors, batch_items, wanted_columns

STATE, SPLITS = "state.json", "dataset_dict.json"
_BATCH_ROWS = 256
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class HuggingFaceDataset:
    """A row is a row, over all files. The files are mapped, not read as a whole."""

    def __init__(self, source: Source, fields: FieldNames) -> None:
        self.fields, self.share = fields, 0.0
        self._path, self._split = source.path, source.split

    def files(self) -> list[tuple[str, Path]]:
        folder = self._folder
        record = read_json(folder / STATE)
        entries = record.get("_data_files") if isinstance(record, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) and "filename" in e for e in entries):
            raise InputError(f"{folder / STATE} names no data files: it is no dataset", field="input")
        if record.get("_indices_data_files"):
            raise InputError(
                f"{folder} is a selection of rows (written by an old version of datasets): load it, call "
                "flatten_indices() and save it again",
                field="input",
            )
        described = [folder / name for name in (STATE, "dataset_info.json") if (folder / name).exists()]
        files = described + [folder / str(entry["filename"]) for entry in entries]
        return [(path.relative_to(self._path).as_posix(), path) for path in files]

    @cached_property
    def _folder(self) -> Path:
        path = self._path
        if not (path / SPLITS).exists():
            if self._split is not None:
                raise InputError(f"{path} has no splits, it cannot be asked for {self._split!r}", field="input")
            return path
        record = read_json(path / SPLITS)
        splits = [str(name) for name in record.get("splits", [])] if isinstance(record, dict) else []
        if self._split is None or self._split not in splits:
            asked = "no split was named" if self._split is None else f"there is no split {self._split!r}"
            raise InputError(
                f"{path} has the splits {', '.join(splits)}; {asked}: give the folder of one, such as "
                f"{path / (splits or ['train'])[0]}",
                field="input",
            )
        return path / self._split

    def rows(self, skip: int) -> Iterator[Item]:
        first = 0
        paths = [path for name, path in self.files() if name.endswith(".arrow")]
        for place, path in enumerate(paths):
            with arrow_errors(path, "an Arrow stream"), pa.memory_map(str(path)) as mapped:
                _require_end(path, mapped)
                with pa.ipc.open_stream(mapped) as reader:
                    columns = wanted_columns(path, reader.schema.names, self.fields)
                    for batch in reader:
                        chosen = batch.select(columns)
                        # The number is of the dataset: a row has the same one however its files are cut.
                        yield from batch_items(self._path, _slices(chosen), first, skip)
                        first += batch.num_rows
                        self.share = (place + mapped.tell() / mapped.size()) / len(paths)


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    size = max(1, batch.nbytes // max(1, batch.num_rows))
    rows = min(_BATCH_ROWS, max(1, BATCH_BYTES // size))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _require_end(path: Path, mapped: pa.NativeFile) -> None:
    """Arrow reads a stream that is cut between two batches as a shorter one; its end mark tells."""
    size = mapped.size()
    mapped.seek(max(0, size - len(_END)))
    end = mapped.read()
    mapped.seek(0)
    if end != _END:
        raise InputError(f"{path} is damaged or cut short: it does not end as an Arrow stream does", field="input")
