"""What a swap was asked with, seen from outside: deadlines, canaries, limits, standby, memory; on both registries."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from openbook_cli.swap import swap_terms, swap_to
from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import ArgumentError, PreconditionError, Reason, UnavailableError
from openbook_database.registry import open_registry
from openbook_database.registry.records import Control
from openbook_database.snapshot import Snapshot

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, Load, TinyEncoder, move

QUERIES = TinyEncoder().encode(["president of the senate", "railway on the coast", "old 7 harvest"])


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    folder = tmp_path_factory.mktemp("editions")
    return [Snapshot.open(support.build_edition(folder, name)) for name in ("old", "new")]


def test_deadline_canary_limits_and_standby(tmp_path: Path, place: str, editions: list[Snapshot]) -> None:
    old, new = editions
    snapshots = {old.id: old, new.id: new}
    with (
        support.cluster(tmp_path, place, "--drain-s", "0.2") as processes,
        AdminClient(processes[0].address) as admin,
        RetrieverClient(processes[0].address) as client,
    ):
        router = processes[0].address
        for edition in editions:
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        registry = open_registry(place)

        # A canary answers its share, exactly, and fails nothing; its command is killed, and the routers end it.
        load = Load(router, QUERIES)
        options = ["--deadline", "600", "--canary-percent", "50", "--canary-seconds", "1000000"]
        command = [sys.executable, "-m", "openbook_cli", "db", "swap", DATABASE, new.id, "--router", router, *options]
        with load.running():
            swap = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            support.wait_for(
                lambda: len({r.snapshot for thread in load.replies for _, r in thread[-20:]}) == 2, "the canary answers"
            )
            os.kill(swap.pid, signal.SIGKILL)
            swap.wait()
            control = registry.control(DATABASE)
            assert control.candidate == new.id
            assert registry._compare_and_set(control, _due(control)), "its time is over"
            support.wait_for(lambda: registry.control(DATABASE).candidate is None, "the candidate is given up")
            last = [len(thread) for thread in load.replies]
            support.wait_for(
                lambda: all(len(t) > n + 10 for t, n in zip(load.replies, last, strict=True)), "the load goes on"
            )
        assert load.failures == []
        assert load.mixed(snapshots) == []
        assert {r.epoch for thread in load.replies for _, r in thread} == {1}
        assert [thread[-1][1].snapshot for thread in load.replies] == [old.id] * 3
        assert [e.verb for e in registry.audit(DATABASE) if e.outcome == "done"][-1] == "expire"

        # A limit that is broken after the swap undoes it, and says why.
        load = Load(router, QUERIES)
        with load.running():
            done = swap_to(admin, DATABASE, new.id, terms=swap_terms(watch_seconds=600, max_p99_ms=0.001))
            assert done["epoch"] == 2
            support.wait_for(lambda: registry.control(DATABASE).epoch == 3, "the swap is undone")
        assert load.failures == []
        assert load.mixed(snapshots) == []
        (state,) = admin.list(DATABASE)
        assert (state.live, state.moved_by, state.watched_until) == (old.id, "rollback", 0)
        assert "99th percentile" in state.reason

        # One that is broken by a canary gives it up: it was never live.
        terms = swap_terms(deadline_seconds=600, canary_percent=60, max_p99_ms=0.001)
        with load.running(), pytest.raises(UnavailableError, match="given up"):
            swap_to(admin, DATABASE, new.id, terms=terms, canary_s=1000, deadline_s=600)
        assert load.failures == []
        assert admin.list(DATABASE)[0].epoch == 3

        # The previous snapshot is retired after its time, and its memory is free.
        swap_to(admin, DATABASE, new.id, terms=swap_terms(standby_seconds=0.5))
        support.wait_for(lambda: admin.list(DATABASE)[0].previous == "", "the old one is retired")
        with pytest.raises(PreconditionError, match="no previous snapshot"):
            admin.rollback(DATABASE)

        def held() -> list[list[str]]:
            return [[item.snapshot for item in replica.snapshots] for replica in admin.list(DATABASE)[0].replicas]

        support.wait_for(lambda: held() == [[new.id]] * 2, "and unloaded")
        assert client.search(DATABASE, QUERIES, 3).snapshot == new.id
        with pytest.raises(ArgumentError, match="canary_percent"):
            admin.prepare(DATABASE, old.id, terms=swap_terms(canary_percent=101))


def _due(control: Control) -> Control:
    """The same record, a fence on, with a candidate whose time has passed."""
    return dataclasses.replace(control, fence=control.fence + 1, expires=1.0)


def test_the_plan_says_what_fits_and_refuses_what_does_not(tmp_path: Path, editions: list[Snapshot]) -> None:
    old, new = editions
    shares = [[n for n in range(3) if n % 2 == member] for member in range(2)]
    sizes = [sum(e.size for e in old.manifest.mapped_files(share).values()) for share in shares]
    limit = ("--memory-limit-mb", str(1.5 * max(sizes) / 1e6))
    with (
        support.cluster(tmp_path, tmp_path / "registry", *limit) as processes,
        AdminClient(processes[0].address) as admin,
    ):
        for edition in editions:
            admin.register(DATABASE, str(edition.path))
        support.wait_for(lambda: len(admin.list(DATABASE)[0].replicas) == 2, "both report")
        first = admin.plan(DATABASE, old.id)
        assert [(plan.mode, plan.bytes, plan.bytes_new) for plan in first.replicas] == [
            ("overlap", 0, size) for size in sizes
        ]
        move(admin, old.id)
        support.wait_for(lambda: [r.bytes for r in admin.list(DATABASE)[0].replicas] == sizes, "bytes are reported")
        assert {plan.mode for plan in admin.plan(DATABASE, old.id).replicas} == {"loaded"}
        planned = admin.plan(DATABASE, new.id)
        assert not planned.fits
        assert "refused" in {plan.mode for plan in planned.replicas}
        command = [sys.executable, "-m", "openbook_cli", "db", "swap", DATABASE, new.id]
        command += ["--router", processes[0].address]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert refused.returncode == 1
        assert "DOES NOT FIT" in refused.stderr
        assert "has a limit of" in refused.stderr.splitlines()[-1]
        shown = subprocess.run([*command, "--plan"], capture_output=True, text=True, timeout=400)
        assert (shown.returncode, json.loads(shown.stdout)["fits"]) == (1, False)
        with pytest.raises(PreconditionError) as caught:
            admin.prepare(DATABASE, new.id)
        assert caught.value.reason is Reason.OUT_OF_MEMORY
        assert admin.list(DATABASE)[0].candidate == ""
        assert admin.prepare(DATABASE, new.id, force=True).candidate == new.id
        support.wait_for(
            lambda: any(
                item.reason == "OUT_OF_MEMORY" for r in admin.list(DATABASE)[0].replicas for item in r.snapshots
            ),
            "a replica refuses, with the reason",
        )
