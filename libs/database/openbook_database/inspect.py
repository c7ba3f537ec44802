"""What a snapshot is and holds, for people: as JSON values, which `openbook db inspect` prints or folds for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_database.manifest import Manifest
from openbook_database.query_encoder import QueryEncoder, require_encoder_of
from openbook_database.scoring import MISSING
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
        "bytes_by_file": _bytes_by_file(manifest),
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
            "trained_on": manifest.index.trained_on,
            "search": manifest.index.search,
            "recall": manifest.index.recall,
        },
        "sources": list(manifest.sources),
        "settings": manifest.recipe["settings"],
        "encoder_dtype": manifest.recipe["encoder"]["dtype"],
        "libraries": manifest.recipe["libraries"],
        "sample": describe_chunk(snapshot, manifest.chunks // 2 if chunk is None else chunk),
    }


def _bytes_by_file(manifest: Manifest) -> dict[str, int]:
    """Bytes of all files of one name (a shard's folder left out), or of one folder, the largest first."""
    sizes: dict[str, int] = {}
    for name, entry in manifest.files.items():
        folder, _, file = name.rpartition("/")
        kind = file if not folder or folder.startswith("shard-") else f"{folder}/"
        sizes[kind] = sizes.get(kind, 0) + entry.size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def describe_chunk(snapshot: Snapshot, chunk_id: int) -> dict[str, Any]:
    """A chunk with the text before and after it in its document (empty at the document's ends), as JSON values."""
    shard = snapshot.shard_of(chunk_id)
    ids = np.asarray([chunk_id])
    _, lengths_N2 = shard.tokens(ids)
    document = snapshot.documents.record(int(shard.document_numbers(ids)[0]))
    return {
        "id": chunk_id,
        "tokens": int(lengths_N2[0, 0]),
        "text": shard.text(ids)[0],
        "context": shard.text(ids - 1)[0] if chunk_id > document.first_row else "",
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


def neighbours_of_chunk(snapshot: Snapshot, chunk_id: int, k: int) -> list[dict[str, Any]]:
    """The k chunks whose vectors are nearest to a chunk's stored one, itself left out: `score` and the chunk."""
    if k < 1:
        raise ArgumentError(f"k: must be at least 1, given {k}", field="k")
    query_1D = snapshot.shard_of(chunk_id).vectors(np.asarray([chunk_id]))
    found = _search(snapshot, query_1D, min(k + 1, snapshot.manifest.chunks))
    return [neighbour for neighbour in found if neighbour["id"] != chunk_id][:k]


def neighbours_of_text(snapshot: Snapshot, text: str, k: int, encoder: QueryEncoder) -> list[dict[str, Any]]:
    """The k chunks nearest to `text` as a query. Raises MismatchError where `encoder` is not the snapshot's embedder."""
    if not text.strip():
        raise ArgumentError("text: is empty, there is nothing to search for", field="text")
    require_encoder_of(snapshot.manifest, encoder)
    return _search(snapshot, encoder.encode_queries([text]), k)


def _search(snapshot: Snapshot, query_1D: NDArray[np.float32], k: int) -> list[dict[str, Any]]:
    hits = snapshot.search(query_1D, k)
    return [
        {"score": float(score), **describe_chunk(snapshot, int(number))}
        for number, score in zip(hits.ids_QK[0], hits.scores_QK[0], strict=True)
        if number != MISSING
    ]
