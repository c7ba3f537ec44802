"""Full verification of a snapshot: every byte, every row, the golden queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openbook_core.errors import CorruptError
from openbook_database.manifest import MANIFEST_NAME, Manifest
from openbook_database.shard import Shard, shard_folder
from openbook_database.snapshot import Snapshot


@dataclass(frozen=True)
class Verification:
    """What was checked."""

    snapshot_id: str
    files: int
    bytes: int
    shards: int
    documents: int
    chunks: int
    golden_queries: int


def verify(path: str | Path, *, expected_id: str | None = None) -> Verification:
    """Check all of a snapshot, and that it is `expected_id` (the id or its first 8 or more digits) where that is given.

    Raises NotFoundError or CorruptError naming the file and what differs.
    """
    path = Path(path)
    snapshot = Snapshot.open(path, "full", expected_id=expected_id)
    manifest = snapshot.manifest
    _check_names(path, manifest)
    _check_counts(snapshot)
    for shard in snapshot.shards:
        _check_rows(snapshot, shard)
    snapshot.check_golden()
    return Verification(
        snapshot_id=snapshot.id,
        files=len(manifest.files) + 1,
        bytes=sum(entry.size for entry in manifest.files.values()),
        shards=len(manifest.shards),
        documents=manifest.documents,
        chunks=manifest.chunks,
        golden_queries=len(manifest.golden.queries_ND),
    )


def _check_names(path: Path, manifest: Manifest) -> None:
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    extra = sorted(present - manifest.files.keys() - {MANIFEST_NAME})
    if extra:
        raise CorruptError(f"{path}: holds {', '.join(extra[:5])}, which the manifest does not name")


def _check_counts(snapshot: Snapshot) -> None:
    manifest, documents = snapshot.manifest, snapshot.documents
    table = snapshot.path / "documents.arrow"
    if (np.cumsum(documents.rows) - documents.rows != documents.first_rows).any() or (documents.rows < 1).any():
        raise CorruptError(f"{table}: rows of documents do not follow on each other")
    if int(documents.rows.sum()) != manifest.chunks:
        raise CorruptError(
            f"{table}: {int(documents.rows.sum())} rows in all, the manifest says {manifest.chunks} chunks"
        )
    row = document = 0
    for number, shard in enumerate(manifest.shards):
        if (shard.first_row, shard.first_document) != (row, document):
            raise CorruptError(
                f"{snapshot.path / MANIFEST_NAME}: {shard_folder(number)} does not follow on the one before"
            )
        row, document = shard.end_row, shard.end_document
    if (row, document) != (manifest.chunks, manifest.documents):
        raise CorruptError(f"{snapshot.path / MANIFEST_NAME}: shards hold {row} chunks of {document} documents")


def _check_rows(snapshot: Snapshot, shard: Shard) -> None:
    """Each row: its document, its length, token ids below the vocabulary's size."""
    folder = snapshot.path / shard_folder(shard.number)
    m, first = shard.chunk_length, shard.entry.first_row
    step = max(1, (1 << 22) // m)
    for start in range(first, shard.entry.end_row, step):
        ids = np.arange(start, min(start + step, shard.entry.end_row))
        expected = snapshot.documents.of_rows(ids)
        if (shard.document_numbers(ids) != expected).any():
            raise CorruptError(f"{folder / 'documents.bin'}: a row names another document than documents.arrow")
        tokens_N2M, lengths_N2 = shard.tokens(ids)
        tokens_NM, lengths_N = tokens_N2M[:, :m], lengths_N2[:, 0].astype(np.int64)
        last = snapshot.documents.first_rows[expected] + snapshot.documents.rows[expected] - 1 == ids
        if (lengths_N < 1).any() or (lengths_N > m).any() or (lengths_N[~last] != m).any():
            raise CorruptError(f"{folder / 'lengths.bin'}: a row that is not its document's last has not {m} tokens")
        if (tokens_NM >= snapshot.tokenizer.vocab_size).any():
            raise CorruptError(f"{folder / 'tokens.bin'}: holds a token id that the tokenizer has not")
        if tokens_NM[np.arange(m) >= lengths_N[:, None]].any():
            raise CorruptError(f"{folder / 'tokens.bin'}: a row is not padded with 0")
