"""Two shards and a router as processes: swaps under load, a killed shard, the guard switched off."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openbook_cli.demo.checker import Checker
from openbook_cli.demo.load import Call, search
from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import (
    ArgumentError,
    ConflictError,
    MismatchError,
    NotFoundError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from openbook_database.files import file_digests
from openbook_database.index.flat import write_flat
from openbook_database.manifest import FileEntry, Manifest
from openbook_database.snapshot import Snapshot
from openbook_proto.v1 import admin_pb2

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, DIMENSION, Load, TinyEncoder, move

QUESTIONS = [
    "president of the senate",
    "railway on the coast",
    "old 7 harvest",
    "new 9 river treaty",
    "all 4",
    "export",
]


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("editions")
    return support.build_edition(folder, "old"), support.build_edition(folder, "new")


@pytest.fixture(scope="module")
def opened(editions: tuple[Path, Path]) -> list[Snapshot]:
    return [Snapshot.open(path) for path in editions]


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def queries() -> np.ndarray:
    """Vectors [q, d] of the questions."""
    return TinyEncoder().encode(QUESTIONS)


@pytest.fixture(scope="module")
def embedder() -> Iterator[str]:
    running = support.start_embedder()
    yield running.address
    running.stop(0)


def test_swaps_under_load_fail_nothing_and_mix_nothing(
    tmp_path: Path, registry: Path, editions: tuple[Path, Path], opened: list[Snapshot], queries: np.ndarray
) -> None:
    snapshots = {snapshot.id: snapshot for snapshot in opened}
    with support.cluster(tmp_path, registry) as (router, *_), AdminClient(router.address) as admin:
        ids = [admin.register(DATABASE, str(path)).snapshot for path in editions]
        assert ids == [snapshot.id for snapshot in opened]
        with pytest.raises(PreconditionError):
            admin.activate(DATABASE, ids[0])
        move(admin, ids[0])
        load = Load(router.address, queries)
        with load.running():
            for turn in range(10):
                time.sleep(0.15)
                if turn % 3 == 2:
                    admin.rollback(DATABASE)
                else:
                    move(admin, ids[1 if admin.list(DATABASE)[0].live == ids[0] else 0])
            time.sleep(0.2)
        state = admin.list(DATABASE)[0]
    assert load.failures == []
    assert load.mixed(snapshots) == []
    assert not load.epochs_go_back()
    replies = [result for thread in load.replies for _, result in thread]
    assert len(replies) > 100
    assert {result.snapshot for result in replies} == set(ids)
    assert state.epoch == 11
    assert {result.epoch for result in replies} >= set(range(2, 12))
    assert len(state.replicas) == 2
    assert [r.epoch for r in state.routers] == [11]


@pytest.mark.parametrize("guard", [True, False])
def test_the_outside_checks_fire_without_the_guard_only(
    tmp_path: Path,
    registry: Path,
    editions: tuple[Path, Path],
    opened: list[Snapshot],
    queries: np.ndarray,
    embedder: str,
    guard: bool,
) -> None:
    snapshots = {snapshot.id: snapshot for snapshot in opened}
    option = "--snapshot-guard" if guard else "--no-snapshot-guard"
    calls: list[Call] = []
    with (
        support.cluster(
            tmp_path, registry, option, "--poll-interval-s", "0.5", router=(option, "--embedder", embedder)
        ) as (router, *_),
        AdminClient(router.address) as admin,
        RetrieverClient(router.address) as client,
    ):
        ids = [admin.register(DATABASE, str(path)).snapshot for path in editions]
        move(admin, ids[0])
        move(admin, ids[1])
        search(client, DATABASE, QUESTIONS[0], 4)
        time.sleep(0.6)
        load = Load(router.address, queries, threads=1)
        with load.running():
            admin.rollback(DATABASE)
            end = time.monotonic() + 0.7
            while time.monotonic() < end:
                calls.append(search(client, DATABASE, QUESTIONS[len(calls) % len(QUESTIONS)], 4))
    assert [call.error for call in calls if call.error] == []
    assert {call.snapshot for call in calls} == {ids[0]}
    checker = Checker(editions)
    mixed = [call for call in calls if checker.is_mixed(call)]
    if guard:
        assert (load.mixed(snapshots), mixed) == ([], [])
    else:
        assert load.mixed(snapshots) != []
        assert mixed != []


def test_killed_shard_is_named_and_comes_back(
    tmp_path: Path, registry: Path, editions: tuple[Path, Path], opened: list[Snapshot], queries: np.ndarray
) -> None:
    with support.cluster(tmp_path, registry) as processes:
        router = processes[0]
        with AdminClient(router.address) as admin, RetrieverClient(router.address) as client:
            snapshot = admin.register(DATABASE, str(editions[0])).snapshot
            move(admin, snapshot)
            expected = client.search(DATABASE, queries, 5)
            processes[2].popen.kill()
            processes[2].popen.wait()
            with pytest.raises(UnavailableError, match=r"shard 1\b") as caught:
                client.search(DATABASE, queries, 5)
            assert caught.value.reason is Reason.SHARD_UNAVAILABLE
            assert caught.value.metadata["shards"] == "1"
            partial = client.search(DATABASE, queries, 5, allow_partial=True, text=True)
            assert partial.missing_shards == [1]
            manifest = Snapshot.open(editions[0], shards=[0]).manifest
            assert partial.coverage is not None
            (missing,) = partial.coverage.missing
            assert (missing.shard, missing.chunks) == (1, manifest.shards[1].rows)
            assert missing.why
            assert partial.coverage.chunks == manifest.chunks
            assert partial.coverage.answered_chunks == manifest.chunks - missing.chunks
            remaining = Snapshot.open(editions[0], shards=[0, 2]).search(queries, 5)
            np.testing.assert_array_equal(partial.ids, remaining.ids_QK)
            processes[2] = support.start_shard(registry, tmp_path / "log.jsonl", 1)
            again = client.search(DATABASE, queries, 5)
            np.testing.assert_array_equal(again.ids, expected.ids)
            assert again.missing_shards == []
            assert again.coverage is None
            assert [process.stop() for process in processes] == [0, 0, 0]


def test_inverted_lists_answer_as_in_one_shard_and_registry_gone_serves_on(
    tmp_path: Path, registry: Path, queries: np.ndarray
) -> None:
    (tmp_path / "single").mkdir()
    sharded = support.build_edition(tmp_path, "ivf", index="IVF6,SQ8")
    single = support.build_edition(tmp_path / "single", "ivf", shards=1, index="IVF6,SQ8")
    with (
        support.cluster(tmp_path, registry) as (router, *_),
        AdminClient(router.address) as admin,
        RetrieverClient(router.address) as client,
    ):
        move(admin, admin.register(DATABASE, str(sharded)).snapshot)
        excluded = [["doc-000", "doc-004", "doc-039"]] * len(queries)
        for k in (5, 300):  # 300: more than the probed lists hold
            expected = Snapshot.open(single).search(queries, k, [{0, 4, 39}] * len(queries))
            found = client.search(DATABASE, queries, k, exclude=excluded)
            np.testing.assert_array_equal(found.ids, expected.ids_QK)
            np.testing.assert_array_equal(found.scores, expected.scores_QK)
        before = client.search(DATABASE, queries, 5)
        registry.rename(registry.with_name("gone"))  # at once: shards write reports into it
        time.sleep(1.5)
        after = client.search(DATABASE, queries, 5)
        np.testing.assert_array_equal(after.ids, before.ids)
        assert after.snapshot == before.snapshot
        assert not registry.exists()


def test_one_cluster_answers_every_call(
    tmp_path: Path,
    registry: Path,
    editions: tuple[Path, Path],
    opened: list[Snapshot],
    queries: np.ndarray,
    embedder: str,
) -> None:
    old, new = opened
    with (
        support.cluster(tmp_path, registry, router=("--embedder", embedder)) as processes,
        AdminClient(processes[0].address) as admin,
        RetrieverClient(processes[0].address) as client,
        RetrieverClient(processes[1].address) as shard,
    ):
        with pytest.raises(NotFoundError):
            client.search(DATABASE, queries, 2)
        for path in editions:
            admin.register(DATABASE, str(path))
        with pytest.raises(PreconditionError, match="no live snapshot"):
            client.search(DATABASE, queries, 2)
        move(admin, old.id)

        # SearchText is Search of the texts' vectors.
        by_text = client.search_text(DATABASE, QUESTIONS, 3, documents=True)
        by_vector = client.search(DATABASE, queries, 3)
        np.testing.assert_array_equal(by_text.ids, by_vector.ids)
        for id_, row in zip(by_text.ids.ravel(), by_text.row_of.ravel(), strict=True):
            number = int(old.documents.of_rows(np.asarray([id_]))[0])
            assert by_text.chunks.documents[row].external_id == old.documents.record(number).external_id

        # Excluded documents do not come back, unknown ones are counted.
        top = [by_text.chunks.documents[row].external_id for row in by_text.row_of[:, 0]]
        without = client.search(DATABASE, queries, 3, exclude=[[name, "nobody"] for name in top], documents=True)
        numbers = [{old.documents.number(name)} for name in top]
        np.testing.assert_array_equal(without.ids, old.search(queries, 3, numbers).ids_QK)
        assert without.unknown_exclusions == 1
        floor = float(by_vector.scores[0, 1])
        limited = client.search(DATABASE, queries, 3, min_score=floor)
        np.testing.assert_array_equal(limited.ids, old.search(queries, 3, None, floor).ids_QK)

        # Chunks by id come in the order asked, from all shards.
        ids = np.random.default_rng(0).permutation(old.manifest.chunks)[:50].astype(np.int64)
        table = client.get_chunks(DATABASE, old.id, ids, tokens=True, text=True, documents=True)
        # What no message can hold is refused in words, by a shard and, where each shard's part fits, by the router.
        for many in (np.zeros(520_000, np.int64), np.arange(520_000) % old.manifest.chunks):
            with pytest.raises(ArgumentError, match="a message has at most 67.1: ask for fewer ids"):
                client.get_chunks(DATABASE, old.id, many, tokens=True, timeout_s=120)
        assert table.texts == [old.shard_of(int(i)).text(np.asarray([i]))[0] for i in ids]
        tokens = [old.shard_of(int(i)).tokens(np.asarray([i]))[0][0] for i in ids]
        np.testing.assert_array_equal(table.tokens, np.asarray(tokens))
        described = client.describe(DATABASE)
        assert (described.live_snapshot, described.chunks) == (old.id, old.manifest.chunks)
        assert [state.ready_replicas for state in described.shards] == [1, 1, 1]

        # A shard answers from the snapshot in the request or refuses.
        with pytest.raises(PreconditionError) as refused:
            shard.search(DATABASE, queries, 2, snapshot=new.id, shard=0)
        assert refused.value.reason is Reason.SNAPSHOT_NOT_LOADED
        with pytest.raises(PreconditionError) as retired:
            client.search(DATABASE, queries, 2, snapshot=new.id)
        assert retired.value.reason is Reason.SNAPSHOT_RETIRED
        pinned = client.search(DATABASE, queries, 3, snapshot=old.id, min_epoch=by_vector.epoch)
        np.testing.assert_array_equal(pinned.ids, by_vector.ids)

        with pytest.raises(UnavailableError, match="min_epoch"):
            client.search(DATABASE, queries, 2, min_epoch=99)
        admin.prepare(DATABASE, new.id)
        with pytest.raises(ConflictError):
            admin.activate(DATABASE, new.id, expected_epoch=7)
        for bad in ({"k": 0}, {"k": 1001}, {"snapshot": "abc"}, {"exclude": [["a"]]}, {"min_score": float("nan")}):
            with pytest.raises(ArgumentError) as wrong:
                client.search(DATABASE, queries, **{"k": 2, **bad})
            assert wrong.value.field in ("k", "snapshot", "exclusions", "min_score")
        for vectors in (queries[:0], queries[:, :5], np.full((1, DIMENSION), np.nan, np.float32)):
            with pytest.raises(ArgumentError, match="queries"):
                client.search(DATABASE, vectors, 2)
        with pytest.raises(ArgumentError, match="database"):
            client.search("../book", queries, 2)
        with pytest.raises(NotFoundError):
            client.search("nothing", queries, 2)
        with pytest.raises(ArgumentError, match="shard"):
            client.search(DATABASE, queries, 2, shard=0)
        with pytest.raises(ArgumentError, match="texts"):
            client.search_text(DATABASE, ["fine", " "], 2)


@pytest.mark.parametrize(
    ("encoder", "complaint"), [(TinyEncoder("other"), "architecture"), (TinyEncoder(sign=-1.0), "cosine")]
)
def test_another_embedder_is_refused(
    tmp_path: Path, registry: Path, editions: tuple[Path, Path], encoder: TinyEncoder, complaint: str
) -> None:
    running = support.start_embedder(encoder)
    try:
        with (
            support.cluster(tmp_path, registry, router=("--embedder", running.address)) as (router, *_),
            AdminClient(router.address) as admin,
            RetrieverClient(router.address) as client,
        ):
            move(admin, admin.register(DATABASE, str(editions[0])).snapshot)
            # Over the wire a MismatchError is the FAILED_PRECONDITION that its reason tells apart.
            with pytest.raises((MismatchError, PreconditionError), match=complaint) as caught:
                client.search_text(DATABASE, QUESTIONS, 2)
            assert caught.value.reason is Reason.FINGERPRINT_MISMATCH
    finally:
        running.stop(0)


def test_what_a_request_pinned_answers_until_it_has_drained(
    tmp_path: Path,
    registry: Path,
    editions: tuple[Path, Path],
    opened: list[Snapshot],
    queries: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    third = support.build_edition(tmp_path_factory.mktemp("third"), "third")
    with (
        support.cluster(tmp_path, registry, "--drain-s", "4") as (router, *_),
        AdminClient(router.address) as admin,
        RetrieverClient(router.address) as client,
    ):
        ids = [admin.register(DATABASE, str(path)).snapshot for path in (*editions, third)]
        for snapshot in ids:
            move(admin, snapshot)
        moved = time.monotonic()
        pinned = client.search(DATABASE, queries, 5, snapshot=ids[0])
        table = client.get_chunks(DATABASE, ids[0], pinned.ids.ravel(), text=True)
        assert time.monotonic() - moved < 3.5, "too slow to tell"
        np.testing.assert_array_equal(pinned.ids, opened[0].search(queries, 5).ids_QK)
        assert table.texts == [opened[0].shard_of(int(i)).text(np.asarray([i]))[0] for i in pinned.ids.ravel()]

        def held() -> list[set[str]]:
            return [{item.snapshot for item in r.snapshots} for r in admin.list(DATABASE)[0].replicas]

        support.wait_for(lambda: held() == [set(ids[1:])] * 2, "old edition unloaded")
        with pytest.raises(PreconditionError) as retired:
            client.search(DATABASE, queries, 5, snapshot=ids[0])
        assert retired.value.reason is Reason.SNAPSHOT_RETIRED


def flipped(folder: Path) -> str:
    vectors = next(folder.glob("shard-*/vectors.*"))
    data = bytearray(vectors.read_bytes())
    data[len(data) // 2] ^= 1
    vectors.write_bytes(data)
    return rf"{vectors.name}.*checksum"


def truncated(folder: Path) -> str:
    tokens = folder / "shard-00001" / "tokens.bin"
    os.truncate(tokens, tokens.stat().st_size - 1)
    return r"tokens\.bin"


def with_swapped_shards(folder: Path) -> str:
    (folder / "shard-00000").rename(folder / "other")
    (folder / "shard-00001").rename(folder / "shard-00000")
    (folder / "other").rename(folder / "shard-00001")
    return "shard-0000[01]"


def of_another_dimension(folder: Path) -> str:
    """An index of wider vectors, of which the manifest has size and checksum."""
    manifest = Manifest.read(folder)
    name = "shard-00000/lists.faiss"
    rows = manifest.shards[0].rows
    write_flat(folder / name, DIMENSION + 8, [np.ones((rows, DIMENSION + 8), np.float32)])
    entry = FileEntry((folder / name).stat().st_size, file_digests(folder / name)[0])
    (folder / "manifest.json").write_bytes(replace(manifest, files={**manifest.files, name: entry}).to_bytes())
    return rf"holds {rows} vectors of {DIMENSION + 8} elements, the manifest says {rows} of {DIMENSION}"


def test_corrupt_candidates_are_given_up_and_the_next_one_swaps(
    tmp_path: Path, place: str, editions: tuple[Path, Path], queries: np.ndarray
) -> None:
    with (
        support.cluster(tmp_path, place, "--load-retry-s", "1000", "--drain-s", "0") as (router, *_),
        AdminClient(router.address) as admin,
        RetrieverClient(router.address) as client,
    ):
        old = admin.register(DATABASE, str(editions[0])).snapshot
        move(admin, old)
        before = client.search(DATABASE, queries, 5)

        def held(snapshot: str) -> list[admin_pb2.ReplicaSnapshot]:
            (state,) = admin.list(DATABASE)
            return [item for replica in state.replicas for item in replica.snapshots if item.snapshot == snapshot]

        def errors(snapshot: str) -> list[str]:
            return [item.error for item in held(snapshot) if item.state == "failed"]

        for damage in (of_another_dimension, truncated, with_swapped_shards, flipped):
            copy = shutil.copytree(editions[1], tmp_path / damage.__name__)
            message = damage(copy)
            damaged = admin.register(DATABASE, str(copy)).snapshot
            # Copies of one edition have one id: the replica whose shards were whole has to let go of them.
            support.wait_for(lambda: not held(damaged), "the last copy is forgotten")  # noqa: B023
            admin.prepare(DATABASE, damaged)
            support.wait_for(lambda: bool(errors(damaged)), "a replica reports that it failed")  # noqa: B023
            assert re.search(message, errors(damaged)[0], re.DOTALL), errors(damaged)
            with pytest.raises(PreconditionError, match=f"is not ready.*{message}") as refused:
                admin.activate(DATABASE, damaged)
            assert refused.value.reason is Reason.NOT_READY
            with pytest.raises(ConflictError, match="already being moved"):
                admin.prepare(DATABASE, old)
            state = admin.abort(DATABASE)
            assert (state.live, state.epoch, state.candidate) == (old, 1, "")
            assert admin.abort(DATABASE).candidate == "", "once more changes nothing"
            after = client.search(DATABASE, queries, 5)
            assert (after.snapshot, after.ids.tolist()) == (old, before.ids.tolist())

        # The whole copy, in another folder, has the same id as the last.
        new = admin.register(DATABASE, str(editions[1])).snapshot
        assert new == damaged
        support.wait_for(lambda: not errors(new), "the failed load is forgotten")
        move(admin, new)
        assert client.search(DATABASE, queries, 5).snapshot == new


def test_a_repaired_copy_in_another_folder_is_loaded_without_an_abort(
    tmp_path: Path, registry: Path, editions: tuple[Path, Path]
) -> None:
    damaged = shutil.copytree(editions[1], tmp_path / "damaged")
    next(damaged.glob("shard-*/vectors.*")).unlink()
    with (
        support.cluster(tmp_path, registry, "--load-retry-s", "0.2") as (router, *_),
        AdminClient(router.address) as admin,
    ):
        move(admin, admin.register(DATABASE, str(editions[0])).snapshot)
        new = admin.register(DATABASE, str(damaged)).snapshot
        admin.prepare(DATABASE, new)
        time.sleep(0.5)
        with pytest.raises(PreconditionError):
            admin.activate(DATABASE, new)
        admin.register(DATABASE, str(editions[1]))
        move(admin, new)
        assert admin.list(DATABASE)[0].live == new
