"""A rolling swap with real processes under load: no replica holds both snapshots, no request fails, every reply is exact."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openbook_cli.swap import swap_terms, swap_to
from openbook_core.clients import AdminClient
from openbook_core.errors import PreconditionError
from openbook_database.snapshot import Snapshot

sys.path.insert(0, str(Path(__file__).parent))
import retriever_support as support
from retriever_support import DATABASE, Load, TinyEncoder, move

QUERIES = TinyEncoder().encode(["president of the senate", "railway on the coast", "old 7 harvest", "export"])


@contextmanager
def watched(router: str) -> Iterator[list[tuple[int, int]]]:
    """For each replica, again and again: its bytes and how many snapshots it holds or loads."""
    seen: list[tuple[int, int]] = []
    stop = threading.Event()

    def look() -> None:
        with AdminClient(router) as admin:
            while not stop.wait(0.05):
                (state,) = admin.list(DATABASE)
                seen.extend((replica.bytes, len(replica.snapshots)) for replica in state.replicas)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_replicas_change_over_one_half_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "MEMBERS", 1)
    old, new = (Snapshot.open(support.build_edition(tmp_path, name, shards=2)) for name in ("old", "new"))
    size_of_one = sum(each.size for each in old.manifest.mapped_files((0, 1)).values())
    options = ("--memory-limit-mb", str(1.5 * size_of_one / 1e6), "--drain-s", "0.5", "--load-retry-s", "0.5")
    with (
        support.cluster(tmp_path, tmp_path / "registry", *options, replicas=2) as processes,
        AdminClient(processes[0].address) as admin,
    ):

        def held(snapshot: Snapshot) -> list[str]:
            (state,) = admin.list(DATABASE)
            return [each.state for r in state.replicas for each in r.snapshots if each.snapshot == snapshot.id]

        for edition in (old, new):
            admin.register(DATABASE, str(edition.path))
        move(admin, old.id)
        support.wait_for(lambda: held(old) == ["ready"] * 2, "all replicas serve")
        planned = admin.plan(DATABASE, new.id)
        assert {replica.mode for replica in planned.replicas} == {"rolling"}
        assert (planned.fits, planned.fits_rolling) == (False, True)
        with pytest.raises(PreconditionError, match="swap it rolling"):
            admin.prepare(DATABASE, new.id)
        load = Load(processes[0].address, QUERIES, threads=2)
        with load.running(), watched(processes[0].address) as seen:
            swap_to(admin, DATABASE, new.id, terms=swap_terms(rolling=True, standby_seconds=1.0))
            (state,) = admin.list(DATABASE)
            assert len(state.first) == 1
            support.wait_for(lambda: held(new) == ["ready"] * 2, "the others have followed")
            assert admin.list(DATABASE)[0].first == []
            swap_to(admin, DATABASE, old.id, terms=swap_terms(rolling=True))
            assert (held(old), held(new)) == (["ready"], ["ready"])
            assert admin.rollback(DATABASE).previous == ""
            support.wait_for(lambda: held(new) == ["ready"] * 2, "all replicas serve the one that is live again")
    assert load.failures == []
    assert load.mixed({edition.id: edition for edition in (old, new)}) == []
    assert not load.epochs_go_back()
    assert {result.epoch for thread in load.replies for _, result in thread} >= {1, 2, 4}
    assert max(size for size, _ in seen) <= 1.5 * size_of_one
    assert max(count for _, count in seen) == 1
