"""A snapshot as a reader sees it: verified, mapped, immutable."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, CorruptError, MismatchError, OpenbookError, Reason
from openbook_core.fingerprint import require_equal
from openbook_core.tokenizer import Tokenizer
from openbook_database.allowed import Allowed
from openbook_database.documents import DocumentTable
from openbook_database.exclusions import Exclusions
from openbook_database.files import BLOCK_BYTES, block_digest, file_digests
from openbook_database.filters import Filters
from openbook_database.index.gpu import Gpu
from openbook_database.manifest import FileEntry, Manifest
from openbook_database.scoring import Hits, merge
from openbook_database.search import MinScore
from openbook_database.shard import Shard, shard_folder

Verification = Literal["sizes", "sample", "full"]
_ID_DIGITS = 8


class Snapshot:
    """An opened snapshot with some or all of its shards. It stays readable while its folder is renamed or unlinked."""

    def __init__(
        self, path: Path, manifest: Manifest, documents: DocumentTable, tokenizer: Tokenizer, shards: tuple[Shard, ...]
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.documents = documents
        self.filters = Filters(documents)
        self.tokenizer = tokenizer
        self.shards = shards

    @classmethod
    def open(
        cls,
        path: str | Path,
        verify: Verification = "sample",
        *,
        shards: Sequence[int] | None = None,
        expected_id: str | None = None,
        known_tokenizer: Tokenizer | None = None,
    ) -> Self:
        """Open the snapshot in the folder `path`, or only some of its `shards`.

        known_tokenizer: is used where it is the snapshot's own by its fingerprint; reading one takes time and memory.

        verify: "sizes" compares sizes alone; "sample" also the checksums of files up to 64 MiB and of the first, middle
        and last block of larger ones; "full" every byte. expected_id: the id that the folder must have, or the first
        8 or more digits of it.
        Raises NotFoundError where there is no snapshot and CorruptError naming the file and what differs.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        if expected_id is not None and len(expected_id) < _ID_DIGITS:
            raise ArgumentError(
                f"snapshot {expected_id!r}: give the id, or at least its first {_ID_DIGITS} digits", field="snapshot"
            )
        if expected_id is not None and not manifest.snapshot_id.startswith(expected_id):
            raise CorruptError(
                f"{path / 'manifest.json'}: its digest is {manifest.snapshot_id}, expected snapshot {expected_id}"
            )
        numbers = range(len(manifest.shards)) if shards is None else shards
        for number in numbers:
            if not 0 <= number < len(manifest.shards):
                raise ArgumentError(
                    f"shard {number}: snapshot {manifest.snapshot_id[:12]} has shards 0 to {len(manifest.shards) - 1}",
                    field="shard",
                )
        check_files(path, manifest, verify, {shard_folder(number) for number in numbers})
        tokenizer = known_tokenizer
        if tokenizer is None or tokenizer.fingerprint != manifest.contract.tokenizer:
            tokenizer = _read_tokenizer(path / "tokenizer", manifest)
        documents = DocumentTable(path / "documents.arrow", documents=manifest.documents)
        opened = tuple(Shard(path, manifest, number, documents, tokenizer) for number in numbers)
        return cls(path, manifest, documents, tokenizer, opened)

    @property
    def id(self) -> str:
        """Digest of the manifest: the snapshot's name."""
        return self.manifest.snapshot_id

    def search(
        self,
        queries_QD: NDArray[np.float32],
        k: int,
        exclude: Exclusions | Sequence[Collection[int]] | None = None,
        min_score: MinScore = None,
        allowed: Allowed | Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> Hits:
        """As `Shard.search`, over all opened shards."""
        return merge([shard.search(queries_QD, k, exclude, min_score, allowed) for shard in self.shards], k)

    def move_to(self, gpu: Gpu) -> None:
        """`Shard.move_to` for every opened shard.

        Raises ConfigError for an index that no GPU can hold and OpenbookError with the numbers (OUT_OF_MEMORY), both before
        anything is copied; OpenbookError where the golden queries are answered otherwise than before.
        """
        gpu.require(sum(shard.gpu_bytes for shard in self.shards), f"snapshot {self.id[:12]}")
        for shard in self.shards:
            shard.move_to(gpu)
        try:
            self.check_golden()
        except CorruptError as error:
            raise OpenbookError(f"{gpu} does not compute what it should: {error}", reason=Reason.INTERNAL) from error

    def shard_of(self, chunk_id: int) -> Shard:
        """The opened shard that holds a chunk; raises ArgumentError where there is none."""
        for shard in self.shards:
            if shard.entry.first_row <= chunk_id < shard.entry.end_row:
                return shard
        raise ArgumentError(
            f"chunk id {chunk_id} is in no opened shard of snapshot {self.id[:12]} with {self.manifest.chunks} chunks",
            field="ids",
        )

    def check_golden(self) -> None:
        """Have every opened shard answer the golden queries; raises CorruptError where an answer differs."""
        for shard in self.shards:
            shard.check_golden()


def _read_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    try:
        require_equal("tokenizer", tokenizer.fingerprint, manifest.contract.tokenizer, "folder tokenizer", "manifest")
    except MismatchError as error:
        raise CorruptError(f"{folder}: {error}", reason=Reason.CORRUPT) from error
    return tokenizer


def check_files(path: Path, manifest: Manifest, verify: Verification, folders: Collection[str]) -> None:
    """Compare files with the manifest: those of the snapshot itself and those of the shards in `folders`."""
    if verify not in ("sizes", "sample", "full"):
        raise ArgumentError(f"verify: {verify!r} is not known; known: sizes, sample, full", field="verify")
    wanted = {
        name: entry
        for name, entry in manifest.files.items()
        if not name.startswith("shard-") or name.split("/")[0] in folders
    }
    for name, entry in wanted.items():
        file = path / name
        try:
            size = file.stat().st_size
        except OSError as error:
            raise CorruptError(f"{file}: is missing or cannot be read ({error.strerror})") from error
        if size != entry.size:
            raise CorruptError(f"{file}: {size} bytes, the manifest says {entry.size}")
    if verify != "sizes":
        for name, entry in wanted.items():
            check_digest(path / name, entry, whole=verify == "full")


def check_digest(file: Path, entry: FileEntry, *, whole: bool) -> None:
    """Compare a file's bytes with its checksum, or the first, middle and last block of a large one."""
    try:
        if whole or not entry.blocks:
            found, _ = file_digests(file)
            if found != entry.blake3:
                raise CorruptError(
                    f"{file}: checksum is {found}, the manifest says {entry.blake3}; the snapshot is damaged: "
                    "copy it again or build it anew"
                )
            return
        for block in sorted({0, len(entry.blocks) // 2, len(entry.blocks) - 1}):
            found = block_digest(file, block)
            if found != entry.blocks[block]:
                raise CorruptError(
                    f"{file}: checksum of its bytes from {block * BLOCK_BYTES} is {found}, the manifest says "
                    f"{entry.blocks[block]}"
                )
    except OSError as error:
        raise CorruptError(f"{file}: cannot be read: {error}") from error
