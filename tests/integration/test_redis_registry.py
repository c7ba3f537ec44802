"""Redis as registry: passwords and wrong URLs, gone at the start, gone and come back empty under load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import redis

from openbook_cli.demo.registry import check_registry, new_registry
from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import ArgumentError, CorruptError, UnavailableError
from openbook_core.redis import RedisUrl
from openbook_database.manifest import Manifest
from openbook_database.registry import open_registry
from openbook_database.registry import redis as redis_registry
from openbook_database.registry.local_redis import LocalRedis
from openbook_database.registry.records import AuditEntry, ReplicaReport
from openbook_database.registry.redis import RedisRegistry
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, Load, TinyEncoder, move

PASSWORD = "p&ss/w:rd@1"
QUOTED = quote(PASSWORD, safe="")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with LocalRedis(tmp_path_factory.mktemp("redis"), password=PASSWORD) as running:
        yield running


def url(server: LocalRedis, secret: str = f":{QUOTED}@", rest: str = "") -> str:
    return f"redis://{secret}127.0.0.1:{server.port}{rest}"


# --- passwords and URLs ---


def test_the_password_comes_from_the_url_or_the_environment(
    server: LocalRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_registry(url(server)).list() == []
    assert open_registry(url(server, f"default:{QUOTED}@", "/3")).list() == []
    for secret in ("", ":wrong-one@", "nobody:wrong-one@"):
        with pytest.raises(ArgumentError, match=rf"Redis at 127\.0\.0\.1:{server.port} refuses") as caught:
            open_registry(url(server, secret))
        assert caught.value.field == "registry"
        assert "wrong-one" not in str(caught.value)
    monkeypatch.setenv("OPENBOOK_REDIS_PASSWORD", PASSWORD)
    assert open_registry(url(server, "")).list() == []
    assert PASSWORD not in repr(RedisUrl.parse(url(server), setting="registry"))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("redis://:secret@", "names no host"),
        ("redis://:secret@host/x", "'x' is no number"),
        ("redis://:secret@host/-1", "is no number"),
        ("redis://:secret@host:99999", "port"),
        ("redis://:secret@host:port", "port"),
        ("redis://:secret@host?prefx=a", "only option is prefix, not prefx"),
        ("reddis://:secret@host", "reddis:// is not known"),
    ],
)
def test_a_wrong_url_says_what_is_wrong_and_not_the_password(wrong: str, complaint: str) -> None:
    with pytest.raises(ArgumentError, match=complaint) as caught:
        open_registry(wrong)
    assert caught.value.field == "registry"
    assert "secret" not in str(caught.value)


def test_a_database_number_that_the_server_has_not(server: LocalRedis) -> None:
    with pytest.raises(ArgumentError, match="has no database 99") as caught:
        open_registry(url(server, rest="/99"))
    assert caught.value.field == "registry"


def test_databases_and_prefixes_are_apart(server: LocalRedis, tmp_path: Path) -> None:
    built = build_tiny_snapshot(tmp_path / "snapshot")
    open_registry(url(server, rest="/1?prefix=a:")).register("tiny", built.path)
    assert len(open_registry(url(server, rest="/1?prefix=a:")).list()) == 1
    assert open_registry(url(server, rest="/1?prefix=b:")).list() == []
    assert open_registry(url(server, rest="/2?prefix=a:")).list() == []


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ArgumentError, match=r"pip install 'openbook-database\[redis\]'"):
        open_registry("redis://localhost")


# --- what is stored ---


def test_damaged_records_are_named(server: LocalRedis, tmp_path: Path) -> None:
    registry = open_registry(url(server, rest="/4"))
    built = build_tiny_snapshot(tmp_path / "snapshot")
    registry.register("tiny", built.path)
    registry.prepare("tiny", built.snapshot_id)
    client = redis.Redis(port=server.port, db=4, password=PASSWORD)
    for damaged in ("{", "[]", '{"x": 1}', ""):
        client.set("openbook:tiny:control", damaged)
        with pytest.raises(CorruptError, match="openbook:tiny:control"):
            registry.control("tiny")
    client.delete("openbook:tiny:control")
    client.rpush("openbook:tiny:control", "a list")
    with pytest.raises(CorruptError, match=r"used by something else.*\?prefix="):
        registry.control("tiny")


def test_the_audit_is_capped_and_dead_names_are_forgotten(
    server: LocalRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    registry = RedisRegistry(url(server, rest="/5"), ttl_s=5, clock=lambda: clock.now)
    registry.register("tiny", build_tiny_snapshot(tmp_path / "snapshot").path)
    monkeypatch.setattr(redis_registry, "AUDIT_LENGTH", 3)
    for number in range(5):
        registry._append_audit("tiny", AuditEntry(number, "", "v", "", "done", 0))
    assert [entry.at for entry in registry.audit("tiny")] == [2, 3, 4]
    for number in range(20):
        clock.now += 10
        registry.report_replica(ReplicaReport("tiny", f"r{number}", "a", 0))
    client = redis.Redis(port=server.port, db=5, password=PASSWORD)
    assert client.hlen("openbook:tiny:replicas") == client.zcard("openbook:tiny:replicas:seen") == 5


def test_times_are_the_servers(server: LocalRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour wrong reports as well as any other."""
    registry = open_registry(url(server, rest="/6"))
    registry.register("tiny", build_tiny_snapshot(tmp_path / "snapshot").path)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    registry.report_replica(ReplicaReport("tiny", "r", "a", 0))
    monkeypatch.undo()
    (report,) = registry.replicas("tiny")
    assert abs(report.heartbeat - now) < 60


def test_a_server_of_the_demos_own_goes_with_it(tmp_path: Path) -> None:
    with new_registry("redis", tmp_path, keep=False) as place:
        registry = open_registry(place)
        assert registry.list() == []
    with pytest.raises(UnavailableError):
        registry.list()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArgumentError, match="--registry"):
        check_registry("rdeis")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        check_registry(place)


_OWNER = """
import sys, time
from pathlib import Path
from openbook_database.registry.local_redis import LocalRedis
server = LocalRedis(Path(sys.argv[1]))
if sys.argv[2] == "release":
    server.release()
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["follow", "release"])
def test_a_server_ends_with_a_killed_owner_unless_released(tmp_path: Path, kind: str) -> None:
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(tmp_path), kind], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.communicate()

    def lives() -> bool:
        status = Path(f"/proc/{pid}/stat")
        return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"

    if kind == "release":
        time.sleep(1)
        assert lives()
        os.kill(pid, signal.SIGTERM)
    support.wait_for(lambda: not lives(), "the server has ended")


# --- gone ---


@pytest.mark.parametrize("role", ["shard", "router"])
def test_gone_at_the_start(tmp_path: Path, role: str) -> None:
    with LocalRedis(tmp_path) as stopped:
        port = stopped.port
    place = f"redis://:{QUOTED}@127.0.0.1:{port}"
    ended = subprocess.run(
        [sys.executable, "-m", "openbook_retriever", "--role", role, "--registry", place],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert f"Redis at 127.0.0.1:{port} cannot be reached" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert QUOTED not in ended.stderr + ended.stdout
    assert PASSWORD not in ended.stderr + ended.stdout


def test_a_change_whose_outcome_is_not_known_says_so(tmp_path: Path) -> None:
    """The server hangs between a coordinator's reading and its writing."""
    built = build_tiny_snapshot(tmp_path / "snapshot")
    with LocalRedis(tmp_path / "redis") as server:
        registry = open_registry(server.url)
        registry.register("tiny", built.path)
        registry.prepare("tiny", built.snapshot_id)
        control = registry.control("tiny")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(UnavailableError, match="may or may not have been made"):
                registry._compare_and_set(control, control)
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_what_listens_there_is_no_redis(tmp_path: Path) -> None:
    router = support.start_process(tmp_path / "registry", tmp_path / "log.jsonl", "--role", "router")
    try:
        with pytest.raises(UnavailableError, match=router.address):
            open_registry(f"redis://{router.address}")
    finally:
        router.stop()


def test_gone_and_come_back_empty_under_load(tmp_path: Path) -> None:
    editions = [support.build_edition(tmp_path, edition) for edition in ("old", "new")]
    snapshots = {opened.id: opened for opened in map(Snapshot.open, editions)}
    old, new = snapshots
    queries = TinyEncoder().encode(["president of the senate", "railway on the coast", "old 7 harvest", "export"])
    server = LocalRedis(tmp_path / "redis", password=PASSWORD)
    router_options = ("--heartbeat-s", "0.3")
    try:
        with (
            support.cluster(
                tmp_path, server.url, "--drain-s", "0", *router_options, router=router_options
            ) as processes,
            AdminClient(processes[0].address) as admin,
            RetrieverClient(processes[0].address) as client,
        ):
            for path in editions:
                admin.register(DATABASE, str(path))
            assert (move(admin, old), move(admin, new)) == (1, 2)
            load = Load(processes[0].address, queries)
            with load.running():
                time.sleep(0.3)
                # It hangs: nothing waits for it.
                os.kill(server.pid, signal.SIGSTOP)
                time.sleep(2.5)
                started = time.monotonic()
                assert client.search(DATABASE, queries, 4).epoch == 2
                assert time.monotonic() - started < 1.5
                os.kill(server.pid, signal.SIGCONT)
                # It is gone, for longer than reports live; what was loaded stays, the previous snapshot too.
                server.kill()
                time.sleep(6)
                assert client.search(DATABASE, queries, 4).snapshot == new
                assert client.search(DATABASE, queries, 4, snapshot=old).snapshot == old
                with pytest.raises(UnavailableError, match=rf"Redis at 127\.0\.0\.1:{server.port} cannot be reached"):
                    admin.list(DATABASE)
                # It comes back empty, and is told.
                server = LocalRedis(tmp_path / "redis", password=PASSWORD, port=server.port)
                registry = open_registry(server.url)
                support.wait_for(lambda: bool(registry.list()), "the database is in the registry again")
                support.wait_for(lambda: len(registry.replicas(DATABASE)) == 2, "the replicas report again")
                control = registry.control(DATABASE)
                assert (control.epoch, control.live, control.previous) == (2, new, old)
                assert registry.contract(DATABASE) == Manifest.read(editions[0]).contract
                # And the next moves are the next epochs; a new shard finds what it has to load.
                assert admin.rollback(DATABASE).epoch == 3
                assert move(admin, new) == 4
                processes.append(support.start_shard(server.url, tmp_path / "log.jsonl", 0))
                support.wait_for(
                    lambda: sum(new in [s.snapshot for s in r.snapshots] for r in registry.replicas(DATABASE)) == 3,
                    "a new shard has loaded the live snapshot",
                )
                time.sleep(0.3)
            assert registry.audit(DATABASE)[0].verb == "restore"
            assert [process.stop() for process in processes] == [0, 0, 0, 0]
    finally:
        server.stop()
    assert load.failures == []
    assert load.mixed(snapshots) == []
    assert not load.epochs_go_back()
    assert {result.epoch for thread in load.replies for _, result in thread} == {2, 3, 4}
    log = (tmp_path / "log.jsonl").read_text()
    assert "restored" in log
    assert "unloaded" not in log
    assert QUOTED not in log and PASSWORD not in log
