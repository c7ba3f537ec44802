"""Coordinators that die or are overtaken, registries that lose or forget, a router that is cut off: against processes,
under load, on both registries where that makes a difference."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import redis

from openbook_core.clients import AdminClient, RetrieverClient, SearchResult
from openbook_core.errors import NotFoundError, OpenbookError, UnavailableError
from openbook_database.registry import open_registry
from openbook_database.registry.local_redis import LocalRedis
from openbook_database.snapshot import Snapshot

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from link import Link
from retriever_support import DATABASE, Load, TinyEncoder, move

QUERIES = TinyEncoder().encode(["president of the senate", "railway on the coast", "old 7 harvest", "export"])

# Says what it has done, and waits for a line before each next step.
COORDINATOR = """
import sys, time
from openbook_core.errors import OpenbookError
from openbook_database.registry import open_registry
from openbook_database.registry.readiness import every_shard_ready

def step(text):
    print(text, flush=True)
    sys.stdin.readline()

def checked(known, replicas):
    while True:
        try:
            every_shard_ready(known, registry.replicas("book"))
            break
        except OpenbookError:
            time.sleep(0.05)
    step("checked")

registry, snapshot = open_registry(sys.argv[1]), sys.argv[2]
step("begun")
try:
    registry.prepare("book", snapshot)
    step("prepared")
    print("live", registry.activate("book", snapshot, ready_check=checked).epoch, flush=True)
except OpenbookError as error:
    print("refused", type(error).__name__, flush=True)
"""


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    folder = tmp_path_factory.mktemp("editions")
    return [Snapshot.open(support.build_edition(folder, name)) for name in ("old", "new", "third")]


@contextmanager
def unharmed(router: str, editions: list[Snapshot]) -> Iterator[Load]:
    load = Load(router, QUERIES)
    with load.running():
        support.wait_for(lambda: all(len(thread) > 3 for thread in load.replies), "the load is under way")
        yield load
    assert load.failures == []
    assert load.mixed({edition.id: edition for edition in editions}) == []
    assert not load.epochs_go_back()


def answer(client: RetrieverClient) -> SearchResult | OpenbookError:
    try:
        return client.search(DATABASE, QUERIES, 3)
    except OpenbookError as error:
        return error


class Coordinator:
    """A process that goes as far as it is told."""

    def __init__(self, place: str, snapshot: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", COORDINATOR, place, snapshot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.said() == "begun"

    def said(self) -> str:
        return self._pipe(self.popen.stdout).readline().strip()

    def go_on(self) -> None:
        stdin = self._pipe(self.popen.stdin)
        stdin.write("\n")
        stdin.flush()

    def next(self) -> str:
        self.go_on()
        return self.said()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def test_coordinators_are_killed_at_each_step_and_a_paused_one_is_fenced_off(
    tmp_path: Path, place: str, editions: list[Snapshot]
) -> None:
    """Rows 1 and 2."""
    old, new, third = editions
    with support.cluster(tmp_path, place) as processes, AdminClient(processes[0].address) as admin:
        for edition in editions:
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        with unharmed(processes[0].address, editions):
            for steps in (["prepared"], ["prepared", "checked"], ["prepared", "checked", "live 2"]):
                coordinator = Coordinator(place, new.id)
                assert [coordinator.next() for _ in steps] == steps
                coordinator.kill()
                (state,) = admin.list(DATABASE)
                assert (state.live, state.epoch) == ((new.id, 2) if steps[-1] == "live 2" else (old.id, 1))
                if steps == ["prepared"]:
                    admin.abort(DATABASE)
            assert move(admin, new.id) == 2, "what was done is not done again"
            # One is stopped between its check and its compare-and-set; somebody else ends its swap and makes another.
            paused = Coordinator(place, old.id)
            assert (paused.next(), paused.next()) == ("prepared", "checked")
            os.kill(paused.popen.pid, signal.SIGSTOP)
            admin.abort(DATABASE)
            assert move(admin, third.id) == 3
            os.kill(paused.popen.pid, signal.SIGCONT)
            assert paused.next() == "refused ConflictError"
            paused.kill()
            (state,) = admin.list(DATABASE)
            assert (state.live, state.epoch) == (third.id, 3)


def test_a_redis_that_is_set_back_in_time_is_told(tmp_path: Path, editions: list[Snapshot]) -> None:
    """Row 8: a fail-over to a copy that lacks the last writes; two routers, one of which never saw the old record."""
    old, new, _ = editions
    with (
        LocalRedis(tmp_path / "redis") as server,
        support.cluster(tmp_path, server.url, routers=2) as processes,
        AdminClient(processes[0].address) as admin,
    ):
        for edition in (old, new):
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        client, key = redis.Redis(port=server.port), "openbook:book:control"
        earlier = client.get(key)
        assert json.loads(earlier)["epoch"] == 1
        registry = open_registry(server.url)
        support.wait_for(
            lambda: [router.epoch for router in registry.routers(DATABASE)] == [1, 1], "both routers route"
        )
        with unharmed(processes[1].address, editions) as load:
            move(admin, new.id)
            support.wait_for(
                lambda: {router.epoch for router in registry.routers(DATABASE)} == {2}, "both routers have moved"
            )
            for _ in range(2):
                client.set(key, earlier)
                support.wait_for(lambda: registry.control(DATABASE).epoch == 2, "the registry is told")
            assert admin.rollback(DATABASE).epoch == 3
            support.wait_for(lambda: load.replies[0][-1][1].epoch == 3, "the other router follows")
        assert "restore" in {entry.verb for entry in registry.audit(DATABASE)}


def test_a_router_that_is_cut_off_answers_from_what_it_knows_until_that_has_drained(
    tmp_path: Path, editions: list[Snapshot]
) -> None:
    """Row 9: while the shards hold what it knows nothing fails; then it refuses, mixes nothing, and follows when it can."""
    old, new, third = editions
    log = tmp_path / "log.jsonl"
    with (
        LocalRedis(tmp_path / "redis") as server,
        Link(server.port) as link,
        support.cluster(tmp_path, server.url, "--drain-s", "2") as processes,
        AdminClient(processes[0].address) as admin,
    ):
        far = support.start_process(f"redis://127.0.0.1:{link.port}", log, "--role", "router")
        processes.append(far)
        for edition in editions:
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        with RetrieverClient(far.address) as client:
            support.wait_for(lambda: getattr(answer(client), "epoch", 0) == 1, "it routes")
            with unharmed(far.address, editions) as load:
                link.cut()
                move(admin, new.id)  # the old one is the previous one: it stays
                time.sleep(0.5)
            assert {result.snapshot for thread in load.replies for _, result in thread} == {old.id}
            move(admin, third.id)
            expected = {edition.id: edition.search(QUERIES, 3) for edition in editions}

            def refused() -> bool:
                found = answer(client)
                if isinstance(found, UnavailableError):
                    return True
                assert isinstance(found, SearchResult)
                assert found.ids.tolist() == expected[found.snapshot].ids_QK.tolist()
                return False

            support.wait_for(refused, "what it knows is unloaded")
            link.mend()
            support.wait_for(lambda: getattr(answer(client), "snapshot", "") == third.id, "it follows again")


def test_after_everything_restarted_with_a_registry_that_forgot_epochs_go_on(
    tmp_path: Path, place: str, editions: list[Snapshot]
) -> None:
    """The ratchet on local disk: the highest record outlives every process and the registry's own."""
    old, new, _ = editions
    state = ("--state-dir", str(tmp_path / "state"))
    with support.cluster(tmp_path, place, *state, router=state) as processes:
        with AdminClient(processes[0].address) as admin:
            for edition in (old, new):
                admin.register(DATABASE, str(edition.path))
            move(admin, old.id)
            move(admin, new.id)
            support.wait_for(
                lambda: json.loads((tmp_path / "state" / "book.json").read_text())["control"]["epoch"] == 2,
                "it is kept",
            )
        assert [process.stop() for process in processes] == [0, 0, 0]
    if place.startswith("redis"):
        redis.Redis(port=int(place.rpartition(":")[2])).flushall()
        with pytest.raises(NotFoundError):
            open_registry(place).control(DATABASE)
    else:
        (tmp_path / "registry" / DATABASE / "control.json").unlink()
        assert open_registry(place).control(DATABASE).epoch == 0
    with support.cluster(tmp_path, place, *state, router=state) as processes:
        registry = open_registry(place)
        with AdminClient(processes[0].address) as admin, RetrieverClient(processes[0].address) as client:
            support.wait_for(lambda: getattr(answer(client), "snapshot", "") == new.id, "the live snapshot answers")
            assert client.search(DATABASE, QUERIES, 3).epoch == 2
            assert registry.control(DATABASE).epoch == 2
            assert admin.rollback(DATABASE).epoch == 3
    # A damaged file is told and passed over.
    (tmp_path / "state" / "book.json").write_text("{")
    shutil.copy(tmp_path / "state" / "book.json", tmp_path / "state" / "other.json")
    again = support.start_process(place, tmp_path / "log.jsonl", "--role", "router", *state)
    with RetrieverClient(again.address) as client:
        assert client.describe(DATABASE).epoch == 3
    assert again.stop() == 0
