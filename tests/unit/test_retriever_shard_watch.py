"""What a shard's poll loads and lets go in a rolling swap, one poll at a time on a registry in a directory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openbook_database.manifest import Manifest
from openbook_database.mapped import files_of, total
from openbook_database.registry.directory import DirectoryRegistry
from openbook_database.registry.readiness import no_check
from openbook_database.registry.records import KnownSnapshot, LoadState, ReplicaReport, ReplicaSnapshot, SwapTerms
from openbook_database.testing import build_tiny_snapshot
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.holdings import Holdings
from openbook_retriever.shard_watch import ShardWatch

ROLLING = SwapTerms(rolling=True, standby_s=60)


class Bench:
    """A shard process with room for one of two snapshots; loads end at once. The old one is live and loaded."""

    def __init__(self, folder: Path) -> None:
        self.clock = 1_000_000.0
        self.registry = DirectoryRegistry(folder / "registry", clock=lambda: self.clock)
        built = [build_tiny_snapshot(folder / edition, edition=edition, documents=6) for edition in ("old", "new")]
        self.old, self.new = (self.registry.register("tiny", each.path).snapshot for each in built)
        sizes = [total([files_of(each.path, Manifest.read(each.path), (0,))]) for each in built]
        options = {"role": "shard", "registry": "unused", "drain_s": 0, "memory_limit_mb": 1.5 * max(sizes) / 1e6}
        self.holdings = Holdings()
        self.watch = ShardWatch(RetrieverConfig.parse(options), self.registry, self.holdings)
        self.watch._name, self.watch._address = "mine", "h:1"
        made: Any = SimpleNamespace(load=self.load, give_up=lambda _: None)
        self.watch._loader = made
        loads: Any = SimpleNamespace(submit=lambda work, *arguments: work(*arguments))
        self.watch._loads = loads
        self.registry.prepare("tiny", self.old)
        self.registry.activate("tiny", self.old, ready_check=no_check)
        self.poll()
        assert self.holds() == {self.old: LoadState.READY}

    def load(self, known: KnownSnapshot, shards: tuple[int, ...]) -> Any:
        return SimpleNamespace(id=known.snapshot, shards=()), None

    def poll(self) -> dict[str, LoadState]:
        self.watch._poll("tiny")
        return self.holds()

    def holds(self) -> dict[str, LoadState]:
        return {held.snapshot: held.state for held in self.holdings.report("tiny")}

    def other_serves(self, snapshot: str) -> None:
        held = ReplicaSnapshot(snapshot, LoadState.READY, (0,))
        self.registry.report_replica(ReplicaReport("tiny", "other", "h:2", 1, (held,)))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_live_one_is_given_up_only_while_another_replica_serves_it(bench: Bench) -> None:
    bench.registry.prepare("tiny", bench.new, terms=ROLLING, first=("mine",))
    for _ in range(3):
        assert bench.poll() == {bench.old: LoadState.READY}, "no other replica has it"
    bench.other_serves(bench.old)
    with bench.holdings.lease("tiny", bench.old):
        for _ in range(3):
            assert bench.poll() == {}, "a request still reads it: there is no room for the new one"
    bench.poll()
    assert bench.poll() == {bench.new: LoadState.READY}
    bench.clock += 60
    assert bench.poll() == {bench.new: LoadState.READY}, "nothing is taken back where the other one is gone"
    bench.registry.abort("tiny")
    bench.poll()
    assert bench.poll() == {bench.old: LoadState.READY}


def test_the_others_follow_when_the_standby_is_over(bench: Bench) -> None:
    bench.registry.prepare("tiny", bench.new, terms=ROLLING, first=("other",))
    bench.registry.take_lease("tiny", bench.new, "run", 30)
    assert bench.poll() == {bench.old: LoadState.READY}
    bench.registry.activate("tiny", bench.new, ready_check=no_check)
    assert bench.poll() == {bench.old: LoadState.READY}
    bench.registry.take_lease("tiny", bench.old, "run", 100)
    bench.clock += 60
    bench.registry.expire("tiny", bench.registry.control("tiny"))
    held = bench.poll()
    assert held == {bench.old: LoadState.READY, bench.new: LoadState.FAILED}, (
        "the lease keeps the old one, there is no room"
    )
    bench.registry.release_lease("tiny", bench.old, "run")
    bench.watch._config = bench.watch._config.model_copy(update={"load_retry_s": 0.0})
    bench.poll()
    assert bench.poll() == {bench.new: LoadState.READY}


def test_what_does_not_fit_waits_for_what_is_on_its_way_out(bench: Bench) -> None:
    """Without a rolling swap: the live snapshot was changed by force while this process still drains the old one."""
    with bench.holdings.lease("tiny", bench.old):
        bench.registry.prepare("tiny", bench.new)
        bench.registry.activate("tiny", bench.new, ready_check=no_check)
        bench.registry.retire("tiny")
        for _ in range(3):
            assert bench.poll() == {}
    bench.poll()
    assert bench.poll() == {bench.new: LoadState.READY}
