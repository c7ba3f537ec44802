"""A shard process checks files in a child: what crashes it, takes its memory or is slow is not the server's trouble."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openbook_core.clients import AdminClient
from openbook_core.errors import CorruptError, OpenbookError, Reason
from openbook_database.registry.records import KnownSnapshot
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot
from openbook_proto.v1 import admin_pb2
from openbook_retriever import loading
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.loading import GivenUpError, Loader

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, Load, TinyEncoder, move


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("editions")
    return [support.build_edition(folder, name) for name in ("old", "new")]


def known(path: Path) -> KnownSnapshot:
    manifest = Snapshot.open(path, "sizes", shards=[]).manifest
    return KnownSnapshot(manifest.snapshot_id, str(path), len(manifest.shards), manifest.documents, manifest.chunks)


def loader(**options: object) -> Loader:
    return Loader(RetrieverConfig.parse({"role": "shard", "registry": "unused", "check_nice": 0, **options}))


def test_what_is_whole_is_mapped(editions: list[Path]) -> None:
    opened, _ = loader().load(known(editions[0]), (0, 2))
    assert [shard.number for shard in opened.shards] == [0, 2]


def test_snapshots_with_one_tokenizer_share_it_in_memory(editions: list[Path], tmp_path: Path) -> None:
    one = loader()
    old, new = (one.load(known(path), (0,))[0] for path in editions)
    assert old.tokenizer is new.tokenizer
    other = build_tiny_snapshot(tmp_path / "other").path
    assert one.load(known(other), (0,))[0].tokenizer is not old.tokenizer
    assert one.load(known(editions[0]), (0,))[0].tokenizer.fingerprint == old.tokenizer.fingerprint


def test_damage_and_another_snapshot_are_named(editions: list[Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(editions[0], tmp_path / "damaged"))
    index = damaged / "shard-00001" / "lists.faiss"
    data = bytearray(index.read_bytes())
    data[-3] ^= 4
    index.write_bytes(data)
    with pytest.raises(CorruptError, match=r"lists\.faiss: checksum") as caught:
        loader().load(known(damaged), (1,))
    assert caught.value.reason is Reason.CORRUPT
    loader().load(known(damaged), (0, 2))
    with pytest.raises(OpenbookError, match="expected snapshot"):
        loader().load(KnownSnapshot("0" * 64, str(editions[0]), 3, 1, 1), (0,))


CRASH = """#!/bin/sh
exec %s -c "
import ctypes, os, signal, sys
from openbook_retriever import check
def crash(request):
    os.write(2, b'%s')
    os.kill(os.getpid(), %d)
check.check = crash
sys.exit(check.serve())
"
"""


@pytest.mark.parametrize(
    ("ended_by", "words", "reason"),
    [
        (signal.SIGSEGV, "", Reason.CORRUPT),
        (signal.SIGABRT, "terminate called: std::bad_alloc", Reason.OUT_OF_MEMORY),
        (signal.SIGKILL, "", Reason.OUT_OF_MEMORY),
    ],
)
def test_a_check_that_crashes_says_how_and_the_next_one_works(
    editions: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended_by: signal.Signals,
    words: str,
    reason: Reason,
) -> None:
    crash = tmp_path / "crash"
    crash.write_text(CRASH % (sys.executable, words, ended_by.value))
    crash.chmod(0o755)
    one = loader()
    with monkeypatch.context() as patched:
        patched.setattr(loading.sys, "executable", str(crash))
        for _ in range(2):
            with pytest.raises(OpenbookError) as caught:
                one.load(known(editions[0]), (0,))
            assert caught.value.reason is reason
            assert str(editions[0]) in caught.value.message
    one.stop()


def test_a_checker_that_is_gone_is_started_again(editions: list[Path]) -> None:
    one = loader()
    one.load(known(editions[0]), (0,))
    assert one._checker is not None
    one._checker.kill()
    one._checker.wait()
    one.load(known(editions[1]), (0,))
    one.stop()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not compare whole sessions")
def test_the_session_that_checks_stands_back_as_a_whole(editions: list[Path]) -> None:
    mine = Path("/proc/self/autogroup").read_text()
    one = loader(check_nice=7)
    one.load(known(editions[0]), (0,))
    assert one._checker is not None
    assert Path(f"/proc/{one._checker.pid}/autogroup").read_text().split()[1:] == ["nice", "7"]
    assert Path("/proc/self/autogroup").read_text() == mine
    one.stop()


def test_a_check_that_hangs_can_be_given_up(editions: list[Path]) -> None:
    one, snapshot = loader(), known(editions[1])
    one.load(known(editions[0]), (0,))
    assert one._checker is not None
    os.kill(one._checker.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(one.load, snapshot, (0,))
        support.wait_for(lambda: bool(one._checker), "the check has begun")
        one.give_up({"another"})
        assert not under_way.done()
        one.give_up({snapshot.snapshot})
        with pytest.raises(GivenUpError):
            under_way.result(240)
    assert one.load(snapshot, (0,))[0].id == snapshot.snapshot
    one.stop()


def test_too_little_memory_for_a_check_is_told(editions: list[Path]) -> None:
    with pytest.raises(OpenbookError) as caught:
        loader(check_memory_mb=0.001).load(known(editions[0]), (0, 1, 2))
    assert caught.value.reason is Reason.OUT_OF_MEMORY


def test_a_loader_that_is_stopped_checks_nothing(editions: list[Path]) -> None:
    stopped = loader()
    stopped.stop()
    with pytest.raises(OpenbookError, match="stopping"):
        stopped.load(known(editions[0]), (0,))


def test_a_check_ends_with_its_parent(editions: list[Path]) -> None:
    command = [sys.executable, "-m", "openbook_retriever.check", "--serve"]
    checker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out, _ = checker.communicate(json.dumps({"folder": str(editions[0])}) + "\n", timeout=60)
    assert checker.returncode == 0
    assert out == "" or "seconds" in json.loads(out), "it may have ended before it had an answer"


def test_one_check_by_hand(editions: list[Path]) -> None:
    command = [sys.executable, "-m", "openbook_retriever.check", str(editions[0])]
    done = subprocess.run([*command, "--shards", "0", "2"], capture_output=True, text=True, timeout=400)
    assert (done.returncode, list(json.loads(done.stdout))) == (0, ["seconds"])
    done = subprocess.run([*command, "--snapshot", "0" * 64], capture_output=True, text=True, timeout=400)
    assert done.returncode == 1
    assert json.loads(done.stdout)["reason"] == "CORRUPT"


def _held(admin: AdminClient, snapshot: str) -> list[admin_pb2.ReplicaSnapshot]:
    (state,) = admin.list(DATABASE)
    return [held for replica in state.replicas for held in replica.snapshots if held.snapshot == snapshot]


def test_a_snapshot_that_does_not_fit_is_refused_and_the_old_one_serves_on(
    tmp_path: Path, editions: list[Path]
) -> None:
    """Row 7 of the faults: no replica has room for two; the swap is given up, the numbers are told."""
    old, new = (Snapshot.open(path) for path in editions)
    largest = max(
        sum(entry.size for entry in old.manifest.mapped_files([n for n in range(3) if n % 2 == member]).values())
        for member in range(2)
    )
    queries = TinyEncoder().encode(["president of the senate", "railway on the coast"])
    limit = ("--memory-limit-mb", str(1.5 * largest / 1e6), "--load-retry-s", "1000")
    with (
        support.cluster(tmp_path, tmp_path / "registry", *limit) as (router, *_),
        AdminClient(router.address) as admin,
    ):
        for path in editions:
            admin.register(DATABASE, str(path))
        move(admin, old.id)
        load = Load(router.address, queries)
        with load.running():
            admin.prepare(DATABASE, new.id, force=True)
            support.wait_for(lambda: any(held.state == "failed" for held in _held(admin, new.id)), "it is refused")
            refused = next(held for held in _held(admin, new.id) if held.state == "failed")
            assert "the limit is" in refused.error
            admin.abort(DATABASE, new.id)
        assert load.failures == []
        assert load.mixed({old.id: old, new.id: new}) == []
