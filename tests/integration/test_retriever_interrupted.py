"""Processes that stop and come back while a swap goes on (docs/adr/0005), under load: nothing fails, nothing is mixed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from openbook_core.clients import AdminClient, RetrieverClient
from openbook_database.registry import open_registry
from openbook_database.snapshot import Snapshot

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, Load, Process, TinyEncoder, move

QUERIES = TinyEncoder().encode(["president of the senate", "railway on the coast", "old 7 harvest", "export"])


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    folder = tmp_path_factory.mktemp("editions")
    return [Snapshot.open(support.build_edition(folder, name)) for name in ("old", "new", "third")]


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    os.kill(process.popen.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.popen.pid, signal.SIGCONT)


def wait_until_seen(load: Load, snapshot: str) -> None:
    support.wait_for(lambda: load.replies[0][-1:] != [] and load.replies[0][-1][1].snapshot == snapshot, "it has moved")


def exactly(load: Load, editions: list[Snapshot]) -> set[str]:
    """The snapshots that answered; fails where a request failed, was mixed, or an epoch went back."""
    assert load.failures == []
    assert load.mixed({edition.id: edition for edition in editions}) == []
    assert not load.epochs_go_back()
    return {result.snapshot for thread in load.replies for _, result in thread}


def test_routers_restart_one_after_the_other_while_a_snapshot_is_prepared_and_made_live(
    tmp_path: Path, place: str, editions: list[Snapshot]
) -> None:
    """Row 16: callers of the router that stays notice nothing; the new one answers as soon as it says that it is ready."""
    old, new, third = editions
    log = tmp_path / "log.jsonl"
    with support.cluster(tmp_path, place, routers=2) as processes:
        with AdminClient(processes[0].address) as admin:
            for edition in editions:
                admin.register(DATABASE, str(edition.path))
            move(admin, old.id)
        registry = open_registry(place)
        support.wait_for(lambda: [router.epoch for router in registry.routers(DATABASE)] == [1, 1], "both route")
        for stays, goes, snapshot, epoch in ((1, 0, new.id, 2), (0, 1, third.id, 3)):
            load = Load(processes[stays].address, QUERIES)
            with load.running(), AdminClient(processes[stays].address) as admin:
                admin.prepare(DATABASE, snapshot)
                assert processes[goes].stop() == 0
                assert move(admin, snapshot) == epoch
                processes[goes] = support.start_process(place, log, "--role", "router")
                with RetrieverClient(processes[goes].address) as client:
                    result = client.search(DATABASE, QUERIES, 3)
                assert (result.snapshot, result.epoch) == (snapshot, epoch)
                wait_until_seen(load, snapshot)
            assert snapshot in exactly(load, editions)


def test_a_replica_that_hangs_across_a_swap_is_not_waited_for_and_answers_exactly_when_it_wakes(
    tmp_path: Path, place: str, editions: list[Snapshot]
) -> None:
    """Row 6: it is taken out as its reports run out, the swap goes on without it, and it loads what it missed."""
    old, new, _ = editions
    with (
        support.cluster(tmp_path, place, replicas=2) as processes,
        AdminClient(processes[0].address) as admin,
    ):
        for edition in (old, new):
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        registry = open_registry(place)

        def ready(snapshot: str) -> int:
            return sum(bool(replica.serves(snapshot)) for replica in registry.replicas(DATABASE))

        support.wait_for(lambda: ready(old.id) == 2 * support.MEMBERS, "all replicas serve")
        load = Load(processes[0].address, QUERIES)
        with load.running():
            support.wait_for(lambda: all(len(thread) > 20 for thread in load.replies), "the load is under way")
            with stopped(processes[1]):
                assert move(admin, new.id) == 2
                last = [len(thread) for thread in load.replies]
                support.wait_for(
                    lambda: all(len(t) > n + 20 for t, n in zip(load.replies, last, strict=True)), "answers go on"
                )
            support.wait_for(lambda: ready(new.id) == 2 * support.MEMBERS, "it serves the new one, too")
        assert exactly(load, editions) == {old.id, new.id}


def test_a_request_that_began_before_the_commit_is_answered_from_what_it_began_with(
    tmp_path: Path, place: str, editions: list[Snapshot]
) -> None:
    """Row 10: one shard is stopped while it is asked, the swap is made, and the shard goes on."""
    old, new, _ = editions
    with (
        support.cluster(tmp_path, place, "--drain-s", "30") as processes,
        AdminClient(processes[0].address) as admin,
        RetrieverClient(processes[0].address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        for edition in (old, new):
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        assert client.search(DATABASE, QUERIES, 3).epoch == 1
        admin.prepare(DATABASE, new.id)
        registry = open_registry(place)
        support.wait_for(lambda: all(r.serves(new.id) for r in registry.replicas(DATABASE)), "both have it")
        with stopped(processes[1]):
            begun = pool.submit(client.search, DATABASE, QUERIES, 3, timeout_s=120)
            time.sleep(0.5)
            assert not begun.done()
            assert admin.activate(DATABASE, new.id).epoch == 2
        result = begun.result()
        assert (result.snapshot, result.epoch) == (old.id, 1)
        assert result.ids.tolist() == old.search(QUERIES, 3).ids_QK.tolist()
        support.wait_for(lambda: client.search(DATABASE, QUERIES, 3).epoch == 2, "later ones come from the new one")
