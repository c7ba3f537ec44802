"""The retriever's parts on their own: leases, fan-out and restarts over fakes, gathering of chunks, settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbook_core.errors import (
    ArgumentError,
    ConfigError,
    CorruptError,
    OpenbookError,
    OverloadedError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from openbook_core.fingerprint import Fingerprint
from openbook_core.vectors import encode_vectors
from openbook_database.contract import Contract
from openbook_database.registry.base import Registry
from openbook_database.registry.records import Control, KnownSnapshot, Lease, LoadState, ReplicaReport, ReplicaSnapshot
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever import loading, requests, router_engine
from openbook_retriever.__main__ import parse_args
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.fan_out import Answers, Question
from openbook_retriever.holdings import Holdings
from openbook_retriever.loading import Loader
from openbook_retriever.merging import merge_replies
from openbook_retriever.metrics import SNAPSHOT_MIX
from openbook_retriever.requests import check_search, read_ids, sendable
from openbook_retriever.router_engine import RouterEngine
from openbook_retriever.router_watch import RouterWatch, View
from openbook_retriever.shard_engine import ShardEngine

OLD, NEW = "a" * 64, "b" * 64
CONTRACT = Contract(Fingerprint({"t": 1}), Fingerprint({"e": 1}), "{text}", 2, "inner_product", 4)


def test_a_reply_that_no_message_can_hold_says_what_to_ask_for_less_of(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = pb.GetChunksReply(chunks=pb.Chunks(tokens=bytes(1000)))
    assert sendable(reply, "ids") is reply
    monkeypatch.setattr(requests, "MAX_MESSAGE_BYTES", reply.ByteSize())
    assert sendable(reply, "ids") is reply
    monkeypatch.setattr(requests, "MAX_MESSAGE_BYTES", reply.ByteSize() - 1)
    with pytest.raises(ArgumentError, match=r"ids: the reply would have 0\.0 MB.*fewer ids") as refused:
        sendable(reply, "ids")
    assert refused.value.field == "ids"


def test_a_lease_keeps_a_snapshot_until_it_ends() -> None:
    holdings = Holdings()
    opened: Any = SimpleNamespace(id=OLD, shards=())
    assert holdings.lacks("book", OLD, 5)
    holdings.begin("book", OLD, (0,))
    assert not holdings.lacks("book", OLD, 0)
    with pytest.raises(PreconditionError, match="still being loaded"), holdings.lease("book", OLD):
        pass
    holdings.loaded("book", opened)
    assert holdings.report("book") == (ReplicaSnapshot(OLD, LoadState.READY, (0,)),)
    with holdings.lease("book", OLD) as leased:
        assert leased is opened
        assert holdings.keep_only("book", [NEW], 0) == []
        with pytest.raises(PreconditionError, match="retired"), holdings.lease("book", OLD):
            pass
        assert holdings.report("book") == ()
    assert holdings.keep_only("book", [NEW], 0) == [OLD]


def test_an_unwanted_snapshot_answers_until_its_time_to_drain_is_over() -> None:
    holdings = Holdings()
    holdings.begin("book", OLD, (0,))
    holdings.loaded("book", SimpleNamespace(id=OLD, shards=()))  # type: ignore[arg-type]
    assert holdings.keep_only("book", [NEW], 60) == []
    with holdings.lease("book", OLD):
        assert holdings.report("book")[0].state is LoadState.READY
    assert not holdings.lacks("book", OLD, 0), "wanted again: the time begins anew"
    time.sleep(0.05)
    assert holdings.keep_only("book", [NEW], 0.04) == []
    time.sleep(0.05)
    assert holdings.keep_only("book", [NEW], 0.04) == [OLD]


def test_what_is_not_ready_does_not_drain() -> None:
    holdings = Holdings()
    holdings.begin("book", OLD, (0,))
    assert holdings.keep_only("book", [NEW], 60) == []
    holdings.failed("book", OLD, "a flipped byte")
    assert holdings.keep_only("book", [NEW], 60) == [OLD]


def test_a_retiring_snapshot_that_is_wanted_again_stays() -> None:
    holdings = Holdings()
    holdings.begin("book", OLD, (0,))
    holdings.loaded("book", SimpleNamespace(id=OLD, shards=()))  # type: ignore[arg-type]
    with holdings.lease("book", OLD):
        holdings.keep_only("book", [], 0)
        assert not holdings.lacks("book", OLD, 5)
        with holdings.lease("book", OLD):
            pass
    assert holdings.keep_only("book", [OLD], 0) == []


def test_a_failed_load_is_reported_and_tried_again_later() -> None:
    holdings = Holdings()
    holdings.begin("book", OLD, (0,))
    holdings.failed("book", OLD, "a flipped byte")
    assert holdings.report("book")[0].error == "a flipped byte"
    assert not holdings.lacks("book", OLD, 5)
    assert holdings.lacks("book", OLD, 0)


class FakeWatch:
    """Views in order: the first until `refresh`, then the next."""

    def __init__(self, *controls: Control) -> None:
        self.views = [View(control, CONTRACT) for control in controls]

    def view(self, database: str, min_epoch: int = 0) -> View:
        return self.views[0]

    def refresh(self, database: str) -> View:
        if len(self.views) > 1:
            self.views.pop(0)
        return self.views[0]

    def manifest(self, database: str, snapshot: str) -> Any:
        return SimpleNamespace(shards=[SimpleNamespace(first_row=0), SimpleNamespace(first_row=10)])


class FakeReplicas:
    """Two shards; `held` says which snapshot each answers from, None refusing what it does not hold."""

    def __init__(self, *held: str | None, loaded: tuple[str, ...] = ()) -> None:
        self.held, self.loaded = held, loaded

    def ask(self, _: Any, question: Question, serving: Any, again: Any, timeout_s: float) -> Answers[Any]:
        answers: Answers[Any] = Answers()
        for shard in question.shards:
            snapshot = self.held[shard] or pb.SearchRequest.FromString(question.bytes_for((shard,))).snapshot
            if snapshot not in self.loaded:
                again()
                answers.missing[shard] = "not loaded"
                continue
            answers.parts[shard,] = pb.SearchReply(
                snapshot=snapshot,
                queries=1,
                k=1,
                ids=np.asarray([[10 * shard]], "<i8").tobytes(),
                scores=np.asarray([[1 + shard]], "<f4").tobytes(),
            )
        return answers


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RouterEngine]:
    def make(watch: FakeWatch, replicas: FakeReplicas, **options: Any) -> RouterEngine:
        monkeypatch.setattr(router_engine, "ask", replicas.ask)
        return RouterEngine(watch, replicas, None, **options)  # type: ignore[arg-type]

    return make


def request(**fields: Any) -> pb.SearchRequest:
    return pb.SearchRequest(database="book", k=1, queries=encode_vectors(np.ones((1, 2), np.float32)), **fields)


def test_an_unpinned_request_begins_again_as_a_whole_when_its_snapshot_was_retired(
    engine: Callable[..., RouterEngine],
) -> None:
    watch = FakeWatch(Control("book", 4, 4, live=OLD), Control("book", 5, 5, live=NEW))
    reply = engine(watch, FakeReplicas(None, None, loaded=(NEW,))).search(request(), 1.0)
    assert (reply.snapshot, reply.epoch, reply.restarts) == (NEW, 5, 1)
    assert np.frombuffer(reply.ids, "<i8").tolist() == [10]


def test_a_pinned_request_is_refused_with_the_reason(engine: Callable[..., RouterEngine]) -> None:
    watch = FakeWatch(Control("book", 4, 4, live=OLD), Control("book", 5, 5, live=NEW))
    with pytest.raises(PreconditionError) as caught:
        engine(watch, FakeReplicas(None, None, loaded=(NEW,))).search(request(snapshot=OLD), 1.0)
    assert caught.value.reason is Reason.SNAPSHOT_RETIRED


def test_parts_of_two_snapshots_are_an_internal_error_and_counted(engine: Callable[..., RouterEngine]) -> None:
    watch = FakeWatch(Control("book", 5, 5, live=NEW, previous=OLD))
    before = SNAPSHOT_MIX.collect()[0].samples[0].value
    with pytest.raises(OpenbookError) as caught:
        engine(watch, FakeReplicas(NEW, OLD, loaded=(OLD, NEW))).search(request(), 1.0)
    assert (caught.value.reason, caught.value.grpc_code) == (Reason.SNAPSHOT_MIX, "INTERNAL")
    assert SNAPSHOT_MIX.collect()[0].samples[0].value == before + 1
    unguarded = engine(watch, FakeReplicas(NEW, OLD, loaded=(OLD, NEW)), snapshot_guard=False)
    assert unguarded.search(request(), 1.0).snapshot == NEW


def test_errors_of_the_gate_and_of_the_embedder_name_them(engine: Callable[..., RouterEngine]) -> None:
    watch = FakeWatch(Control("book", 5, 5, live=NEW))
    shards: Any = SimpleNamespace(shards=[SimpleNamespace(first_row=0)] * 2, probes=None)
    watch.manifest = lambda database, snapshot: shards  # type: ignore[method-assign]
    router = engine(watch, FakeReplicas(None, None, loaded=(NEW,)), max_queries=1)

    def embed(*_: object) -> None:
        with pytest.raises(OverloadedError) as refused:
            router.search(request(), 1.0)
        assert refused.value.metadata["part"] == "router"
        raise UnavailableError("restarting")

    router._embedder = SimpleNamespace(embed=embed)  # type: ignore[assignment]
    asked = pb.SearchTextRequest(search=pb.SearchRequest(database="book", k=1), texts=["a question"])
    with pytest.raises(UnavailableError, match="restarting") as caught:
        router.search_text(asked, 1.0)
    assert caught.value.metadata["part"] == "embedder"
    with pytest.raises(UnavailableError) as caught:
        engine(watch, FakeReplicas(None, None)).search(request(), 1.0)
    assert "part" not in caught.value.metadata


class FakeChecker:
    """A process that ended with `code` without an answer."""

    def __init__(self, code: int) -> None:
        self.code = code

    def wait(self) -> int:
        return self.code


@pytest.mark.parametrize(("codes", "loads"), [([0], True), ([0, 0], False), ([1], False)])
def test_a_checker_that_was_just_ending_is_replaced_once(
    codes: list[int], loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(RetrieverConfig(role="shard", registry="unused"))
    checkers = [FakeChecker(code) for code in codes] + [FakeChecker(9)]
    asked: list[FakeChecker] = []

    def ask(checker: FakeChecker, _: object) -> dict[str, Any]:
        asked.append(checker)
        return {"seconds": 0.1} if checker.code == 9 else {}

    monkeypatch.setattr(loader, "_running", lambda: checkers[len(asked)])
    monkeypatch.setattr(loading, "_ask", ask)
    if loads:
        loader._check(KnownSnapshot(OLD, "/books/old", 1, 1, 1), (0,))
    else:
        with pytest.raises(CorruptError, match="exit code"):
            loader._check(KnownSnapshot(OLD, "/books/old", 1, 1, 1), (0,))
    assert len(asked) == len(codes) + loads


class FlakyRegistry:
    """Answers with `control` and `replicas`, or fails."""

    def __init__(self) -> None:
        self.control_now, self.replicas_now, self.down = Control("book", 3, 7, live=OLD), [], False  # type: ignore[var-annotated]

    def contract(self, database: str) -> Contract:
        if self.down:
            raise OSError("gone")
        return CONTRACT

    def control(self, database: str) -> Control:
        return self.control_now

    def replicas(self, database: str) -> list[ReplicaReport]:
        return self.replicas_now

    def leases(self, database: str) -> list[Lease]:
        return []


def test_a_view_never_goes_back_and_outlives_the_registry() -> None:
    registry = FlakyRegistry()
    as_registry: Registry = registry  # type: ignore[assignment]
    report = ReplicaReport("book", "one", "h:1", 3, (ReplicaSnapshot(OLD, LoadState.READY, (0,)),))
    registry.replicas_now = [report]
    watch = RouterWatch(RetrieverConfig(role="router", registry="unused"), as_registry)
    assert watch.view("book").control.epoch == 3
    registry.control_now = Control("book")
    registry.replicas_now = []
    view = watch.refresh("book")
    assert (view.control.epoch, view.control.live) == (3, OLD)
    assert view.serving(OLD, 0) == ["h:1"], "an expired report is the last resort"
    registry.down = True
    assert watch.refresh("book") == view


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_merged_chunks_belong_to_their_ids(data: st.DataObject) -> None:
    queries, k, shards = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    fields = pb.Fields(tokens=True, text=True, document=True)
    parts = []
    for shard in range(shards):
        ids_QK = np.full((queries, k), -1, np.int64)
        scores_QK = np.zeros((queries, k), np.float32)
        for query in range(queries):
            drawn = data.draw(st.lists(st.integers(0, 9), unique=True, max_size=k))
            ids_QK[query, : len(drawn)] = np.asarray(sorted(drawn), np.int64) + 10 * shard
            scores_QK[query, : len(drawn)] = 0.5
        found = ids_QK[ids_QK >= 0]
        chunks = pb.Chunks(chunk_length=1, token_type=3, texts=[f"t{i}" for i in found])
        chunks.continuation_texts.extend(f"c{i}" for i in found)
        chunks.tokens = np.stack([found, found + 1], 1).astype("<u2").tobytes()
        chunks.lengths = np.ones((len(found), 2), "<u2").tobytes()
        numbers = sorted({int(i) // 3 for i in found})
        chunks.documents.extend(pb.Document(number=n, external_id=f"d{n}") for n in numbers)
        chunks.document_index.extend(numbers.index(int(i) // 3) for i in found)
        parts.append(
            pb.SearchReply(ids=ids_QK.tobytes(), scores=scores_QK.tobytes(), chunks=chunks, unknown_exclusions=2)
        )
    reply = merge_replies(parts, queries, k, fields)
    ids = np.frombuffer(reply.ids, "<i8").reshape(queries, k)
    every = [np.frombuffer(part.ids, "<i8").reshape(queries, k) for part in parts]
    for query in range(queries):
        expected = sorted(int(i) for part in every for i in part[query] if i >= 0)[:k]
        assert ids[query].tolist() == expected + [-1] * (k - len(expected))
    found = ids[ids >= 0]
    assert list(reply.chunks.texts) == [f"t{i}" for i in found]
    assert list(reply.chunks.continuation_texts) == [f"c{i}" for i in found]
    assert np.frombuffer(reply.chunks.tokens, "<u2").reshape(-1, 2)[:, 0].tolist() == found.tolist()
    documents = [reply.chunks.documents[place].number for place in reply.chunks.document_index]
    assert documents == [int(i) // 3 for i in found]
    assert len({document.number for document in reply.chunks.documents}) == len(reply.chunks.documents)
    assert reply.unknown_exclusions == 2


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"database": "a/b"}, "database"),
        ({"database": ""}, "database"),
        ({"k": 0}, "k"),
        ({"k": 1001}, "k"),
        ({"snapshot": "A" * 64}, "snapshot"),
        ({"min_score": float("inf")}, "min_score"),
        ({"exclusions": [pb.Exclusion()] * 3}, "exclusions"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_search(pb.SearchRequest(**{"database": "book", "k": 2, **fields}), 2)
    assert caught.value.field == named


def test_ids_without_their_snapshot_are_refused(engine: Callable[..., RouterEngine]) -> None:
    asked = pb.GetChunksRequest(database="book", ids=np.asarray([0], "<i8").tobytes())
    router = engine(FakeWatch(Control("book", 4, 4, live=OLD)), FakeReplicas(None, None, loaded=(OLD,)))
    with pytest.raises(ArgumentError, match="an id means nothing without its snapshot") as caught:
        router.get_chunks(asked, 1.0)
    assert caught.value.field == "snapshot"
    asked.shard = 0
    with pytest.raises(ArgumentError, match="an id means nothing without its snapshot"):
        ShardEngine(Holdings()).get_chunks(asked)


@pytest.mark.parametrize("data", [b"", b"1234", np.asarray([-1]).tobytes(), np.asarray([5]).tobytes()])
def test_bad_ids_are_refused(data: bytes) -> None:
    with pytest.raises(ArgumentError, match="ids"):
        read_ids(data, 5)


def test_options_are_the_settings(tmp_path: Path) -> None:
    member = ["--role", "shard", "--member-index", "1", "--member-count", "2"]
    config = parse_args([*member, "--no-snapshot-guard", "--databases", "a", "b", "--registry", str(tmp_path)])
    assert (config.member_index, config.member_count, config.snapshot_guard) == (1, 2, False)
    assert config.databases == ("a", "b")
    with pytest.raises(ConfigError, match="member_index"):
        parse_args(["--role", "shard", "--member-index", "2", "--registry", str(tmp_path)])
