"""What a router's poll does by itself, one poll at a time on a registry in a directory: counting anew, undoing, ending."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from openbook_core.errors import ConflictError, UnavailableError
from openbook_database.registry.directory import DirectoryRegistry
from openbook_database.registry.readiness import no_check
from openbook_database.registry.records import Control, LoadState, ReplicaReport, ReplicaSnapshot, SwapTerms
from openbook_database.testing import build_tiny_snapshot
from openbook_retriever import attempts
from openbook_retriever.attempts import Attempts
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.router_watch import RouterWatch
from openbook_retriever.traffic import MIN_REQUESTS

WATCHED = SwapTerms(watch_s=60, max_error_share=0.1)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A router that was told of two snapshots, the first of which is live."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.registry = DirectoryRegistry(folder / "registry", clock=self.clock)
        self.old, self.new = (self._registered(folder, edition) for edition in ("old", "new"))
        options = {"role": "router", "registry": "unused", "state_dir": str(folder / "state")}
        self.watch = RouterWatch(RetrieverConfig.parse(options), self.registry)
        self.watch._name, self.watch._address = "router", "h:1"
        self.swap(self.old)

    def _registered(self, folder: Path, edition: str) -> str:
        built = build_tiny_snapshot(folder / edition, edition=edition, documents=3)
        return self.registry.register("tiny", built.path).snapshot

    def swap(self, snapshot: str, terms: SwapTerms = WATCHED) -> Control:
        self.clock.now += 1
        self.registry.prepare("tiny", snapshot, terms=terms)
        self.poll()
        self.registry.activate("tiny", snapshot, ready_check=no_check)
        return self.poll()

    def serve(self, snapshot: str) -> None:
        held = ReplicaSnapshot(snapshot, LoadState.READY, (0,))
        self.registry.report_replica(ReplicaReport("tiny", "replica", "h:2", 0, (held,)))

    def fail(self, snapshot: str) -> None:
        for _ in range(MIN_REQUESTS):
            self.watch.traffic.failed("tiny", snapshot, UnavailableError("no"), 1.0)

    def poll(self) -> Control:
        self.watch._poll("tiny")
        return self.registry.control("tiny")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_swap_is_not_judged_by_what_an_earlier_one_to_the_snapshot_did(bench: Bench) -> None:
    bench.serve(bench.old)
    bench.swap(bench.new)
    bench.fail(bench.new)
    undone = bench.poll()
    assert (undone.live, undone.moved_by) == (bench.old, "rollback")
    bench.fail(bench.new)  # those that were under way
    bench.poll()
    again = bench.swap(bench.new)
    assert (again.live, again.epoch, bench.poll()) == (bench.new, undone.epoch + 1, again)


def test_a_canary_is_not_judged_by_one_that_was_aborted(bench: Bench) -> None:
    canary = SwapTerms(canary_percent=50, max_error_share=0.1)
    bench.registry.prepare("tiny", bench.new, terms=canary)
    bench.poll()
    bench.fail(bench.new)
    bench.registry.abort("tiny")
    bench.clock.now += 1
    bench.registry.prepare("tiny", bench.new, terms=canary)
    assert bench.poll().candidate == bench.new
    bench.fail(bench.new)
    assert bench.poll().candidate is None


def test_a_rollback_that_is_refused_keeps_the_router_from_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.watch._config = bench.watch._config.model_copy(update={"heartbeat_s": 1e-9})
    bench.watch._attempts = Attempts(600)
    live = bench.swap(bench.new)
    bench.fail(bench.new)
    for _ in range(5):
        bench.clock.now += 1
        assert bench.poll() == live, "the previous snapshot is ready nowhere"
        (report,) = bench.registry.routers("tiny")
        assert (report.epoch, report.heartbeat) == (live.epoch, bench.clock.now)
    assert bench.watch._ratchet.get("tiny").control == live  # type: ignore[union-attr]
    assert [entry.outcome[:7] for entry in bench.registry.audit("tiny") if entry.verb == "rollback"] == [
        "asked",
        "refused",
    ]
    assert "is not ready" in caplog.text or "no replica reports it" in caplog.text


def test_what_was_refused_is_tried_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    called: list[float] = []
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: now))
    tries, control = Attempts(1.0), Control("book", 1, 1)

    def refused() -> None:
        called.append(now)
        raise ConflictError("no")

    while now < 40:
        tries.make("this", control, refused)
        now += 0.5
    assert called == [0, 1, 3, 7, 15, 25, 35]
    tries.make("this", Control("book", 1, 2), refused)
    tries.make("that", control, refused)
    assert called[-2:] == [40, 40], "another record, another thing"

    def mistaken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tries.make("else", control, mistaken)


def test_the_router_ends_the_watch(bench: Bench) -> None:
    bench.swap(bench.new)
    assert bench.watch.trial("tiny", "request") is not None
    bench.clock.now += 61
    ended = bench.poll()
    assert (ended.live, ended.previous, ended.watched_until) == (bench.new, bench.old, 0)
    assert bench.watch.trial("tiny", "request") is None, "nothing is counted any more"
