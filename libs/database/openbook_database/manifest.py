"""The manifest: everything that identifies a snapshot, as canonical JSON. Its digest is the snapshot's id.

It holds no clock, path, host name or latency, so equal builds give equal ids.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blake3
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import CorruptError, MismatchError, NotFoundError
from openbook_core.fingerprint import canonical_json
from openbook_core.probes import cosines
from openbook_database.contract import Contract

FORMAT = "openbook-snapshot"
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """Size and BLAKE3 of one file; `blocks` holds the digest of each 64 MiB block of a larger file."""

    size: int
    blake3: str
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardEntry:
    """A contiguous range of whole documents. `first_id` and `last_id` are external ids (the split keys).

    `max_norm`: of the vectors; `reach`: of what their codes add to a list's centroid (0 where there are no lists).
    """

    first_row: int
    rows: int
    first_document: int
    documents: int
    first_id: str
    last_id: str
    max_norm: float
    reach: float = 0.0

    @property
    def end_row(self) -> int:
        return self.first_row + self.rows

    @property
    def end_document(self) -> int:
        return self.first_document + self.documents


@dataclass(frozen=True)
class IndexEntry:
    """The index recipe, and how good it is.

    `factory`: what was built, also where it was chosen automatically. `exact`: search finds the nearest by definition.
    An exact or IVF index answers the same for any number of shards, HNSW does not. `trained_on`: vectors the index was
    trained on. `search`: default search settings (nprobe or efSearch). `recall`: recall@k against exact search by that
    setting, with the mean number of rows compared and the sample; 1.0 by definition for an exact index.
    """

    factory: str
    exact: bool
    trained_on: int
    search: dict[str, Any]
    recall: dict[str, Any]


@dataclass(frozen=True)
class GoldenQueries:
    """Queries [n, d] float32 with the expected ids [n, k] int64 and scores [n, k] float32 (-1 and 0 where missing)."""

    queries_ND: NDArray[np.float32]
    ids_NK: NDArray[np.int64]
    scores_NK: NDArray[np.float32]


@dataclass(frozen=True)
class Probes:
    """Texts and their vectors [n, d] float32; another embedder is attached if it agrees with cosine >= `min_cosine`."""

    texts: tuple[str, ...]
    vectors_ND: NDArray[np.float32]
    min_cosine: float = 0.999

    def require(self, found_ND: NDArray[np.float32], encoder: str, of: str) -> None:
        """Raise MismatchError where `encoder` (its name in words) gave other vectors for the texts than those of `of`."""
        cosines_N = cosines(found_ND, self.vectors_ND)
        worst = int(np.argmin(cosines_N))
        if not cosines_N[worst] >= self.min_cosine:
            raise MismatchError(
                f"{encoder} has the fingerprint of {of} but other vectors: probe text {worst} "
                f"({self.texts[worst][:40]!r}) has cosine {cosines_N[worst]:.6f} with the stored vector, at least "
                f"{self.min_cosine} is needed",
                field="probe_vectors",
            )


@dataclass(frozen=True)
class Manifest:
    """A snapshot's description; `snapshot_id` is the BLAKE3 of `to_bytes()`."""

    database: str
    contract: Contract
    token_dtype: str
    documents: int
    chunks: int
    tokens: int
    metadata_columns: tuple[str, ...]
    sources: tuple[dict[str, Any], ...]
    cleaning: dict[str, Any]
    recipe: dict[str, Any]
    index: IndexEntry
    shards: tuple[ShardEntry, ...]
    files: dict[str, FileEntry]
    golden: GoldenQueries
    probes: Probes

    @cached_property
    def snapshot_id(self) -> str:
        return blake3.blake3(self.to_bytes()).hexdigest()

    def mapped_files(self, shards: Collection[int] | None = None) -> dict[str, FileEntry]:
        """The files that a process maps which serves these `shards` (None: all), by name."""
        numbers = range(len(self.shards)) if shards is None else shards
        folders = {f"shard-{number:05d}" for number in numbers}
        return {
            name: entry
            for name, entry in self.files.items()
            if name.partition("/")[0] in folders | {"documents.arrow", "quantiser.faiss", "list_sizes.bin"}
            and not name.endswith("/vectors.f16")
        }

    def to_bytes(self) -> bytes:
        """The canonical JSON that is stored and digested."""
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "database": self.database,
            "contract": self.contract.to_record(),
            "token_dtype": self.token_dtype,
            "documents": self.documents,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "metadata_columns": list(self.metadata_columns),
            "sources": list(self.sources),
            "cleaning": self.cleaning,
            "recipe": self.recipe,
            "index": asdict(self.index),
            "shards": [asdict(shard) for shard in self.shards],
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "golden": {
                "queries": _pack(self.golden.queries_ND),
                "ids": self.golden.ids_NK.tolist(),
                "scores": _pack(self.golden.scores_NK),
            },
            "probes": {
                "texts": list(self.probes.texts),
                "vectors": _pack(self.probes.vectors_ND),
                "min_cosine": self.probes.min_cosine,
            },
        }
        return (canonical_json(record) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the snapshot in `folder`.

        Raises NotFoundError where there is no snapshot, and CorruptError for a file that is no manifest, that was
        changed, or that is from a newer version.
        """
        path = folder / MANIFEST_NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise NotFoundError(
                f"{folder} holds no snapshot: {MANIFEST_NAME} cannot be read ({error.strerror})"
            ) from error
        try:
            record = json.loads(data)
        except ValueError as error:
            raise CorruptError(f"{path}: is not JSON: {error}") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise CorruptError(f"{path}: is not the manifest of a snapshot")
        version = record.get("format_version")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            raise CorruptError(
                f"{path}: has format version {version}, this program reads version {FORMAT_VERSION}: "
                + ("use a newer Openbook" if newer else "build it anew")
            )
        try:
            manifest = cls._from_record(record, str(path))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{path}: cannot be read: {error!r}") from error
        if manifest.to_bytes() != data:
            raise CorruptError(f"{path}: is not in canonical form: it was changed after it was written")
        return manifest

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], source: str) -> Manifest:
        contract = Contract.from_record(record["contract"], source)
        golden, probes = record["golden"], record["probes"]
        queries_ND = _unpack(golden["queries"], contract.dimension)
        ids_NK = np.asarray(golden["ids"], dtype=np.int64).reshape(len(queries_ND), -1)
        return cls(
            database=record["database"],
            contract=contract,
            token_dtype=record["token_dtype"],
            documents=record["documents"],
            chunks=record["chunks"],
            tokens=record["tokens"],
            metadata_columns=tuple(record["metadata_columns"]),
            sources=tuple(record["sources"]),
            cleaning=record["cleaning"],
            recipe=record["recipe"],
            index=IndexEntry(**record["index"]),
            shards=tuple(ShardEntry(**shard) for shard in record["shards"]),
            files={
                name: FileEntry(entry["size"], entry["blake3"], tuple(entry["blocks"]))
                for name, entry in record["files"].items()
            },
            golden=GoldenQueries(queries_ND, ids_NK, _unpack(golden["scores"], ids_NK.shape[1])),
            probes=Probes(tuple(probes["texts"]), _unpack(probes["vectors"], contract.dimension), probes["min_cosine"]),
        )


def totals(sources: Sequence[Mapping[str, Any]], counter: str) -> dict[str, int]:
    """A counter of the sources' records ("skipped", "removed") added up over all of them."""
    found: Counter[str] = Counter()
    for source in sources:
        found.update(source[counter])
    return dict(found)


def _pack(array: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode()


def _unpack(text: str, columns: int) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").reshape(-1, columns)
