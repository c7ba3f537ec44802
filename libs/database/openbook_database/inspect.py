"""What a snapshot is and holds, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from openbook_database.snapshot import Snapshot


def inspect(path: str | Path, *, chunk: int | None = None) -> dict[str, Any]:
    """Counts, sizes, recipe, contract and one chunk (the middle one unless its id is given) as JSON values.

    Sizes of files are compared with the manifest, checksums are not; raises NotFoundError or CorruptError.
    """
    snapshot = Snapshot.open(path, "sizes")
    manifest = snapshot.manifest
    return {
        "database": manifest.database,
        "snapshot": snapshot.id,
        "documents": manifest.documents,
        "chunks": manifest.chunks,
        "tokens": manifest.tokens,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "shards": [
            {
                "shard": number,
                "first_row": shard.first_row,
                "rows": shard.rows,
                "documents": shard.documents,
                "first_id": shard.first_id,
                "last_id": shard.last_id,
            }
            for number, shard in enumerate(manifest.shards)
        ],
        "contract": {**manifest.contract.to_record(), "digest": manifest.contract.fingerprint.digest},
        "index": {
            "factory": manifest.index.factory,
            "exact": manifest.index.exact,
            "search": manifest.index.search,
            "recall": manifest.index.recall,
        },
        "sources": list(manifest.sources),
        "settings": manifest.recipe["settings"],
        "encoder_dtype": manifest.recipe["encoder"]["dtype"],
        "libraries": manifest.recipe["libraries"],
        "sample": describe_chunk(snapshot, manifest.chunks // 2 if chunk is None else chunk),
    }


def describe_chunk(snapshot: Snapshot, chunk_id: int) -> dict[str, Any]:
    """A chunk with its continuation and its document, as JSON values."""
    shard = snapshot.shard_of(chunk_id)
    ids = np.asarray([chunk_id])
    _, lengths_N2 = shard.tokens(ids)
    document = snapshot.documents.record(int(shard.document_numbers(ids)[0]))
    return {
        "id": chunk_id,
        "tokens": int(lengths_N2[0, 0]),
        "text": shard.text(ids)[0],
        "continuation": shard.continuation_text(ids)[0],
        "document": {
            "number": document.number,
            "id": document.external_id,
            "title": document.title,
            "uri": document.uri,
            "licence": document.licence,
            "chunk": chunk_id - document.first_row,
            "chunks": document.rows,
            "metadata": document.metadata,
        },
    }
