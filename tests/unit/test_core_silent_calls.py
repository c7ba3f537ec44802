"""Callers who say nothing, or take no answer, hold up no others, whatever they called."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from openbook_core.rpc import workers
from openbook_core.rpc.channel import open_channel
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))
from test_core_health import WORKERS, Slow, serving, unread

EMBEDDER = "/openbook_proto.v1.Embedder/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
ASKED = embedder_pb2.GetInfoRequest()


class Streaming(Slow):
    """Answers each message of a stream."""

    def EmbedStream(
        self, requests: Iterator[embedder_pb2.EmbedStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[embedder_pb2.EmbedStreamReply]:
        for request in requests:
            yield embedder_pb2.EmbedStreamReply(sequence=request.sequence)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE_S", 0.2)


@pytest.mark.parametrize("method", [EMBEDDER + "GetInfo", EMBEDDER + "EmbedStream", REFLECTION])
def test_calls_whose_message_never_comes_stop_no_other(method: str) -> None:
    never, slow = threading.Event(), Streaming()
    slow.gate.set()
    with serving(slow) as (server, channel), open_channel(server.address) as bad:
        silent = [bad.stream_stream(method)(iter(never.wait, None), timeout=60) for _ in range(2 * WORKERS + 3)]
        stub = embedder_pb2_grpc.EmbedderStub(channel)
        for _ in range(3):
            stub.GetInfo(ASKED, timeout=30)
        for call in silent:
            call.cancel()
        never.set()


def test_a_stream_that_falls_silent_stops_no_other_and_one_that_stands_in_nobody_s_way_goes_on() -> None:
    slow, more = Streaming(), [threading.Semaphore(0) for _ in range(WORKERS)]
    slow.gate.set()

    def say(messages: int) -> None:
        for each in more:
            each.release(messages)

    def messages(said: threading.Semaphore) -> Iterator[embedder_pb2.EmbedStreamRequest]:
        for number in range(1, 10):
            said.acquire()
            yield embedder_pb2.EmbedStreamRequest(sequence=number)

    with serving(slow) as (server, channel), open_channel(server.address) as bad:
        streams = [embedder_pb2_grpc.EmbedderStub(bad).EmbedStream(messages(said), timeout=60) for said in more]
        say(1)
        assert [next(stream).sequence for stream in streams] == [1] * WORKERS
        time.sleep(1)
        say(1)
        assert [next(stream).sequence for stream in streams] == [2] * WORKERS, "nobody waits, so nobody is cancelled"
        embedder_pb2_grpc.EmbedderStub(channel).GetInfo(ASKED, timeout=30)
        say(10)
        ends = [stream.code() for stream in streams if not _goes_on(stream)]
        assert ends and set(ends) == {grpc.StatusCode.CANCELLED}


def _goes_on(stream: Iterator[embedder_pb2.EmbedStreamReply]) -> bool:
    try:
        return next(stream).sequence > 2
    except grpc.RpcError:
        return False


def test_callers_who_take_no_answer_stop_no_other() -> None:
    slow = Streaming()
    slow.gate.set()
    with serving(slow) as (server, channel), unread(server.address, EMBEDDER + "EmbedStream", 2 * WORKERS + 3):
        embedder_pb2_grpc.EmbedderStub(channel).GetInfo(ASKED, timeout=30)


def test_calls_that_are_worked_on_are_never_cancelled() -> None:
    slow = Streaming()
    with serving(slow) as (_, channel):
        stub = embedder_pb2_grpc.EmbedderStub(channel)
        calls = [stub.GetInfo.future(ASKED, timeout=60) for _ in range(WORKERS + 2)]
        for _ in range(WORKERS):
            assert slow.entered.acquire(timeout=10)
        time.sleep(1)
        slow.gate.set()
        for call in calls:
            call.result()
