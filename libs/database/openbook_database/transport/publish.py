"""Publishing: a snapshot's files to a URL, the manifest last, so that what has no manifest is no snapshot.

While it goes on, URL/.publishing/SNAPSHOT-ID/ says whose files these are, with a mark for each file whose upload was
acknowledged after its bytes had the manifest's digest. A later run skips files that have the mark and the right size;
that nobody put other bytes of that size in their place since then is trusted, and checked by every pull.
"""

from __future__ import annotations

import time
from pathlib import Path

from openbook_core.errors import ConflictError, CorruptError, InputError, NotFoundError
from openbook_database.build.progress import Progress
from openbook_database.manifest import MANIFEST_NAME, Manifest
from openbook_database.shard import shard_folder
from openbook_database.snapshot import check_files
from openbook_database.transport.meter import Meter, Transfer
from openbook_database.transport.store import PART_BYTES, STAGING, Store


def publish(
    snapshot: str | Path,
    url: str,
    *,
    threads: int = 4,
    part_bytes: int = PART_BYTES,
    tries: int = 5,
    progress: Progress = lambda update: None,
) -> Transfer:
    """Copy the snapshot in the folder `snapshot` to `url`, or go on with a copy that was interrupted.

    Takes up to threads * part_bytes * 2 bytes of memory. Several runs may publish the same snapshot at once. Raises
    NotFoundError (no snapshot, no such bucket), CorruptError (a file that differs from the manifest is never
    published), ForbiddenError, UnavailableError (after `tries` tries), ConflictError (another snapshot is at `url` or
    being published there) and InputError (other files at `url`, a folder that cannot be written).
    """
    folder, started = Path(snapshot), time.monotonic()
    manifest = Manifest.read(folder)
    check_files(folder, manifest, "sizes", {shard_folder(number) for number in range(len(manifest.shards))})
    total = sum(entry.size for entry in manifest.files.values())
    store = Store(url, tries=tries)

    def done(sent: int, *, reused: bool = False) -> Transfer:
        seconds = time.monotonic() - started
        return Transfer(manifest.snapshot_id, len(manifest.files), total, sent, total - sent, 0, seconds, reused)

    there = store.sizes()
    finished = _finished(store, there, manifest)
    marks = {name for name in there if name.startswith(f"{STAGING}/{manifest.snapshot_id}/")}
    _require_ours(store, there, manifest)
    todo = [
        name
        for name, entry in manifest.files.items()
        if there.get(name) != entry.size or not (finished or _mark(manifest, name) in marks)
    ]
    if finished and not todo:
        if any(name.startswith(f"{STAGING}/") for name in there):
            store.remove_staging()
        return done(0, reused=True)
    todo.sort(key=lambda name: -manifest.files[name].size)
    sent = sum(manifest.files[name].size for name in todo)
    meter = Meter("publish (bytes)", total, total - sent, progress)

    def upload(name: str) -> None:
        store.upload(name, folder / name, manifest.files[name], meter.advance, part_bytes)
        store.write(_mark(manifest, name), b"")

    try:
        store.write(_mark(manifest, MANIFEST_NAME), b"")
        meter.each(upload, todo, threads)
        _require_whole(store, manifest)
        store.write(MANIFEST_NAME, manifest.to_bytes())
    except (NotFoundError, InputError):
        # The other one of two runs was first, and removed the folder that this one writes beside.
        if not _finished(store, store.sizes(), manifest):
            raise
    store.remove_staging()
    return done(sent)


def _mark(manifest: Manifest, name: str) -> str:
    return f"{STAGING}/{manifest.snapshot_id}/{name}.done"


def _finished(store: Store, there: dict[str, int], manifest: Manifest) -> bool:
    """Whether the snapshot's manifest is published; raises ConflictError where that of another one is."""
    if MANIFEST_NAME not in there:
        return False
    if store.read(MANIFEST_NAME) != manifest.to_bytes():
        raise ConflictError(
            f"{store.url} holds another snapshot than {manifest.snapshot_id[:12]}, and a published one is never "
            "changed: choose another URL",
            field="url",
        )
    return True


def _require_ours(store: Store, there: dict[str, int], manifest: Manifest) -> None:
    begun = {name.split("/")[1] for name in there if name.startswith(f"{STAGING}/") and name.count("/") > 1}
    if others := sorted(begun - {manifest.snapshot_id}):
        raise ConflictError(
            f"{store.url}: snapshot {others[0][:12]} is being published there, or was not finished: choose another URL, or "
            "remove what is there",
            field="url",
        )
    known = {*manifest.files, MANIFEST_NAME}
    strange = sorted(name for name in there if name not in known and not name.startswith(f"{STAGING}/"))
    if strange:
        raise InputError(
            f"{store.url} holds {', '.join(strange[:3])}, which this snapshot does not: choose an empty place",
            field="url",
        )


def _require_whole(store: Store, manifest: Manifest) -> None:
    """Look once more before the manifest makes it a snapshot: another run may have written here meanwhile."""
    there = store.sizes()
    _require_ours(store, there, manifest)
    for name, entry in manifest.files.items():
        if there.get(name) != entry.size:
            raise CorruptError(
                f"{store.url}/{name}: {there.get(name, 'no')} bytes after the upload, the manifest says {entry.size}; the "
                "manifest was not published. Run the same command again"
            )
