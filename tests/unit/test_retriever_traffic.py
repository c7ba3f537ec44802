"""Canary shares, limits and the highest record on disk, without processes."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from openbook_core.errors import (
    ArgumentError,
    DeadlineError,
    MismatchError,
    NotFoundError,
    OpenbookError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)
from openbook_core.fingerprint import Fingerprint
from openbook_core.telemetry import bind_request_id
from openbook_database.contract import Contract
from openbook_database.registry.directory import DirectoryRegistry
from openbook_database.registry.records import (
    Control,
    KnownSnapshot,
    LoadState,
    Phase,
    ReplicaReport,
    ReplicaSnapshot,
    SwapTerms,
)
from openbook_database.testing import build_tiny_snapshot
from openbook_proto.v1 import admin_pb2
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.admin_engine import MAX_WATCHERS, AdminEngine
from openbook_retriever.ratchet import Ratchet, Seen
from openbook_retriever.router_service import RouterService
from openbook_retriever.router_watch import Trial, View
from openbook_retriever.traffic import MIN_FOR_P99, MIN_REQUESTS, Traffic, errors_of, in_canary, is_another_parts

OLD, NEW = "a" * 64, "b" * 64
CONTRACT = Contract(Fingerprint({"t": 1}), Fingerprint({"e": 1}), "{text}", 2, "inner_product", 4)


def test_a_canary_has_its_share_of_the_requests_and_always_the_same() -> None:
    names = [f"request-{number}" for number in range(4000)]
    for percent in (0, 3, 50, 100):
        chosen = [in_canary(name, NEW, percent) for name in names]
        assert abs(np.mean(chosen) - percent / 100) < 0.03
        assert chosen == [in_canary(name, NEW, percent) for name in names]
    few, many = ({name for name in names if in_canary(name, NEW, percent)} for percent in (5, 20))
    assert few < many, "a larger share holds the smaller one"
    assert few != {name for name in names if in_canary(name, OLD, 5)}, "another snapshot is tried by others"


def test_a_canary_waits_until_every_shard_of_it_is_ready() -> None:
    control = Control("book", 1, 2, live=OLD, candidate=NEW, phase=Phase.PREPARING, terms=SwapTerms(canary_percent=100))

    def view(*shards: int, state: LoadState = LoadState.READY) -> View:
        report = ReplicaReport("book", "one", "h:1", 1, (ReplicaSnapshot(NEW, state, shards),))
        return View(control, CONTRACT, (report,), shards={NEW: 2})

    assert view(0, 1).canary("x") == NEW
    assert view(0).canary("x") == ""
    assert view(0, 1, state=LoadState.LOADING).canary("x") == ""
    assert View(control, CONTRACT).canary("x") == ""


@pytest.mark.parametrize(
    ("terms", "failed", "empty", "ms", "why"),
    [
        (SwapTerms(max_error_share=0.1), 30, 0, 1.0, "30 of 230 requests failed"),
        (SwapTerms(max_error_share=0.2), 30, 0, 1.0, ""),
        (SwapTerms(max_empty_share=0.01), 0, 1, 1.0, "200 of 400 queries found nothing"),
        (SwapTerms(max_p99_ms=9.0), 0, 0, 10.0, "99th percentile of 200 requests is 10.0 ms"),
        (SwapTerms(max_p99_ms=11.0), 0, 0, 10.0, ""),
        (SwapTerms(), 200, 2, 1e6, ""),
    ],
)
def test_broken_limits_are_told_with_the_numbers(
    terms: SwapTerms, failed: int, empty: int, ms: float, why: str
) -> None:
    traffic = Traffic()
    for _ in range(200):
        traffic.answered("book", NEW, ms / 1e3, 2, empty)
    for _ in range(failed):
        traffic.failed("book", NEW, UnavailableError("no"), 1.0)
    for mistake in (ArgumentError("no"), NotFoundError("no"), PreconditionError("no"), OverloadedError("no")):
        traffic.failed("book", NEW, mistake, 1.0)
    traffic.failed("book", NEW, DeadlineError("a caller in a hurry"), 0.01)
    traffic.failed("book", NEW, UnavailableError("restarting", part="embedder"), 1.0)
    assert why in traffic.breach("book", NEW, terms)
    assert bool(why) == bool(traffic.breach("book", NEW, terms))
    assert traffic.breach("book", OLD, terms) == ""
    traffic.forget("cookbook")
    assert bool(why) == bool(traffic.breach("book", NEW, terms))
    traffic.forget("book")
    assert traffic.breach("book", NEW, terms) == ""


def test_few_requests_break_no_limit() -> None:
    traffic = Traffic()
    for _ in range(MIN_REQUESTS - 1):
        traffic.failed("book", NEW, OpenbookError("no"), 0.0)
    assert traffic.breach("book", NEW, SwapTerms(max_error_share=0.0)) == ""
    traffic.failed("book", NEW, DeadlineError("slow"), 1.0)
    assert traffic.breach("book", NEW, SwapTerms(max_error_share=0.0))
    quick = Traffic()
    for number in range(MIN_FOR_P99):
        assert quick.breach("book", NEW, SwapTerms(max_p99_ms=1)) == "", number
        quick.answered("book", NEW, 5.0, 1, 0)
    assert quick.breach("book", NEW, SwapTerms(max_p99_ms=1))


class Engine:
    """Answers from the snapshot asked for, or the live one; fails for those in `broken`."""

    def __init__(self, **broken: OpenbookError) -> None:
        self.broken, self.asked = broken, []  # type: ignore[var-annotated]

    def search(self, request: pb.SearchRequest, timeout_s: float) -> pb.SearchReply:
        snapshot = request.snapshot or OLD
        self.asked.append(snapshot)
        if snapshot[0] in self.broken:
            raise self.broken[snapshot[0]]
        ids = np.asarray([[3, -1], [-1, -1]], "<i8").tobytes()
        return pb.SearchReply(snapshot=snapshot, queries=2, k=2, ids=ids)


def service(engine: Engine, percent: float) -> tuple[RouterService, Traffic]:
    traffic = Traffic()
    watch: Any = SimpleNamespace(
        traffic=traffic,
        trial=lambda database, name: Trial(OLD, NEW if in_canary(name, NEW, percent) else "") if percent else None,
    )
    return RouterService(engine, watch), traffic  # type: ignore[arg-type]


CONTEXT: Any = SimpleNamespace(time_remaining=lambda: None)


def test_a_canary_that_cannot_answer_fails_no_request_and_is_counted() -> None:
    engine = Engine(b=UnavailableError("gone"))
    router, traffic = service(engine, 100)
    for _ in range(MIN_REQUESTS):
        bind_request_id(None)
        assert router.Search(pb.SearchRequest(database="book", k=2), CONTEXT).snapshot == OLD
    assert engine.asked == [NEW, OLD] * MIN_REQUESTS
    assert "20 of 20 requests failed" in traffic.breach("book", NEW, SwapTerms(max_error_share=0.0))
    assert traffic.breach("book", OLD, SwapTerms(max_error_share=0.0)) == ""
    assert "20 of 40 queries found nothing" in traffic.breach("book", OLD, SwapTerms(max_empty_share=0.4))


def test_pins_and_the_callers_mistakes_are_no_canarys() -> None:
    engine = Engine(b=ArgumentError("k"))
    router, traffic = service(engine, 100)
    assert router.Search(pb.SearchRequest(database="book", k=2, snapshot=OLD), CONTEXT).snapshot == OLD
    with pytest.raises(ArgumentError):
        router.Search(pb.SearchRequest(database="book", k=2), CONTEXT)
    assert engine.asked == [OLD, NEW]
    assert traffic.breach("book", NEW, SwapTerms(max_error_share=0.0)) == ""


def test_what_the_gate_or_the_embedder_refuses_is_not_asked_again() -> None:
    for error in (OverloadedError("full", part="router"), UnavailableError("restarting", part="embedder")):
        engine = Engine(b=error)
        router, traffic = service(engine, 100)
        for _ in range(MIN_REQUESTS):
            with pytest.raises(type(error)):
                router.Search(pb.SearchRequest(database="book", k=2), CONTEXT)
        assert set(engine.asked) == {NEW}
        assert traffic.breach("book", NEW, SwapTerms(max_error_share=0.0)) == ""
    engine = Engine(b=OverloadedError("its shards are", shards="0"))
    assert service(engine, 100)[0].Search(pb.SearchRequest(database="book", k=2), CONTEXT).snapshot == OLD


def test_a_mismatch_is_of_one_snapshot_other_errors_of_a_part_are_of_none() -> None:
    for error, blamed in ((DeadlineError("late"), True), (MismatchError("its probes"), False)):
        with pytest.raises(OpenbookError) as caught, errors_of("embedder"):
            raise error
        assert (caught.value, is_another_parts(error)) == (error, blamed)


def test_where_nothing_is_tried_nothing_is_counted() -> None:
    router, traffic = service(Engine(), 0)
    for _ in range(MIN_REQUESTS):
        router.Search(pb.SearchRequest(database="book", k=2), CONTEXT)
    assert traffic.breach("book", OLD, SwapTerms(max_empty_share=0.0)) == ""


# --- the highest record on disk ---


def seen(epoch: int, fence: int) -> Seen:
    known = KnownSnapshot(NEW, "/books/new", 2, 3, 4)
    return Seen(CONTRACT, Control("book", epoch, fence, live=NEW, terms=SwapTerms(quorum=2)), (known,))


def test_the_ratchet_only_rises_and_is_read_again(tmp_path: Path) -> None:
    assert Ratchet(tmp_path / "none").all() == []
    one, other = Ratchet(tmp_path), Ratchet(tmp_path)
    for epoch, fence in ((3, 7), (2, 9), (3, 6), (4, 8)):
        one.raise_to(seen(epoch, fence))
    other.raise_to(seen(4, 7))
    assert other.get("book") == seen(4, 7), "what it has seen itself"
    assert Ratchet(tmp_path).all() == [seen(4, 8)]
    (tmp_path / "book.json").write_text('{"control": 1}')
    assert Ratchet(tmp_path).all() == []


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("x")
    ratchet = Ratchet(tmp_path / "file" / "folder")
    ratchet.raise_to(seen(1, 1))
    assert ratchet.get("book") == seen(1, 1)
    assert "not kept on disk" in caplog.text


# --- the stream of states ---


def test_a_watcher_is_told_of_changes_alone_and_there_are_not_too_many(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry")
    built = build_tiny_snapshot(tmp_path / "snapshot")
    registry.register("tiny", built.path)
    engine = AdminEngine(registry, None)  # type: ignore[arg-type]
    turns = itertools.count()
    request = admin_pb2.WatchRequest(database="tiny")
    stream = engine.watch(request, lambda: next(turns) < 6)
    first = next(stream)
    assert first.databases[0].candidate == ""
    registry.report_replica(ReplicaReport("tiny", "one", "h:1", 0))
    assert [replica.name for replica in next(stream).databases[0].replicas] == ["one"]
    registry.report_replica(ReplicaReport("tiny", "one", "h:1", 0))
    registry.prepare("tiny", built.snapshot_id)
    assert [reply.databases[0].candidate for reply in stream] == [built.snapshot_id]
    watchers = [engine.watch(request, lambda: True) for _ in range(MAX_WATCHERS)]
    assert all(next(watcher) for watcher in watchers)
    with pytest.raises(OverloadedError, match="watch another"):
        next(engine.watch(request, lambda: True))
    watchers.pop().close()
    assert next(engine.watch(request, lambda: True))
    for wrong in (0.01, 61.0, float("nan")):
        with pytest.raises(ArgumentError, match="interval_seconds"):
            next(engine.watch(admin_pb2.WatchRequest(interval_seconds=wrong), lambda: True))
