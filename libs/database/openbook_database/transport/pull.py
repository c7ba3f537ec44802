"""Pulling: a published snapshot into a folder, which appears whole, by one rename.

Work in progress lies in DIR.pulling/: finished files under their names, unfinished ones as `parts/`, as large as they
will be, whose blocks of 64 MiB are compared with the manifest's digests when a later run goes on.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Lock

import blake3

from openbook_core.errors import (
    ArgumentError,
    CorruptError,
    InputError,
    NotFoundError,
    PreconditionError,
    Reason,
)
from openbook_core.files import sync
from openbook_database import files
from openbook_database.build.progress import Progress
from openbook_database.files import block_digest, clear_write_errors, file_digests, write_bytes_atomically
from openbook_database.manifest import MANIFEST_NAME, FileEntry, Manifest
from openbook_database.shard import shard_folder
from openbook_database.snapshot import check_files
from openbook_database.transport.meter import Meter, Transfer
from openbook_database.transport.store import PIECE_BYTES, STAGING, Store
from openbook_database.work_folder import appear, locked

_SPARE_BYTES = 16 << 20
_BLOCK_TRIES = 2


def pull(
    url: str,
    folder: str | Path,
    *,
    shards: Sequence[int] | None = None,
    reuse: Sequence[str | Path] = (),
    expected_id: str | None = None,
    threads: int = 4,
    tries: int = 5,
    progress: Progress = lambda update: None,
) -> Transfer:
    """Copy the snapshot published at `url` into `folder`, or go on with a copy that was interrupted.

    shards: numbers of the shards whose files are wanted, beside what all shares; None for all. reuse: snapshots, or
    folders that hold some, whose files are linked instead of downloaded where they are the same. expected_id: the id,
    or its first 8 or more digits, that the published snapshot must have. Takes 8 MiB of memory for each of `threads`.
    Raises NotFoundError (no snapshot), PreconditionError (not published to its end yet), CorruptError naming the file
    that does not fit the manifest, ForbiddenError, UnavailableError (after `tries` tries), InputError (not enough
    disk, a folder that cannot be written or holds something else) and ConflictError (another pull into `folder`).
    None of them leaves anything at `folder`.
    """
    started, out, store = time.monotonic(), Path(folder).absolute(), Store(url, tries=tries)
    data = _published_manifest(store)
    with _locked(out) as work:
        manifest = _manifest(store, data, work / "snapshot", expected_id)
        folders = _folders(manifest, shards)
        wanted = {
            name: entry
            for name, entry in manifest.files.items()
            if not name.startswith("shard-") or name.split("/")[0] in folders
        }
        _require_fit(store, wanted)
        total = sum(entry.size for entry in wanted.values())
        if _is_there(out, manifest, folders):
            return Transfer(manifest.snapshot_id, len(wanted), total, 0, total, 0, time.monotonic() - started, True)
        job = _Pull(store, work, manifest, wanted)
        linked = job.link(reuse)
        kept = job.begin() - linked
        with clear_write_errors(out):
            _require_space(out, job.missing)
            meter = Meter("pull (bytes)", total, kept + linked, progress)
            job.download(meter, threads)
            check_files(work / "snapshot", manifest, "sizes", folders)
            appear(work / "snapshot", out)
        sent = total - kept - linked
        seconds = time.monotonic() - started
        return Transfer(manifest.snapshot_id, len(wanted), total, sent, kept, linked, seconds, False)


class _Pull:
    """The files that are wanted: those that are there, linked ones, and blocks of the others."""

    def __init__(self, store: Store, work: Path, manifest: Manifest, wanted: Mapping[str, FileEntry]) -> None:
        self._store, self._snapshot, self._parts = store, work / "snapshot", work / "parts"
        self._id, self._wanted = manifest.snapshot_id, wanted
        self._blocks: dict[str, set[int]] = {}
        self._lock = Lock()

    @property
    def missing(self) -> int:
        """Bytes that the disk must still have room for: unfinished files are as large as they will be, but hollow."""
        return sum(_extent(self._wanted[name], block)[1] for name, blocks in self._blocks.items() for block in blocks)

    def link(self, reuse: Sequence[str | Path]) -> int:
        """Link files of other snapshots that have the digest that is wanted, and still have it; their bytes."""
        known = _files_by_digest(reuse)
        linked = 0
        for name, entry in self._wanted.items():
            target, found = self._snapshot / name, known.get((entry.blake3, entry.size))
            if found is None or target.exists() or file_digests(found)[0] != entry.blake3:
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(found, target)
            except OSError:
                continue  # another file system, or one without links: it is downloaded
            linked += entry.size
        return linked

    def begin(self) -> int:
        """Find out which blocks are missing; the bytes that an earlier run left."""
        kept = 0
        for name, entry in self._wanted.items():
            target, part = self._snapshot / name, self._part(name)
            if target.exists() and target.stat().st_size == entry.size:
                kept += entry.size
                continue
            begun = part.exists()
            with clear_write_errors(part):
                part.parent.mkdir(parents=True, exist_ok=True)
                with part.open("ab") as stream:
                    os.truncate(stream.fileno(), entry.size)
            self._blocks[name] = set()
            for block, digest in enumerate(_digests(entry)):
                if begun and block_digest(part, block) == digest:
                    kept += _extent(entry, block)[1]
                else:
                    self._blocks[name].add(block)
            if not self._blocks[name]:
                self._finish(name)
        return kept

    def download(self, meter: Meter, threads: int) -> None:
        """Get the missing blocks; a file gets its name when it has all."""
        jobs = [(name, block) for name, blocks in self._blocks.items() for block in sorted(blocks)]
        jobs.sort(key=lambda job: -self._wanted[job[0]].size)

        def get(job: tuple[str, int]) -> None:
            name, block = job
            self._get_block(name, block, meter)
            with self._lock:
                self._blocks[name].remove(block)
                if not self._blocks[name]:
                    self._finish(name)

        meter.each(get, jobs, threads)

    def _get_block(self, name: str, block: int, meter: Meter) -> None:
        entry = self._wanted[name]
        start, size = _extent(entry, block)
        expected = _digests(entry)[block]
        found = ""
        for left in reversed(range(_BLOCK_TRIES)):
            digest = blake3.blake3()
            with self._part(name).open("r+b", buffering=0) as stream:
                stream.seek(start)
                for first in range(start, start + size, PIECE_BYTES):
                    piece = self._store.read_range(name, first, min(first + PIECE_BYTES, start + size))
                    digest.update(piece)
                    stream.write(piece)
                    meter.advance(len(piece))
            found = digest.hexdigest()
            if found == expected:
                return
            if left:
                meter.advance(-size)
        raise CorruptError(
            f"{self._store.url}/{name}: checksum of its {size} bytes from {start} is {found}, the manifest says {expected}; "
            "the published file is damaged: remove it there and publish the snapshot again"
        )

    def _finish(self, name: str) -> None:
        target = self._snapshot / name
        sync(self._part(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._part(name), target)
        sync(target.parent)

    def _part(self, name: str) -> Path:
        return self._parts / name.replace("/", "@")


def _published_manifest(store: Store) -> bytes:
    try:
        return store.read(MANIFEST_NAME)
    except NotFoundError as error:
        if any(name.startswith(f"{STAGING}/") for name in store.sizes()):
            raise PreconditionError(
                f"{store.url}: a snapshot is being published there and is not finished; wait for its end, or run the "
                "publish again if it was interrupted",
                field="url",
                reason=Reason.NOT_READY,
            ) from error
        raise NotFoundError(f"{store.url} holds no published snapshot: {error.message}", field="url") from error


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """DIR.pulling/, held; it is gone when the snapshot has appeared."""
    work = out.with_name(out.name + ".pulling")
    with locked(work, out, "pull"):
        yield work
        shutil.rmtree(work, ignore_errors=True)


def _manifest(store: Store, data: bytes, snapshot: Path, expected_id: str | None) -> Manifest:
    """The published manifest, written to where the snapshot grows; what was left of another snapshot goes."""
    if (snapshot / MANIFEST_NAME).exists() and (snapshot / MANIFEST_NAME).read_bytes() != data:
        shutil.rmtree(snapshot)
        shutil.rmtree(snapshot.with_name("parts"), ignore_errors=True)
    write_bytes_atomically(snapshot / MANIFEST_NAME, data)
    try:
        manifest = Manifest.read(snapshot)
    except CorruptError as error:
        shutil.rmtree(snapshot.parent, ignore_errors=True)
        raise CorruptError(f"{store.url}: {error.message.removeprefix(str(snapshot) + '/')}") from error
    if expected_id is not None and (len(expected_id) < 8 or not manifest.snapshot_id.startswith(expected_id)):
        raise ArgumentError(
            f"{store.url} holds snapshot {manifest.snapshot_id}, expected {expected_id!r} (the id, or its first 8 or more "
            "digits)",
            field="snapshot",
        )
    for name, entry in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "@" in name or str(path) != name or name == MANIFEST_NAME:
            raise CorruptError(f"{store.url}: the manifest names a file {name!r}, which no snapshot has")
        if len(_digests(entry)) != max(1, -(-entry.size // files.BLOCK_BYTES)):
            raise CorruptError(
                f"{store.url}: the manifest has {len(entry.blocks)} blocks of {name}, which is {entry.size} bytes"
            )
    return manifest


def _folders(manifest: Manifest, shards: Sequence[int] | None) -> set[str]:
    numbers = range(len(manifest.shards)) if shards is None else shards
    for number in numbers:
        if not 0 <= number < len(manifest.shards):
            raise ArgumentError(
                f"shard {number}: snapshot {manifest.snapshot_id[:12]} has shards 0 to {len(manifest.shards) - 1}",
                field="shard",
            )
    return {shard_folder(number) for number in numbers}


def _require_fit(store: Store, wanted: Mapping[str, FileEntry]) -> None:
    there = store.sizes()
    for name, entry in wanted.items():
        if there.get(name) != entry.size:
            raise CorruptError(
                f"{store.url}: the published manifest does not fit the files: {name} has {there.get(name, 'no')} bytes, the "
                f"manifest says {entry.size}; publish the snapshot again"
            )


def _is_there(out: Path, manifest: Manifest, folders: set[str]) -> bool:
    """Whether `out` is the snapshot already. Raises InputError where it is something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out} exists and is no snapshot: choose another folder", field="out")
    found = Manifest.read(out).snapshot_id
    if found != manifest.snapshot_id:
        raise InputError(f"{out} holds snapshot {found[:12]}: choose another folder, and --reuse this one", field="out")
    try:
        check_files(out, manifest, "sizes", folders)
    except CorruptError as error:
        raise InputError(
            f"{out} holds a part of this snapshot only ({error.message}): choose another folder, and --reuse this one",
            field="out",
        ) from error
    return True


def _files_by_digest(reuse: Sequence[str | Path]) -> dict[tuple[str, int], Path]:
    """Files of the snapshots in these folders, or one level below them. Raises NotFoundError where there is none."""
    found: dict[tuple[str, int], Path] = {}
    for given in map(Path, reuse):
        manifests = [*given.glob(MANIFEST_NAME), *sorted(given.glob(f"*/{MANIFEST_NAME}"))]
        if not manifests:
            raise NotFoundError(f"--reuse {given}: no snapshot is there, nor in a folder below it", field="reuse")
        for path in manifests:
            for name, entry in Manifest.read(path.parent).files.items():
                file = path.parent / name
                if file.is_file() and file.stat().st_size == entry.size:
                    found.setdefault((entry.blake3, entry.size), file)
    return found


def _require_space(out: Path, missing: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if missing + _SPARE_BYTES > free:
        raise InputError(
            f"{out.parent}: {missing} bytes are still to come and {free} are free: free some space, or choose another folder",
            field="out",
        )


def _digests(entry: FileEntry) -> tuple[str, ...]:
    """Digest of each block; a file of one block has its own."""
    return entry.blocks or (entry.blake3,)


def _extent(entry: FileEntry, block: int) -> tuple[int, int]:
    """First byte and size of a block."""
    start = block * files.BLOCK_BYTES
    return start, min(files.BLOCK_BYTES, entry.size - start)
