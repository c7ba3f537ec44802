"""The snapshot that an incremental build begins from: what has not changed is taken from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import InputError
from openbook_database.build.workspace import Workspace
from openbook_database.documents import DocumentTable
from openbook_database.index.files import LIST_SIZES, LISTS, PLACES, QUANTISER, open_index
from openbook_database.index.lists import map_places
from openbook_database.index.quantiser import Quantiser
from openbook_database.index.recipe import parse_recipe
from openbook_database.manifest import Manifest
from openbook_database.shard import shard_folder
from openbook_database.snapshot import check_digest, check_files
from openbook_database.work_folder import require_same

# Of these two snapshots must agree for rows of one to be rows of the other.
_SETTINGS = ("chunk_length", "passage_template", "index", "shards", "keep_vectors")
_ENCODER = ("fingerprint", "dimension", "max_tokens", "dtype")
_STAGES = ("chunk", "embed", "train-index", "add")
# Of a vector with itself after rounding to float16: 1 - 4e-8.
_SAME_COSINE = 1 - 1e-5


class Base:
    """Documents, token rows and vectors of a finished snapshot, mapped."""

    def __init__(self, path: str | Path) -> None:
        """Raises NotFoundError where there is no snapshot, CorruptError naming a file that is missing or damaged.

        Sizes are checked here; checksums of a shard's files by `check_shard`, before rows are taken from them.
        """
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        check_files(self.path, self.manifest, "sizes", {shard_folder(n) for n in range(len(self.manifest.shards))})
        check_files(self.path, self.manifest, "full", ())
        self.documents = DocumentTable(self.path / "documents.arrow", documents=self.manifest.documents)
        self._first_documents = np.asarray([shard.first_document for shard in self.manifest.shards])
        self._first_rows = np.asarray([shard.first_row for shard in self.manifest.shards])
        self.index = parse_recipe(self.manifest.index.factory)
        """Its recipe, which every snapshot that begins from it has too."""
        if not self.index.trained or (self.index.codec == "Flat" and not self.index.opq):
            self.vector_file: str | None = LISTS
        elif "shard-00000/vectors.f16" in self.manifest.files:
            self.vector_file = "vectors.f16"
        else:
            self.vector_file = None
        self._shard = lru_cache(maxsize=None)(self._open_shard)

    @property
    def id(self) -> str:
        return self.manifest.snapshot_id

    @property
    def record(self) -> dict[str, Any]:
        """What the recipe of a build says of it: the id, and how many chunks there were when its quantiser was trained."""
        trained = {"trained_chunks": self.manifest.recipe.get("trained_chunks", self.manifest.chunks)}
        return {"base": self.id, **(trained if self.index.trained else {})}

    @property
    def has_vectors(self) -> bool:
        """Whether vectors of its chunks can be had: float32 where the index holds them, else those kept as float16."""
        return self.vector_file is not None

    def require_same(self, recipe: Mapping[str, Any]) -> None:
        """Raise ConfigError that lists each difference, unless a build by `recipe` makes rows like those here."""
        require_same(
            _contract(self.manifest.recipe),
            _contract(recipe),
            f"{self.path} cannot be the base, it was built otherwise",
            "give what it was built with, or build without a base",
        )

    def find(self, external_id: str, content: bytes) -> int:
        """Number of the document that has this id and this content, -1 where there is none."""
        number = self.documents.number(external_id)
        return number if number is not None and self.documents.contents[number].tobytes() == content else -1

    def size(self, document: int) -> tuple[int, int]:
        """Rows and tokens of a document."""
        rows = int(self.documents.rows[document])
        _, lengths_N = self.tokens(document, rows - 1, rows)
        return rows, (rows - 1) * self.manifest.contract.chunk_length + int(lengths_N[0])

    def tokens(self, document: int, first: int, end: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint16]]:
        """Token rows [n, m] and tokens used [n] of a run of a document's chunks."""
        shard = int(np.searchsorted(self._first_documents, document, side="right")) - 1
        start = int(self.documents.first_rows[document] - self._first_rows[shard])
        tokens_NM, lengths_N, _ = self._shard(shard)
        return tokens_NM[start + first : start + end], lengths_N[start + first : start + end]

    def vectors(self, first: int, end: int) -> NDArray[np.float32]:
        """Vectors [end - first, d] of the chunks [first, end), where it has them."""
        assert self.has_vectors
        shard = int(np.searchsorted(self._first_rows, first, side="right")) - 1
        parts = []
        while first < end:
            entry = self.manifest.shards[shard]
            stop = min(end, entry.end_row)
            parts.append(self._shard(shard)[2](first - entry.first_row, stop - entry.first_row))
            first, shard = stop, shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def quantiser_keeps(self, documents: NDArray[np.int64]) -> bool:
        """Whether a centroid is the vector of a chunk of `documents`, as it is where training gave it a list of its own.

        Without the vectors: whether a list holds nothing but chunks of these documents.
        """
        m = self.manifest
        quantiser = Quantiser(self.path / QUANTISER, dimension=m.contract.dimension)
        gone_L = np.zeros(quantiser.nlist, dtype=np.int64)
        sizes_L = np.fromfile(self.path / LIST_SIZES, dtype="<i8")
        for document in documents.tolist():
            first, rows = int(self.documents.first_rows[document]), int(self.documents.rows[document])
            shard = int(np.searchsorted(self._first_rows, first, side="right")) - 1
            start = first - m.shards[shard].first_row
            places_N2 = map_places(self.path / shard_folder(shard) / PLACES, m.shards[shard].rows)
            lists_N = places_N2[start : start + rows, 0].astype(np.int64)
            np.add.at(gone_L, lists_N, 1)
            if self.has_vectors:
                rotated_NE = quantiser.rotate(self.vectors(first, first + rows)).astype(np.float64)
                centroids_NE = quantiser.centroids_LE[lists_N].astype(np.float64)
                norms_N = np.linalg.norm(rotated_NE, axis=1) * np.linalg.norm(centroids_NE, axis=1)
                if ((rotated_NE * centroids_NE).sum(axis=1) >= _SAME_COSINE * norms_N).any():
                    return True
        return not self.has_vectors and bool(((gone_L == sizes_L) & (gone_L > 0)).any())

    def check_shard(self, number: int) -> None:
        """Compare the files that rows are taken from with their checksums; raises CorruptError naming the file."""
        used = ["tokens.bin", "lengths.bin", *([self.vector_file] if self.vector_file else [])]
        for name in [*used, *([PLACES] if self.vector_file == LISTS and self.index.trained else [])]:
            name = f"{shard_folder(number)}/{name}"
            check_digest(self.path / name, self.manifest.files[name], whole=True)

    def _open_shard(
        self, number: int
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint16], Callable[[int, int], NDArray[np.float32]]]:
        """Tokens, lengths, and vectors of a range; read in order, so without the advice that `map_array` gives."""
        folder, entry = self.path / shard_folder(number), self.manifest.shards[number]
        rows = entry.rows
        m, dimension = self.manifest.contract.chunk_length, self.manifest.contract.dimension
        dtype = np.dtype(self.manifest.token_dtype).newbyteorder("<")
        tokens_NM = np.memmap(folder / "tokens.bin", dtype, "r", shape=(rows, m))
        lengths_N = np.memmap(folder / "lengths.bin", "<u2", "r", shape=(rows,))
        if self.vector_file == "vectors.f16":
            kept_ND = np.memmap(folder / "vectors.f16", "<f2", "r", shape=(rows, dimension))
            return tokens_NM, lengths_N, lambda first, end: kept_ND[first:end].astype("<f4")
        index = open_index(
            self.index,
            self.path,
            folder,
            rows=rows,
            dimension=dimension,
            max_norm=entry.max_norm,
            reach=entry.reach,
            search={},
        )
        return tokens_NM, lengths_N, lambda first, end: index.vectors(np.arange(first, end))


def open_base(work: Workspace) -> Base | None:
    """The base of a build, if it has one; raises InputError where it would be written over."""
    if work.base is None:
        return None
    if work.base.resolve() == work.out.resolve():
        raise InputError(f"{work.out} is the base itself, which never changes: choose another folder", field="base")
    return Base(work.base)


def _contract(recipe: Mapping[str, Any]) -> dict[str, Any]:
    settings, encoder, stages = recipe["settings"], recipe["encoder"], recipe["stages"]
    return {
        "database": recipe["database"],
        "tokenizer": recipe["tokenizer"],
        "encoder": {name: encoder.get(name) for name in _ENCODER},
        "settings": {name: settings.get(name) for name in _SETTINGS},
        "stages": {name: stages.get(name) for name in _STAGES},
    }
