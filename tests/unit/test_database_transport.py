"""Publishing to and pulling from a folder: whole or not at all, checked, resumable, with files of a neighbour linked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from openbook_core.errors import (
    ArgumentError,
    ConfigError,
    ConflictError,
    CorruptError,
    InputError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from openbook_database import files
from openbook_database.build.progress import Update
from openbook_database.manifest import Manifest
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot, tiny_rows, tree
from openbook_database.transport import pull as pull_module
from openbook_database.transport.publish import publish
from openbook_database.transport.pull import pull
from openbook_database.transport.store import Store
from openbook_database.verify import verify


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("book") / "book"
    build_tiny_snapshot(out, documents=20, shards=3)
    return out


@pytest.fixture
def published(book: Path, tmp_path: Path) -> str:
    url = (tmp_path / "store" / "book").as_uri()
    publish(book, url)
    return url


def stop_after(updates: int) -> Callable[[Update], None]:
    def progress(update: Update) -> None:
        nonlocal updates
        updates -= 1
        if updates < 0:
            raise KeyboardInterrupt

    return progress


def test_the_round_trip_keeps_every_byte(book: Path, published: str, tmp_path: Path) -> None:
    assert tree(tmp_path / "store" / "book") == tree(book)
    done = pull(published, tmp_path / "pulled")
    assert tree(tmp_path / "pulled") == tree(book)
    assert (done.snapshot_id, done.sent_bytes) == (Manifest.read(book).snapshot_id, done.bytes)
    verify(tmp_path / "pulled")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pulled", "store"]
    again = pull(published, tmp_path / "pulled")
    assert again.reused and not again.sent_bytes
    assert publish(book, published).reused


def test_what_was_published_is_skipped_only_where_its_bytes_were_proven(book: Path, tmp_path: Path) -> None:
    target = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        publish(book, target.as_uri(), threads=1, progress=stop_after(3))
    there = {name for name in tree(target) if not name.startswith(".publishing/")}
    assert len(there) == 3 and "manifest.json" not in there
    with pytest.raises(PreconditionError, match="is being published there and is not finished"):
        pull(target.as_uri(), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    # The right size is no proof: this one lost its mark.
    unproven = sorted(there)[0]
    (target / unproven).write_bytes(bytes((target / unproven).stat().st_size))
    (target / ".publishing" / Manifest.read(book).snapshot_id / f"{unproven}.done").unlink()
    kept = sum((book / name).stat().st_size for name in there - {unproven})
    done = publish(book, target.as_uri())
    assert done.kept_bytes == kept
    assert tree(target) == tree(book)


@pytest.mark.parametrize("updates", [0, 1, 4, 9])
def test_a_pull_goes_on_with_blocks_that_are_right(published: str, book: Path, tmp_path: Path, updates: int) -> None:
    out = tmp_path / "pulled"
    with pytest.raises(KeyboardInterrupt):
        pull(published, out, threads=1, progress=stop_after(updates))
    assert not out.exists()
    seen: list[Update] = []
    done = pull(published, out, progress=seen.append)
    assert tree(out) == tree(book)
    assert done.kept_bytes > 0
    assert done.kept_bytes + done.sent_bytes == done.bytes == seen[-1].done == seen[-1].total
    assert seen[-1].seconds_left == 0 and {update.unit for update in seen} == {"bytes"}
    for update in seen[1:-1]:
        assert update.seconds_left == pytest.approx((done.bytes - update.done) / update.rate)


def test_a_first_pull_does_not_read_what_it_has_not_written(
    published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "block_digest", lambda part, block: pytest.fail(f"{part} is hollow"))
    assert not pull(published, tmp_path / "pulled").kept_bytes


def test_several_files_go_at_once_and_the_manifest_last(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two wait for each other: one after the other, neither would go on."""
    url, written = (tmp_path / "store").as_uri(), list[str]()
    upload, write, read_range = Store.upload, Store.write, Store.read_range
    together = {"upload": Barrier(2, timeout=60), "read": Barrier(2, timeout=60)}
    met: set[str] = set()

    def meet(what: str) -> None:
        if what not in met:
            together[what].wait()
            met.add(what)

    def uploading(self: Store, name: str, *arguments: Any) -> None:
        meet("upload")
        upload(self, name, *arguments)
        written.append(name)

    def writing(self: Store, name: str, data: bytes) -> None:
        write(self, name, data)
        written.append(name)

    def reading(self: Store, name: str, start: int, end: int) -> bytes:
        meet("read")
        return read_range(self, name, start, end)

    monkeypatch.setattr(Store, "upload", uploading)
    monkeypatch.setattr(Store, "write", writing)
    monkeypatch.setattr(Store, "read_range", reading)
    publish(book, url, threads=2)
    assert written[-1] == "manifest.json" and written.count("manifest.json") == 1
    pull(url, tmp_path / "pulled", threads=2)
    assert tree(tmp_path / "pulled") == tree(book)
    assert met == {"upload", "read"}


def test_blocks_of_a_large_file_come_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(pull_module, "PIECE_BYTES", 1 << 10)
    book, out = tmp_path / "book", tmp_path / "pulled"
    build_tiny_snapshot(book, documents=60)
    name, entry = max(Manifest.read(book).files.items(), key=lambda item: len(item[1].blocks))
    assert len(entry.blocks) > 5
    url = (tmp_path / "store").as_uri()
    publish(book, url)
    with pytest.raises(KeyboardInterrupt):
        pull(url, out, threads=1, progress=stop_after(14))
    part = tmp_path / "pulled.pulling" / "parts" / name.replace("/", "@")
    assert part.stat().st_size == entry.size, "as large as it will be"
    whole = (book / name).read_bytes()
    right = sum(part.read_bytes()[at : at + 4096] == whole[at : at + 4096] for at in range(0, entry.size, 4096))
    assert 0 < right < len(entry.blocks)
    with part.open("r+b") as stream:  # a block that was spoiled meanwhile is fetched again
        stream.write(b"spoiled")
    asked: list[tuple[str, int]] = []
    read_range = Store.read_range

    def spy(self: Store, name: str, start: int, end: int) -> bytes:
        asked.append((name, start // 4096))
        return read_range(self, name, start, end)

    monkeypatch.setattr(Store, "read_range", spy)
    pull(url, out)
    assert tree(out) == tree(book)
    assert len({block for asked_name, block in asked if asked_name == name}) == len(entry.blocks) - right + 1


def test_a_shard_with_what_all_share(book: Path, published: str, tmp_path: Path) -> None:
    pull(published, tmp_path / "one", shards=[1])
    names = set(tree(tmp_path / "one"))
    assert names == {name for name in tree(book) if not name.startswith(("shard-00000", "shard-00002"))}
    opened, whole = Snapshot.open(tmp_path / "one", shards=[1]), Snapshot.open(book)
    query_QD = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    assert (opened.search(query_QD, 4).ids_QK == whole.shards[1].search(query_QD, 4).ids_QK).all()
    with pytest.raises(InputError, match="holds a part of this snapshot only"):
        pull(published, tmp_path / "one")
    done = pull(published, tmp_path / "all", reuse=[tmp_path / "one"])
    assert tree(tmp_path / "all") == tree(book) and done.linked_bytes and done.sent_bytes
    with pytest.raises(ArgumentError, match="shard 7: snapshot .* has shards 0 to 2"):
        pull(published, tmp_path / "none", shards=[7])


def test_files_of_the_previous_edition_are_linked_if_they_are_still_right(tmp_path: Path) -> None:
    editions, rows = tmp_path / "editions", sorted(tiny_rows(20), key=lambda row: str(row["id"]))
    for name in ("old", "new"):
        build_tiny_snapshot(editions / name, rows=rows, shards=3)
        rows[-1] = {**rows[-1], "text": rows[-1]["text"].replace("nothing", "nathing")}
    url = (tmp_path / "store").as_uri()
    publish(editions / "new", url)
    shared = editions / "old" / "tokenizer" / "tokenizer.json"
    same = {name for name, data in tree(editions / "old").items() if tree(editions / "new").get(name) == data}
    assert any(name.startswith("shard-") for name in same)
    shutil.rmtree(editions / "new")
    done = pull(url, tmp_path / "new", reuse=[editions])
    assert (tmp_path / "new" / "tokenizer" / "tokenizer.json").stat().st_ino == shared.stat().st_ino
    assert done.linked_bytes == sum((editions / "old" / name).stat().st_size for name in same)
    shared.write_bytes(bytes(shared.stat().st_size))  # also of the pulled one: it is the same file
    pull(url, tmp_path / "again", reuse=[editions])
    verify(tmp_path / "again")
    with pytest.raises(NotFoundError, match="no snapshot is there"):
        pull(url, tmp_path / "more", reuse=[tmp_path / "store" / "tokenizer"])


def damage_manifest(store: Path) -> None:
    (store / "manifest.json").write_bytes(b"{")


def cut(store: Path) -> None:
    (store / "documents.arrow").write_bytes(b"short")


def remove(store: Path) -> None:
    (store / "shard-00001" / "tokens.bin").unlink()


def flip(store: Path) -> None:
    data = bytearray((store / "shard-00002" / "tokens.bin").read_bytes())
    data[5] ^= 1
    (store / "shard-00002" / "tokens.bin").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_manifest, r"file:.*store/book: manifest\.json: is not JSON"),
        (cut, r"does not fit the files: documents\.arrow has 5 bytes, the manifest says \d+"),
        (remove, r"does not fit the files: shard-00001/tokens\.bin has no bytes"),
        (flip, r"shard-00002/tokens\.bin: checksum of its \d+ bytes from 0 is .*the published file is damaged"),
    ],
)
def test_damage_is_named_and_nothing_appears(
    published: str, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(tmp_path / "store" / "book")
    with pytest.raises(CorruptError, match=message):
        pull(published, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_damaged_snapshot_is_not_published(book: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(book, copy)
    flip(copy)
    with pytest.raises(CorruptError, match=r"shard-00002/tokens\.bin: checksum is .*cannot be published"):
        publish(copy, (tmp_path / "store").as_uri())
    assert "shard-00002/tokens.bin" not in tree(tmp_path / "store")
    assert "manifest.json" not in tree(tmp_path / "store")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a//b", "manifest.json"])
def test_a_manifest_cannot_write_outside(published: str, tmp_path: Path, name: str) -> None:
    manifest = Manifest.read(tmp_path / "store" / "book")
    manifest.files[name] = manifest.files["documents.arrow"]
    (tmp_path / "store" / "book" / "manifest.json").write_bytes(manifest.to_bytes())
    with pytest.raises(CorruptError, match="names a file .*, which no snapshot has"):
        pull(published, tmp_path / "pulled")


def test_a_place_that_holds_something_else_is_left_alone(book: Path, published: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build_tiny_snapshot(other, documents=3)
    with pytest.raises(ConflictError, match="holds another snapshot than"):
        publish(other, published)
    with pytest.raises(InputError, match=f"{other} holds snapshot .*--reuse"):
        pull(published, other)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds cat\.jpg"):
        publish(book, (tmp_path / "photos").as_uri())
    with pytest.raises(InputError, match="exists and is no snapshot"):
        pull(published, tmp_path / "photos")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        publish(book, (tmp_path / "photos" / "cat.jpg").as_uri())
    begun = (tmp_path / "begun").as_uri()
    with pytest.raises(KeyboardInterrupt):
        publish(other, begun, threads=1, progress=stop_after(2))
    with pytest.raises(ConflictError, match="is being published there, or was not finished"):
        publish(book, begun)


def test_two_pulls_into_one_folder_and_the_id_that_is_wanted(book: Path, published: str, tmp_path: Path) -> None:
    out = tmp_path / "pulled"
    refused: list[ConflictError] = []

    def second(update: Update) -> None:
        if not refused:
            with pytest.raises(ConflictError, match="another pull writes into") as caught:
                pull(published, out)
            refused.append(caught.value)

    with pytest.raises(ArgumentError, match="holds snapshot .*, expected '0000000000'"):
        pull(published, out, expected_id="0" * 10)
    pull(published, out, expected_id=Manifest.read(book).snapshot_id[:10], progress=second)
    assert refused and tree(out) == tree(book)


def test_too_little_disk_is_found_before_the_first_byte(
    published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1 << 20

    monkeypatch.setattr(pull_module.shutil, "disk_usage", lambda path: Usage)
    monkeypatch.setattr(Store, "read_range", None)
    with pytest.raises(InputError, match="bytes are still to come and 1048576 are free"):
        pull(published, tmp_path / "pulled")


@pytest.mark.parametrize(("failures", "tries"), [(2, 3), (3, 3)])
def test_a_network_that_fails_is_tried_a_bounded_number_of_times(
    published: str, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, tries: int
) -> None:
    slept: list[float] = []
    remote, cat = MemoryFileSystem(), MemoryFileSystem.cat_file
    remote.put(f"{tmp_path}/store/book/", "/book/", recursive=True)
    left = failures

    def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        nonlocal left
        if start is not None and left:
            left -= 1
            raise ConnectionResetError("the peer went away")
        return bytes(cat(self, path, start=start, end=end, **options))

    monkeypatch.setattr("openbook_database.transport.store.time.sleep", slept.append)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    if failures < tries:
        pull("memory://book", tmp_path / "pulled", tries=tries, threads=1)
        assert tree(tmp_path / "pulled") == tree(book)
        assert slept == [0.5, 1.0]
    else:
        with pytest.raises(UnavailableError, match="ConnectionResetError: the peer went away; tried 3 times.*goes on"):
            pull("memory://book", tmp_path / "pulled", tries=tries, threads=1)
        assert not (tmp_path / "pulled").exists()


def test_urls_that_cannot_be(book: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Protocol not known"):
        publish(book, "nowhere://bucket")
    with pytest.raises(NotFoundError, match="holds no published snapshot"):
        pull((tmp_path / "nothing").as_uri(), tmp_path / "pulled")
    with pytest.raises(NotFoundError, match="holds no snapshot"):
        publish(tmp_path / "nothing", (tmp_path / "store").as_uri())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written: a part of the path is a file"):
        publish(book, (tmp_path / "file" / "below").as_uri())
