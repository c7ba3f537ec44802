"""`db gc`: what goes, what stays, and what happens to a snapshot that is registered meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import ArgumentError, ConflictError, CorruptError, PreconditionError, UnavailableError
from openbook_database import gc
from openbook_database.build.erase import erase_documents
from openbook_database.build.workspace import Workspace
from openbook_database.gc import collect
from openbook_database.manifest import Manifest
from openbook_database.registry.directory import DirectoryRegistry
from openbook_database.registry.readiness import no_check
from openbook_database.registry.records import LoadState, ReplicaReport, ReplicaSnapshot
from openbook_database.testing import build_tiny_snapshot, tiny_rows
from openbook_database.testing import tree as tree_bytes
from openbook_database.transport.publish import publish
from openbook_database.transport.pull import pull

ROWS = tiny_rows(12, seed=9, words=20)


@pytest.fixture(autouse=True, scope="module")
def without_flushing() -> Iterator[None]:
    """Flushing takes most of a tiny build's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    for name, number in (("old", 12), ("live", 11), ("next", 10), ("unknown", 9), ("other", 8)):
        build_tiny_snapshot(folder / name, rows=ROWS[:number], shards=2)
    return folder


@pytest.fixture
def under(templates: Path, tmp_path: Path) -> Path:
    """Snapshots old, live, next, deep/unknown; files of others; work of a build that is dead."""
    folder = tmp_path / "books"
    for name, place in (("old", "old"), ("live", "live"), ("next", "next"), ("unknown", "deep/er/unknown")):
        shutil.copytree(templates / name, folder / place)
    (folder / "photos.building").mkdir()
    (folder / "photos.building" / "cat.jpg").write_bytes(b"x")
    (folder / "notes").mkdir()
    (folder / "notes" / "manifest.json").write_text('{"format": "something else"}')
    (folder / "notes" / "broken").mkdir()
    (folder / "notes" / "broken" / "manifest.json").write_text('{"format": "openbook-snap')
    work = Workspace(folder / "dead")
    with work.locked():
        work.begin({"database": "tiny"}, {})
    (work.chunks).mkdir()
    (work.chunks / "00000000.arrow").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def registry(under: Path, tmp_path: Path) -> DirectoryRegistry:
    """Knows old, live and next, which is being prepared."""
    made = DirectoryRegistry(tmp_path / "registry")
    for name in ("old", "live", "next"):
        made.register("tiny", under / name)
    for name in ("old", "live"):
        made.prepare("tiny", id_of(under / name))
        made.activate("tiny", id_of(under / name), ready_check=no_check)
    made.prepare("tiny", id_of(under / "next"))
    return made


def id_of(folder: Path) -> str:
    return Manifest.read(folder).snapshot_id


def tree(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in folder.rglob("*")}


def size(*folders: Path) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def names(found: gc.Collected, under: Path) -> set[str]:
    return {each.path.relative_to(under).as_posix() for each in found.garbage}


GONE = {"deep/er/unknown", "dead.building"}


def test_nothing_is_changed_unless_asked(registry: DirectoryRegistry, under: Path) -> None:
    before = tree(under)
    found = collect([registry], under)
    assert names(found, under) == GONE
    assert {each.kind for each in found.garbage} == {"snapshot", "work"}
    assert found.deleted == ()
    assert found.freed == size(under / "deep" / "er" / "unknown", under / "dead.building")
    assert {path.name for path, _ in found.kept} == {"old", "live", "next"}
    assert tree(under) == before
    done = collect([registry], under, delete=True)
    assert (names(done, under), done.freed) == (GONE, found.freed)
    assert {path.relative_to(under).as_posix() for path in done.deleted} == GONE
    left = {name: number for name, number in before.items() if not name.startswith(tuple(GONE))}
    assert tree(under) == left
    assert collect([registry], under, delete=True).garbage == ()


def test_a_snapshot_that_any_registry_names_stays(registry: DirectoryRegistry, under: Path, tmp_path: Path) -> None:
    other = DirectoryRegistry(tmp_path / "other")
    other.register("tiny", under / "deep" / "er" / "unknown")
    assert names(collect([registry, other], under), under) == {"dead.building"}
    assert names(collect([registry], under), under) == GONE
    assert names(collect([other], under), under) == {"old", "live", "next", "dead.building"}


def test_what_is_young_stays_as_it_may_be_registered_yet(registry: DirectoryRegistry, under: Path) -> None:
    day = 86_400.0
    found = collect([registry], under, delete=True, older_than=day)
    assert not found.garbage and {path.name for path, why in found.kept if "younger than 24 hours" in why} == {
        "unknown",
        "dead.building",
    }
    later = collect([registry], under, delete=True, older_than=day, clock=lambda: time.time() + day + 1)
    assert names(later, under) == GONE and len(later.deleted) == 2


def test_a_copy_of_a_known_snapshot_and_what_replicas_hold_stay(registry: DirectoryRegistry, under: Path) -> None:
    shutil.copytree(under / "live", under / "copy")
    held = ReplicaSnapshot(id_of(under / "deep/er/unknown"), LoadState.READY, (0,))
    registry.report_replica(ReplicaReport("tiny", "r1", "127.0.0.1:1", 0, (held,)))
    assert names(collect([registry], under, delete=True), under) == {"dead.building"}


def test_a_running_build_and_its_base_stay(registry: DirectoryRegistry, under: Path) -> None:
    base = under / "deep" / "er" / "unknown"
    seen: list[set[str]] = []

    def look(update: object) -> None:
        found = collect([registry], under, delete=True)
        seen.append(names(found, under))
        assert (under / "new.building", "a build works in it") in found.kept

    erase_documents(base, [ROWS[0]["id"]], under / "new", progress=look)
    assert seen[0] == {"dead.building"}
    assert not seen[-1]
    assert base.exists()
    assert names(collect([registry], under), under) == {"deep/er/unknown", "new"}


def test_a_running_pull_stays_and_what_a_dead_one_left_goes(
    registry: DirectoryRegistry, templates: Path, under: Path, tmp_path: Path
) -> None:
    """It holds the manifest of a snapshot that no registry knows yet."""
    url, work = (tmp_path / "store").as_uri(), under / "pulled.pulling"
    publish(templates / "other", url)
    kept: list[tuple[Path, str]] = []

    def look(update: object) -> None:
        kept.extend(collect([registry], under, delete=True).kept)

    def stop(update: object) -> None:
        raise KeyboardInterrupt

    pull(url, under / "pulled", progress=look, threads=1)
    assert (work, "a pull works in it") in kept
    assert tree_bytes(under / "pulled") == tree_bytes(templates / "other")
    with pytest.raises(KeyboardInterrupt):
        pull(url, under / "again", progress=stop, threads=1)
    left = under / "again.pulling"
    assert (left / "snapshot" / "manifest.json").exists() and (left / "parts").exists()
    assert names(collect([registry], under, older_than=3600.0), under) == set()
    assert names(collect([registry], under, delete=True), under) == {"pulled", "again.pulling"}
    assert not left.exists()


@pytest.mark.parametrize(("age_s", "stays"), [(0.0, True), (2 * 86_400.0, False)])
def test_the_base_of_a_dead_build_stays_as_long_as_the_build(
    registry: DirectoryRegistry, under: Path, age_s: float, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on with it, and needs the base."""
    base, dead = under / "deep" / "er" / "unknown", under / "dead.building"
    recipe = json.loads((dead / "recipe.json").read_text())
    (dead / "recipe.json").write_text(json.dumps({**recipe, "base": id_of(base)}))
    written = gc._written
    monkeypatch.setattr(gc, "_written", lambda path, kind: written(path, kind) - (kind == "snapshot") * 3 * 86_400)
    found = collect([registry], under, older_than=86_400.0, clock=lambda: time.time() + age_s)
    assert names(found, under) == (set() if stays else GONE)


def test_shared_files_count_where_the_last_name_goes(registry: DirectoryRegistry, under: Path) -> None:
    base = under / "deep" / "er" / "unknown"
    new = under / "new"
    erase_documents(base, [str(ROWS[0]["id"])], new)
    shared = {path.stat().st_ino: path for path in new.rglob("*") if path.is_file() and path.stat().st_nlink == 2}
    assert len(shared) == 5
    common = sum(path.stat().st_size for path in shared.values())
    found = collect([registry], under)
    alone = {each.path: each.bytes for each in found.garbage}
    assert alone[new] == size(new) - common
    assert found.freed == size(new, base, under / "dead.building") - common
    registry.register("tiny", new)
    done = collect([registry], under, delete=True)
    assert done.freed == alone[base] + alone[under / "dead.building"]
    assert not base.exists()
    assert {path.stat().st_nlink for path in new.rglob("*") if path.is_file()} == {1}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_snapshot_registered_meanwhile_stays(
    registry: DirectoryRegistry, under: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the search and the removal, or between the renaming and the last question."""
    unknown = under / "deep" / "er" / "unknown"
    before, asked = tree(unknown), 0
    known = registry._snapshots

    def list_snapshots(database: str) -> Any:
        nonlocal asked
        asked += 1
        if asked == (2 if moment == "before" else 3):
            # One that had read the manifest before the folder was renamed.
            place = unknown if moment == "before" else unknown.with_name("unknown" + gc.REMOVED)
            registry.register("tiny", place)
        return known(database)

    monkeypatch.setattr(registry, "_snapshots", list_snapshots)
    found = collect([registry], under, delete=True)
    assert (unknown, "it was registered meanwhile") in found.kept
    assert tree(unknown) == before
    assert [path.name for path in found.deleted] == ["dead.building"]


def test_one_that_was_renamed_by_a_killed_run(registry: DirectoryRegistry, under: Path) -> None:
    live, unknown = under / "live", under / "deep" / "er" / "unknown"
    live.rename(under / ("live" + gc.REMOVED))
    unknown.rename(unknown.with_name("unknown" + gc.REMOVED))
    (unknown.with_name("unknown" + gc.REMOVED) / "manifest.json").unlink()
    assert names(collect([registry], under), under) == {"deep/er/unknown" + gc.REMOVED, "dead.building"}
    assert not live.exists()
    collect([registry], under, delete=True)
    assert live.exists()
    assert os.listdir(under / "deep" / "er") == []
    live.rename(under / ("live" + gc.REMOVED))
    live.mkdir()
    with pytest.raises(ConflictError, match="cannot get its name back"):
        collect([registry], under, delete=True)


def test_a_build_that_begins_meanwhile_stays(
    registry: DirectoryRegistry, under: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Workspace(under / "dead")
    freed = gc._freed
    locks = []

    def lock_then(folders: Any) -> int:
        if not locks:
            locks.append(work.locked())
            locks[0].__enter__()
        return freed(folders)

    monkeypatch.setattr(gc, "_freed", lock_then)
    found = collect([registry], under, delete=True)
    assert (work.building, "a build has begun to work in it") in found.kept
    assert (work.chunks / "00000000.arrow").exists()
    locks[0].__exit__(None, None, None)


def _unreachable(registry: DirectoryRegistry, tmp_path: Path, patch: pytest.MonkeyPatch) -> DirectoryRegistry:
    def unreachable() -> Any:
        raise UnavailableError("nobody answers")

    patch.setattr(registry, "list", unreachable)
    return registry


def _unreadable(registry: DirectoryRegistry, tmp_path: Path, patch: pytest.MonkeyPatch) -> DirectoryRegistry:
    listdir = os.listdir

    def refuse(path: Any) -> Any:
        if Path(path) == tmp_path / "registry" / "tiny" / "snapshots":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    patch.setattr(os, "listdir", refuse)
    return registry


def _damaged(registry: DirectoryRegistry, tmp_path: Path, patch: pytest.MonkeyPatch) -> DirectoryRegistry:
    next((tmp_path / "registry" / "tiny" / "snapshots").iterdir()).write_text("{")
    return registry


def _mistyped(registry: DirectoryRegistry, tmp_path: Path, patch: pytest.MonkeyPatch) -> DirectoryRegistry:
    return DirectoryRegistry(tmp_path / "regitsry")


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (_unreachable, UnavailableError, "nobody answers"),
        (_unreadable, UnavailableError, "snapshots cannot be read: Permission denied"),
        (_damaged, CorruptError, "is not JSON"),
        (_mistyped, PreconditionError, "the registry knows no database"),
    ],
)
def test_without_an_answer_of_every_registry_nothing_goes(
    registry: DirectoryRegistry,
    under: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[..., DirectoryRegistry],
    error: type[Exception],
    message: str,
) -> None:
    good = DirectoryRegistry(tmp_path / "good")
    good.register("tiny", under / "live")
    before = tree(under)
    with pytest.raises(error, match=message):
        collect([good, broken(registry, tmp_path, monkeypatch)], under, delete=True)
    assert tree(under) == before


def test_the_command(registry: DirectoryRegistry, under: Path, tmp_path: Path) -> None:
    arguments = ["db", "gc", "--registry", str(tmp_path / "registry"), "--under", str(under)]
    fresh = CliRunner().invoke(app, [*arguments, "--delete"])
    assert (
        "0 folders deleted" in fresh.stdout
        and f"{under / 'dead.building'}: it is younger than 24 hours" in fresh.stderr
    )
    arguments += ["--older-than", "0"]
    dry = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "gc.json")])
    assert dry.exit_code == 0, dry.output
    freed = json.loads((tmp_path / "gc.json").read_text())["freed"]
    assert f"2 folders would be deleted (--delete does it), {freed} bytes would be freed" in dry.stdout
    assert f"can go: {under / 'deep/er/unknown'} (snapshot " in dry.stdout
    assert "live: a registry or an unfinished build names it" in dry.stderr
    assert (under / "dead.building").exists()
    done = CliRunner().invoke(app, [*arguments, "--delete"])
    assert f"2 folders deleted, {freed} bytes freed" in done.stdout
    assert not (under / "dead.building").exists()
    with pytest.raises(ArgumentError, match="is no folder"):
        collect([registry], under / "gone")
