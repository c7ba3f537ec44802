"""Health checks hold up no work, and no work holds them up."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.health import MOST_CALLS
from openbook_core.rpc.server import RunningServer, start_server
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

WORKERS = 2
ASKED = health_pb2.HealthCheckRequest()
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Slow(embedder_pb2_grpc.EmbedderServicer):
    """`gate` holds answers back."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)

    def GetInfo(self, request: embedder_pb2.GetInfoRequest, context: grpc.ServicerContext) -> embedder_pb2.GetInfoReply:
        self.entered.release()
        assert self.gate.wait(30)
        return embedder_pb2.GetInfoReply()


@contextmanager
def serving(slow: Slow) -> Iterator[tuple[RunningServer, grpc.Channel]]:
    server = start_server(
        lambda s: embedder_pb2_grpc.add_EmbedderServicer_to_server(slow, s),
        host="127.0.0.1",
        port=0,
        services=["openbook_proto.v1.Embedder"],
        max_workers=WORKERS,
    )
    server.set_ready(True)
    try:
        with open_channel(server.address) as channel:
            yield server, channel
    finally:
        slow.gate.set()
        server.stop(0)


def test_open_watches_hold_no_thread_and_hear_of_changes() -> None:
    slow = Slow()
    slow.gate.set()
    with serving(slow) as (server, channel):
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(ASKED, timeout=60) for _ in range(WORKERS + 1)]
        assert [next(watch).status for watch in watches] == [SERVING] * len(watches)
        embedder_pb2_grpc.EmbedderStub(channel).GetInfo(embedder_pb2.GetInfoRequest(), timeout=10)
        assert health.Check(ASKED, timeout=10).status == SERVING
        server.set_ready(False)
        assert [next(watch).status for watch in watches] == [NOT_SERVING] * len(watches)
        for watch in watches:
            watch.cancel()


def test_a_part_is_ready_by_itself_but_never_without_the_server() -> None:
    with serving(Slow()) as (server, channel):
        health = health_pb2_grpc.HealthStub(channel)
        part = health_pb2.HealthCheckRequest(service="openbook_proto.v1.Embedder/part")
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(part, timeout=10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        for ready, part_ready in ((True, False), (True, True), (False, True), (True, True), (True, False)):
            server.set_ready(ready)
            server.set_part(part.service, part_ready)
            assert (health.Check(part, timeout=10).status == SERVING) is (ready and part_ready)
            assert (health.Check(ASKED, timeout=10).status == SERVING) is ready


def test_a_watch_that_ends_while_the_state_changes_stops_nothing() -> None:
    with serving(Slow()) as (server, channel):
        health = health_pb2_grpc.HealthStub(channel)
        for turn in range(20):
            watches = [health.Watch(ASKED, timeout=60) for _ in range(3)]
            for watch in watches:
                next(watch)
                watch.cancel()
            change = threading.Thread(target=server.set_ready, args=(turn % 2 == 0,), daemon=True)
            change.start()
            change.join(10)
            assert not change.is_alive()
        assert health.Check(ASKED, timeout=10).status == NOT_SERVING


def test_health_is_answered_while_all_workers_are_busy() -> None:
    slow = Slow()
    with serving(slow) as (_, channel):
        stub = embedder_pb2_grpc.EmbedderStub(channel)
        calls = [stub.GetInfo.future(embedder_pb2.GetInfoRequest(), timeout=60) for _ in range(WORKERS)]
        for _ in calls:
            assert slow.entered.acquire(timeout=10)
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(ASKED, timeout=5).status == SERVING
        watch = health.Watch(ASKED, timeout=5)
        assert next(watch).status == SERVING
        watch.cancel()
        slow.gate.set()
        for call in calls:
            call.result()


@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_calls_whose_message_never_comes_stop_no_check(method: str) -> None:
    never = threading.Event()
    with serving(Slow()) as (server, channel), open_channel(server.address) as bad:
        silent = [bad.stream_stream(method)(iter(never.wait, None), timeout=60) for _ in range(MOST_CALLS + 5)]
        health = health_pb2_grpc.HealthStub(channel)
        assert all(health.Check(ASKED, timeout=10).status == SERVING for _ in range(5))
        assert next(health.Watch(ASKED, timeout=10)).status == SERVING
        for call in silent:
            call.cancel()
        never.set()


@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_callers_who_take_no_answer_stop_nobody(method: str) -> None:
    with serving(Slow()) as (server, channel), unread(server.address, method, MOST_CALLS + 5):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(ASKED, timeout=20)
        assert next(watch).status == SERVING
        server.set_ready(False)
        assert next(watch).status == NOT_SERVING
        assert health.Check(ASKED, timeout=10).status == NOT_SERVING


def test_a_check_without_a_message_and_one_of_other_bytes_are_refused() -> None:
    with serving(Slow()) as (_, channel):
        for messages, code in ([], grpc.StatusCode.UNIMPLEMENTED), ([b"\xff"], grpc.StatusCode.INVALID_ARGUMENT):
            with pytest.raises(grpc.RpcError) as refused:
                list(channel.stream_stream(CHECK)(iter(messages), timeout=10))
            assert refused.value.code() is code


@contextmanager
def unread(address: str, method: str, calls: int) -> Iterator[None]:
    """Calls of a client that never takes a byte of an answer: HTTP/2 with an initial window of 0."""

    def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
        return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content

    headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "a", "te": "trailers"}
    headers |= {"content-type": "application/grpc"}
    block = b"".join(
        b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in header) for header in headers.items()
    )
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"\0\4\0\0\0\0")
    for stream in itertools.islice(itertools.count(1, 2), calls):
        sent += frame(1, 4, stream, block) + frame(0, 1, stream, bytes(5))
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(sent)
        connection.settimeout(10)
        while frame(4, 1, 0, b"") not in connection.recv(4096):
            pass
        yield
