"""Which snapshot folders and work folders nobody needs: no registry names them, no build or pull works in them.

A folder goes in two steps, so that a registration meanwhile loses nothing: it is renamed, which ends every later
attempt to register it; the registries are asked again; then it is deleted, or gets its name back if one knows it now.
What is left open: somebody who had read the manifest before the renaming and writes the registration after the second
question, which takes the milliseconds of one `register`; the snapshot is then registered without files.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blake3

from openbook_core.errors import ArgumentError, ConflictError, PreconditionError
from openbook_database.files import clear_write_errors
from openbook_database.manifest import FORMAT, MANIFEST_NAME
from openbook_database.registry.base import Registry
from openbook_database.work_folder import in_use, locked

WORKING = (".building", ".pulling")
REMOVED = ".openbook-removed"


@dataclass(frozen=True)
class Garbage:
    """A folder that can go. `snapshot`: the id, where it is a snapshot; `bytes`: what its deletion sets free by itself."""

    path: Path
    kind: Literal["snapshot", "work", "leftover"]
    snapshot: str | None
    bytes: int


@dataclass(frozen=True)
class Collected:
    """What was found; `freed` is the bytes that go with all of `garbage` (files with a name elsewhere are not counted),
    `deleted` the folders that are gone, `kept` those that stay, with the reason."""

    garbage: tuple[Garbage, ...]
    freed: int
    deleted: tuple[Path, ...]
    kept: tuple[tuple[Path, str], ...]


def collect(
    registries: Sequence[Registry],
    under: str | Path,
    *,
    delete: bool = False,
    older_than: float = 0.0,
    clock: Callable[[], float] = time.time,
) -> Collected:
    """Find what can go under the folder `under`, and delete it if asked.

    A snapshot stays if any registry knows its id, in whatever place: as registered, live, previous, being prepared or
    reported by a replica. A work folder, of a build or a pull, stays while its lock is held.
    So does what is younger than `older_than` seconds, as it may be registered yet: a snapshot by its manifest, the last file of a
    build or a pull, a work folder by what was last written in it. The base of a build stays with its work folder.
    Folders of other kinds are never touched, links are not followed. Raises PreconditionError for a registry
    without a database (a wrong address, or one that came back empty), and what the registry raises where it cannot be
    reached: then nothing was deleted.
    """
    under = Path(under)
    if not under.is_dir():
        raise ArgumentError(f"{under} is no folder", field="under")
    found = list(_candidates(under))

    def young(path: Path, kind: str) -> bool:
        return clock() - _written(path, kind) < older_than

    works = [path for path, kind in found if kind == "work" and (in_use(path) or young(path, kind))]
    wanted = _wanted(registries) | {base for path in works if (base := _base_of(path))}
    garbage: list[Garbage] = []
    kept: list[tuple[Path, str]] = []
    for path, kind in found:
        snapshot = _snapshot_id(path)
        if kind == "work" and in_use(path):
            kept.append((path, f"a {_worker(path)} works in it"))
        elif kind != "work" and snapshot in wanted:
            if kind == "leftover" and delete:
                path = _give_back(path)
            kept.append((path, "a registry or an unfinished build names it"))
        elif kind != "leftover" and young(path, kind):
            kept.append((path, f"it is younger than {older_than / 3600:g} hours"))
        else:
            garbage.append(Garbage(path, kind, snapshot, _freed([path])))
    freed = _freed([each.path for each in garbage])
    deleted: list[Path] = []
    for each in garbage if delete else ():
        reason = _delete(each, registries)
        if reason is None:
            deleted.append(each.path)
        else:
            kept.append((each.path, reason))
    return Collected(tuple(garbage), freed, tuple(deleted), tuple(kept))


def _candidates(under: Path) -> Iterator[tuple[Path, Literal["snapshot", "work", "leftover"]]]:
    """Folders that are snapshots, work of builds and pulls, or half removed ones, themselves not searched."""
    for name, folders, files in os.walk(under):
        path = Path(name)
        kind: Literal["snapshot", "work", "leftover"] | None = None
        if path.name.endswith(REMOVED):
            kind = "leftover"
        elif path.name.endswith(WORKING) and {"lock", "recipe.json"} & {*files}:
            kind = "work"
        elif _snapshot_id(path) is not None:
            kind = "snapshot"
        if kind is not None:
            folders.clear()
            yield path, kind
        folders.sort()


def _snapshot_id(path: Path) -> str | None:
    """The id of the snapshot in a folder, of any format version; None where there is none."""
    try:
        data = (path / MANIFEST_NAME).read_bytes()
        record = json.loads(data)
    except (OSError, ValueError):
        return None
    return blake3.blake3(data).hexdigest() if isinstance(record, dict) and record.get("format") == FORMAT else None


def _wanted(registries: Sequence[Registry]) -> set[str]:
    """Ids of all snapshots that a registry names."""
    wanted: set[str] = set()
    for registry in registries:
        states = registry.list()
        if not states:
            raise PreconditionError(
                "the registry knows no database, so nothing under the folder would be kept: is that the right one?",
                field="registry",
            )
        for state in states:
            control = state.control
            wanted |= {known.snapshot for known in state.snapshots}
            wanted |= {held.snapshot for replica in state.replicas for held in replica.snapshots}
            wanted |= {each for each in (control.live, control.previous, control.candidate) if each is not None}
    return wanted


def _written(path: Path, kind: str) -> float:
    """When a folder got what it has, by the clock of the file system; a copy is as old as the copying."""
    files = [path / MANIFEST_NAME] if kind == "snapshot" else [path, *path.rglob("*")]
    times = []
    for file in files:
        with suppress(FileNotFoundError):
            times.append(file.lstat().st_ctime)
    return max(times, default=0.0)


def _worker(work: Path) -> str:
    """What works in a work folder."""
    return "pull" if work.name.endswith(".pulling") else "build"


def _base_of(work: Path) -> str | None:
    """The base of the build in the folder `work`."""
    try:
        recipe = json.loads((work / "recipe.json").read_bytes())
    except (OSError, ValueError):
        return None
    base: str | None = recipe.get("base")
    return base


def _freed(folders: Collection[Path]) -> int:
    """Bytes of the files in `folders` that have no name elsewhere."""
    names: Counter[tuple[int, int]] = Counter()
    files: dict[tuple[int, int], os.stat_result] = {}
    for folder in folders:
        for name, _, inside in os.walk(folder):
            for file in inside:
                found = os.lstat(os.path.join(name, file))
                key = (found.st_dev, found.st_ino)
                names[key] += 1
                files[key] = found
    return sum(found.st_size for key, found in files.items() if names[key] >= found.st_nlink)


def _delete(garbage: Garbage, registries: Sequence[Registry]) -> str | None:
    """Remove one folder; the reason, where it stays after all."""
    path = garbage.path
    if garbage.kind == "work":
        try:
            with locked(path, path, _worker(path)), clear_write_errors(path):
                shutil.rmtree(path)
        except ConflictError:
            return f"a {_worker(path)} has begun to work in it"
        return None
    if garbage.snapshot is not None and garbage.snapshot in _wanted(registries):
        return "it was registered meanwhile"
    with clear_write_errors(path):
        if garbage.kind == "snapshot":
            path = path.rename(path.with_name(path.name + REMOVED))
            if garbage.snapshot in _wanted(registries):
                _give_back(path)
                return "it was registered meanwhile"
        (path / MANIFEST_NAME).unlink(missing_ok=True)
        shutil.rmtree(path)
    return None


def _give_back(path: Path) -> Path:
    """Give a renamed snapshot its own name again; its files are whole as long as it has a manifest."""
    name = path.with_name(path.name.removesuffix(REMOVED))
    if name.exists():
        raise ConflictError(f"{path} cannot get its name back: {name} is there", field="under")
    return path.rename(name)
