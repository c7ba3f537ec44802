"""The neighbour cache on disk, and its reader.

    neighbours.json   header: what it was made from and how, shape, digest of each file
    documents.jsonl   of the corpus, in its order: external id, digest of the tokens, chunks
    ids.i64           chunk ids [chunks, k] of the snapshot, best first, -1 where there is none
    scores.f32        their scores [chunks, k], 0 where there is none

Axes: C chunks of the corpus, K neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, CorruptError, MismatchError, NotFoundError
from openbook_core.fingerprint import canonical_json
from openbook_database.files import BLOCK_BYTES, file_digests, map_array, write_bytes_atomically
from openbook_database.neighbours.corpus import Documents, documents_from_json

HEADER = "neighbours.json"
DOCUMENTS, IDS, SCORES = "documents.jsonl", "ids.i64", "scores.f32"
FORMAT, FORMAT_VERSION = "openbook-neighbours", 1


class NeighbourCache:
    """Neighbours of a corpus's chunks, mapped: `ids_CK` int64 and `scores_CK` float32, -1 and 0 where there is none."""

    def __init__(self, path: Path, header: Mapping[str, Any], documents: Documents) -> None:
        """Use `open`."""
        self.path, self.header, self.documents = path, header, documents
        self.k = int(header["settings"]["k"])
        shape = (int(header["chunks"]), self.k)
        self.ids_CK: NDArray[np.int64] = map_array(path / IDS, "i8", shape)
        self.scores_CK: NDArray[np.float32] = map_array(path / SCORES, "f4", shape)
        self._number = {external_id: number for number, external_id in enumerate(documents.ids)}

    @classmethod
    def open(cls, path: str | Path, *, corpus_digest: str | None = None, snapshot_id: str | None = None) -> Self:
        """The cache in the folder `path`; it must be of this corpus and this snapshot where they are given.

        Checksums of files up to 64 MiB are compared, of larger ones the sizes. Raises NotFoundError where there is no
        cache, CorruptError naming the file, and MismatchError naming what differs with both sides.
        """
        path = Path(path)
        try:
            header = json.loads((path / HEADER).read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"{path} holds no neighbour cache: there is no {HEADER}", field="cache") from None
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path / HEADER}: cannot be read: {error}") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise CorruptError(f"{path / HEADER}: is not the header of a neighbour cache")
        if header.get("format_version") != FORMAT_VERSION:
            raise CorruptError(
                f"{path / HEADER}: has format version {header.get('format_version')}, this program reads {FORMAT_VERSION}"
            )
        for what, ours in (("corpus_digest", corpus_digest), ("snapshot", snapshot_id)):
            theirs = header["settings"][what]
            if ours is not None and ours != theirs:
                name = "corpus" if what == "corpus_digest" else "snapshot"
                raise MismatchError(
                    f"{path}: the neighbours were found for {name} {theirs}, this is {name} {ours}; make the cache anew "
                    "(openbook db neighbours)",
                    field=what,
                )
        for name, digest in header["files"].items():
            file = path / name
            if file.is_file() and file.stat().st_size <= BLOCK_BYTES and (found := file_digests(file)[0]) != digest:
                raise CorruptError(f"{file}: checksum is {found}, the header says {digest}; make the cache anew")
        try:
            documents = documents_from_json((path / DOCUMENTS).read_bytes())
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path / DOCUMENTS}: cannot be read: {error}") from error
        return cls(path, header, documents)

    @property
    def corpus_digest(self) -> str:
        """Digest of the corpus whose chunks asked."""
        return str(self.header["settings"]["corpus_digest"])

    @property
    def snapshot_id(self) -> str:
        """The snapshot that the ids are of."""
        return str(self.header["settings"]["snapshot"])

    def first_chunk(self, external_id: str, digest: bytes) -> int:
        """Row of a document's first chunk; raises MismatchError where the cache has it not, or with other tokens."""
        number = self._number.get(external_id)
        if number is None:
            raise MismatchError(
                f"{self.path}: has no document {external_id!r}; make the cache anew", field="corpus_digest"
            )
        if self.documents.digests[number] != digest:
            raise MismatchError(
                f"{self.path}: document {external_id!r} has other tokens than when its neighbours were found; make the "
                "cache anew",
                field="corpus_digest",
            )
        return self.documents.firsts[number]

    def ids(self, chunks_N: NDArray[np.int64], k: int | None = None) -> NDArray[np.int64]:
        """Neighbour ids [n, k] of n chunks of the corpus, the first k of those that were found."""
        if k is not None and k > self.k:
            raise ArgumentError(f"{self.path} holds {self.k} neighbours of each chunk, asked for {k}", field="k")
        return np.asarray(self.ids_CK[chunks_N, :k])


def write_header(folder: Path, settings: Mapping[str, Any], documents: Documents) -> None:
    """Seal a folder that holds all other files."""
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": dict(settings),
        "chunks": documents.chunks,
        "documents": len(documents.ids),
        "files": {name: file_digests(folder / name)[0] for name in (DOCUMENTS, IDS, SCORES)},
    }
    write_bytes_atomically(folder / HEADER, (canonical_json(header) + "\n").encode())
