"""One request at several processes: who is asked for what, who is overtaken, what is cancelled, who is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from openbook_core.errors import ArgumentError, DeadlineError, OpenbookError, OverloadedError
from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.server import start_server
from openbook_core.rpc.status import error_from_rpc
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc
from openbook_retriever import replicas as replicas_module
from openbook_retriever.fan_out import Answers, Question, ask
from openbook_retriever.metrics import CHANNELS, HEDGES, HEDGES_WON
from openbook_retriever.replicas import Replicas

SNAPSHOT = "a" * 64
SERVICE = "openbook_proto.v1.Retriever"


class SlowShard(retriever_pb2_grpc.RetrieverServicer):
    """Keeps the shards of each call; `gate` holds answers back, `left` says that a caller went away meanwhile."""

    def __init__(self, *, slow: bool = False, error: OpenbookError | None = None) -> None:
        self.calls: list[list[int]] = []
        self.gate, self.entered, self.left = threading.Event(), threading.Event(), threading.Event()
        self.error = error
        if not slow:
            self.gate.set()

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        self.calls.append(list(request.shards))
        self.entered.set()
        context.add_callback(lambda: None if self.gate.is_set() else self.left.set())
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return pb.SearchReply(snapshot=request.snapshot)


@contextmanager
def serving(*shards: SlowShard, **options: Any) -> Iterator[list[str]]:
    running = [
        start_server(
            lambda server, shard=shard: retriever_pb2_grpc.add_RetrieverServicer_to_server(shard, server),  # type: ignore[misc]
            host="127.0.0.1",
            port=0,
            services=[SERVICE],
            **options,
        )
        for shard in shards
    ]
    for server in running:
        server.set_ready(True)
    try:
        yield [server.address for server in running]
    finally:
        for shard in shards:
            shard.gate.set()
        for server in running:
            server.stop(0)


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Iterator[Replicas]:
    monkeypatch.setattr(replicas_module, "_FIRST_HEDGE_S", 0.05)
    made = Replicas()
    yield made
    made.close()


def search(replicas: Replicas, serving_of: Sequence[Sequence[str]], timeout_s: float = 30.0) -> Answers[Any]:
    def bytes_for(shards: tuple[int, ...]) -> bytes:
        return pb.SearchRequest(database="book", snapshot=SNAPSHOT, shards=shards).SerializeToString()

    question = Question("Search", range(len(serving_of)), bytes_for, 1)
    return ask(replicas, question, serving_of.__getitem__, lambda: serving_of.__getitem__, timeout_s)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def count(metric: Any) -> float:
    return float(metric.collect()[0].samples[0].value)


def test_a_process_is_asked_once_for_all_shards_that_it_serves(replicas: Replicas) -> None:
    shards = SlowShard(), SlowShard()
    with serving(*shards) as (one, other):
        answers = search(replicas, [[one], [other], [one], [one]])
    assert sorted(answers.parts) == [(0, 2, 3), (1,)]
    assert [shard.calls for shard in shards] == [[[0, 2, 3]], [[1]]]


def test_a_late_replica_is_overtaken_and_its_call_cancelled_and_then_it_is_left_alone(replicas: Replicas) -> None:
    slow, quick = SlowShard(slow=True), SlowShard()
    sent, won = count(HEDGES), count(HEDGES_WON)
    with serving(slow, quick) as addresses:
        assert replicas.choose(addresses) == addresses[0]
        assert search(replicas, [addresses]).parts.keys() == {(0,)}
        assert slow.left.wait(10), "the loser was cancelled"
        assert (slow.calls, quick.calls) == ([[0]], [[0]])
        assert (count(HEDGES), count(HEDGES_WON)) == (sent + 1, won + 1)
        for _ in range(3):
            search(replicas, [addresses])
        assert len(slow.calls) == 1, "one that hangs is not chosen again at once"


def test_a_process_that_hangs_is_overtaken_by_several_where_no_other_serves_all_its_shards(replicas: Replicas) -> None:
    slow, left, right = SlowShard(slow=True), SlowShard(), SlowShard()
    with serving(slow, left, right) as (first, second, third):
        answers = search(replicas, [[first, second], [first, third]])
    assert sorted(answers.parts) == [(0,), (1,)]
    assert (left.calls, right.calls) == ([[0]], [[1]])


def test_extra_calls_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "_FIRST_HEDGE_S", 0.02)
    slow, quick = SlowShard(slow=True), SlowShard()
    with serving(slow, quick) as addresses, pytest.raises(DeadlineError):
        search(Replicas(hedge_share=0), [addresses], 0.5)
    assert quick.calls == []


def test_the_busiest_replica_is_asked_last(replicas: Replicas) -> None:
    shards = SlowShard(slow=True), SlowShard()
    with serving(*shards) as addresses, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(search, replicas, [addresses[:1]])
        assert shards[0].entered.wait(10)
        for _ in range(3):
            search(replicas, [addresses])
        shards[0].gate.set()
        busy.result()
    assert [len(shard.calls) for shard in shards] == [1, 3]


def test_where_one_part_fails_the_others_are_cancelled(replicas: Replicas) -> None:
    bad, slow = SlowShard(error=ArgumentError("queries: are bad", field="queries")), SlowShard(slow=True)
    with serving(bad, slow) as (one, other):
        bad.gate.clear()
        threading.Thread(target=lambda: slow.entered.wait(10) and bad.gate.set()).start()
        with pytest.raises(ArgumentError, match="are bad") as caught:
            search(replicas, [[one], [other]])
        assert caught.value.metadata["shard"] == "0"
        assert slow.left.wait(10)


def test_channels_that_nobody_uses_are_closed(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(SlowShard(), SlowShard()) as (one, other):
        search(replicas, [[one]])
        search(replicas, [[other]])
        assert count(CHANNELS) == 2
        monkeypatch.setattr(replicas_module, "_IDLE_S", 0.0)
        search(replicas, [[other]])
        assert count(CHANNELS) == 1
        assert search(replicas, [[one]]).missing == {}, "it is opened again"


def test_hundreds_of_calls_at_once_are_answered_or_told_when_to_come_back() -> None:
    shard = SlowShard(slow=True)
    with serving(shard, max_workers=4, max_calls=32) as (address,), open_channel(address) as channel:
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        calls = [stub.Search.future(pb.SearchRequest(snapshot=SNAPSHOT), timeout=60) for _ in range(300)]
        wait_for(lambda: sum(call.done() for call in calls) == 268)
        refused = [error_from_rpc(call.exception(), "shard") for call in calls if call.done()]
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert health.status == health_pb2.HealthCheckResponse.SERVING, "nobody takes a busy process for a dead one"
        shard.gate.set()
        answered = [call.result().snapshot for call in calls if call.exception() is None]
        assert answered == [SNAPSHOT] * 32
        assert stub.Search(pb.SearchRequest(snapshot=SNAPSHOT), timeout=20).snapshot == SNAPSHOT
    for error in refused:
        assert isinstance(error, OverloadedError)
        assert error.retry_after_s is not None
        assert error.retry_after_s >= 0.05
