"""Faults of the swap (docs/adr/0005) against real processes under load: no request fails, every reply is exact.

Coordinators and registries that fail are in `test_retriever_coordinators.py`.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import DeadlineError, OpenbookError, Reason
from openbook_database.registry import open_registry
from openbook_database.registry.directory import DirectoryRegistry
from openbook_database.registry.records import LoadState, ReplicaReport, ReplicaSnapshot
from openbook_database.snapshot import Snapshot
from openbook_proto.v1.admin_pb2 import ReplicaSnapshot as ReplicaSnapshotMessage

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from link import Link
from retriever_support import DATABASE, Load, Process, TinyEncoder, move

QUERIES = TinyEncoder().encode(["president of the senate", "railway on the coast", "old 7 harvest", "export"])


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    """Two shards, then three, then two."""
    folder = tmp_path_factory.mktemp("editions")
    shards = {"old": 2, "new": 3, "third": 2}
    return [Snapshot.open(support.build_edition(folder, name, shards=count)) for name, count in shards.items()]


@contextmanager
def unharmed(router: str, editions: list[Snapshot]) -> Iterator[Load]:
    """A load that nothing may fail or mix, and whose epochs never go back."""
    load = Load(router, QUERIES)
    with load.running():
        support.wait_for(lambda: all(len(thread) > 3 for thread in load.replies), "the load is under way")
        yield load
        last = [len(thread) for thread in load.replies]
        support.wait_for(
            lambda: all(len(thread) > n + 5 for thread, n in zip(load.replies, last, strict=True)), "it goes on"
        )
    assert load.failures == []
    assert load.mixed({edition.id: edition for edition in editions}) == []
    assert not load.epochs_go_back()


def kill(process: Process) -> None:
    process.popen.kill()
    process.popen.wait()


def held(admin: AdminClient, snapshot: str) -> list[str]:
    (state,) = admin.list(DATABASE)
    return [item.state for replica in state.replicas for item in replica.snapshots if item.snapshot == snapshot]


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def test_replicas_die_serving_loading_and_draining_and_the_shard_count_changes(
    tmp_path: Path, place: str, editions: list[Snapshot]
) -> None:
    """Rows 4, 15 and 16: also a rolling restart of every replica while another snapshot is prepared and made live."""
    old, new, third = editions
    log = tmp_path / "log.jsonl"
    with (
        support.cluster(tmp_path, place, "--drain-s", "3", replicas=2) as processes,
        AdminClient(processes[0].address) as admin,
        RetrieverClient(processes[0].address) as client,
    ):
        for edition in editions:
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        support.wait_for(lambda: held(admin, old.id) == ["ready"] * 4, "all replicas serve")
        with unharmed(processes[0].address, editions) as load:
            kill(processes[1])  # serving; the other replica of its shards answers
            admin.prepare(DATABASE, new.id)
            kill(processes[2])  # loading
            assert move(admin, new.id) == 2
            for member in (0, 1):  # both come back in the drain of the old one, and load what is live
                processes[member + 1] = support.start_shard(place, log, member, "--drain-s", "3")
            support.wait_for(lambda: held(admin, new.id).count("ready") == 4, "all replicas serve the new one")
            # A rolling restart while the third is prepared and made live.
            admin.prepare(DATABASE, third.id)
            for number in range(1, 5):
                assert processes[number].stop() == 0
                processes[number] = support.start_shard(place, log, (number - 1) % 2, "--drain-s", "3")
                if number == 2:
                    assert move(admin, third.id) == 3
            support.wait_for(lambda: client.search(DATABASE, QUERIES, 3).epoch == 3, "the router has moved")
        assert {result.snapshot for thread in load.replies for _, result in thread} == {old.id, new.id, third.id}


def test_a_slow_shard_keeps_deadlines_and_a_cut_one_is_not_asked(
    tmp_path: Path, place: str, editions: list[Snapshot]
) -> None:
    """Row 6: one replica of everything is far away; its reports are made here, so that its link can be slowed down."""
    old = editions[0]
    registry = open_registry(place)
    registry.register(DATABASE, old.path)
    elsewhere = DirectoryRegistry(tmp_path / "elsewhere")
    elsewhere.register(DATABASE, old.path)
    log, stop = tmp_path / "log.jsonl", threading.Event()
    hidden = support.spawn(tmp_path / "elsewhere", log, "--role", "shard")
    with support.cluster(tmp_path, place) as processes, AdminClient(processes[0].address) as admin:
        processes.append(support.ready(hidden, log))
        elsewhere.prepare(DATABASE, old.id)
        support.wait_for(
            lambda: any(r.serves(old.id) == (0, 1) for r in elsewhere.replicas(DATABASE)), "the far one has loaded"
        )
        with Link(int(processes[-1].address.rpartition(":")[2]), delay_s=0.7) as link:
            ready = (ReplicaSnapshot(old.id, LoadState.READY, (0, 1)),)
            report = ReplicaReport(DATABASE, "far", f"127.0.0.1:{link.port}", 1, ready)

            def beat() -> None:
                while not stop.wait(0.3):
                    registry.report_replica(report)

            thread = threading.Thread(target=beat)
            thread.start()
            try:
                registry.report_replica(report)
                move(admin, old.id)
                with (
                    unharmed(processes[0].address, editions),
                    RetrieverClient(processes[0].address) as impatient,
                ):
                    asked = link.forwarded
                    support.wait_for(lambda: link.forwarded > asked, "the far one is asked")
                    for _ in range(30):
                        begun = time.monotonic()
                        try:
                            impatient.search(DATABASE, QUERIES, 3, timeout_s=1.2)
                            break
                        except DeadlineError:
                            assert time.monotonic() - begun < 6, "a deadline is kept"
                    else:
                        raise AssertionError("the near replica was never in time")
                    link.cut()
            finally:
                stop.set()
                thread.join()


def test_a_full_disk_stops_changes_and_no_answers(tmp_path: Path, editions: list[Snapshot]) -> None:
    """Row 12: no process can write a byte; reports expire, answers go on; then the swap that was refused is done."""
    old, new, _ = editions
    with (
        support.cluster(tmp_path, tmp_path / "registry", "--heartbeat-s", "0.3") as processes,
        AdminClient(processes[0].address) as admin,
    ):
        for edition in (old, new):
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        with unharmed(processes[0].address, editions):
            for process in processes:
                resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            with pytest.raises(OpenbookError, match="cannot be written"):
                admin.prepare(DATABASE, new.id)
            registry = DirectoryRegistry(tmp_path / "registry", ttl_s=1.0)
            support.wait_for(lambda: not registry.replicas(DATABASE), "reports expire")
            assert registry.control(DATABASE).candidate is None
            for process in processes:
                unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, unlimited)
            assert move(admin, new.id) == 2
            # What serves has its files open: unlinking them harms nobody.
            lists = new.path / "shard-00000" / "lists.faiss"
            lists.rename(lists.with_suffix(".away"))
            time.sleep(0.3)
            lists.with_suffix(".away").rename(lists)


def test_a_file_that_is_truncated_while_it_is_served_fails_no_request(
    tmp_path: Path, editions: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 5 and 12: the process that maps it dies, another one's copy answers, and what is broken is not loaded again."""
    old = editions[0]
    monkeypatch.setattr(support, "MEMBERS", 1)
    broken = Path(shutil.copytree(old.path, tmp_path / "copy"))
    registry, log, options = tmp_path / "registry", tmp_path / "log.jsonl", ("--load-retry-s", "0.3")
    with support.cluster(tmp_path, registry, *options) as processes, AdminClient(processes[0].address) as admin:
        admin.register(DATABASE, str(broken))
        move(admin, old.id)
        admin.register(DATABASE, str(old.path))
        processes.append(support.start_process(registry, log, "--role", "shard", *options))
        support.wait_for(lambda: held(admin, old.id) == ["ready"] * 2, "both copies are served")
        admin.register(DATABASE, str(broken))
        with unharmed(processes[0].address, editions):
            os.truncate(broken / "shard-00000" / "tokens.bin", 0)
            assert processes[1].popen.wait(60) == -signal.SIGBUS
            processes[1] = support.start_process(registry, log, "--role", "shard", *options)

            def of_it() -> ReplicaSnapshotMessage:
                (found,) = [
                    each
                    for replica in admin.list(DATABASE)[0].replicas
                    for each in replica.snapshots
                    if replica.address == processes[1].address
                ]
                return found

            assert (of_it().state, of_it().reason) == ("failed", Reason.CORRUPT)
            assert "tokens.bin: 0 bytes" in of_it().error
            admin.register(DATABASE, str(old.path))
            support.wait_for(lambda: of_it().state == "ready", "it serves the copy that is whole")


# Only registries read the wall clock; what it says is shifted by the seconds in a file.
CLOCK = """
import sys, time
from openbook_database.registry.directory import DirectoryRegistry
from openbook_retriever.__main__ import main

file = sys.argv.pop(1)

def shifted():
    try:
        with open(file) as stream:
            return time.time() + float(stream.read())
    except OSError:
        return time.time()

made = DirectoryRegistry.__init__

def init(self, root, *, ttl_s=5.0, clock=None):
    made(self, root, ttl_s=ttl_s, clock=shifted)

DirectoryRegistry.__init__ = init
sys.exit(main())
"""


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps_fails_no_request(tmp_path: Path, editions: list[Snapshot], hours: int) -> None:
    """Row 14, directory: a router's and a shard's clock jump. A swap may have to be asked for again; nothing else."""
    old, new, _ = editions
    log = tmp_path / "log.jsonl"
    clocks = [tmp_path / "router-clock", tmp_path / "shard-clock"]

    registry = tmp_path / "registry"
    popens = [
        support.spawn(registry, log, "--role", role, program=("-c", CLOCK, str(clock)))
        for role, clock in zip(("router", "shard"), clocks, strict=True)
    ]
    processes = [support.ready(popen, log) for popen in popens]
    try:
        with AdminClient(processes[0].address) as admin:
            for edition in (old, new):
                admin.register(DATABASE, str(edition.path))
            move(admin, old.id)
            for clock in clocks:
                with unharmed(processes[0].address, editions):
                    admin.prepare(DATABASE, new.id)
                    (tmp_path / "shift").write_text(str(3600.0 * hours))
                    (tmp_path / "shift").replace(clock)
                    time.sleep(1.0)
                    assert admin.list(DATABASE)[0].live in (old.id, new.id)
                    clock.unlink()
                    support.wait_for(lambda: bool(admin.list(DATABASE)[0].replicas), "the shard reports again")
                    admin.abort(DATABASE)
            epoch = admin.list(DATABASE)[0].epoch
            assert move(admin, new.id) == epoch + 1
    finally:
        for process in processes:
            process.stop()


def test_a_check_that_hangs_is_given_up_and_a_later_swap_works(
    tmp_path: Path, place: str, editions: list[Snapshot]
) -> None:
    """Row 3: the processes that check files are stopped; what serves does not notice, and the swap that is ended can be
    made again."""
    old, new, _ = editions
    with support.cluster(tmp_path, place) as processes, AdminClient(processes[0].address) as admin:
        for edition in (old, new):
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        with unharmed(processes[0].address, editions):
            checkers = [child for shard in processes[1:] for child in children(shard.popen.pid)]
            assert len(checkers) == support.MEMBERS, "each shard keeps the process that checked the first one"
            for checker in checkers:
                os.kill(checker, signal.SIGSTOP)
            admin.prepare(DATABASE, new.id)
            support.wait_for(lambda: held(admin, new.id) == ["loading"] * support.MEMBERS, "both are at it")
            admin.abort(DATABASE)
            support.wait_for(lambda: held(admin, new.id) == [], "their loads are given up")
            assert move(admin, new.id) == 2
