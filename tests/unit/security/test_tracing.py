"""Traces where they are off, half off, or cannot be switched on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextvars import copy_context

import grpc
import pytest

from openbook_core import tracing
from openbook_core.clients import RetrieverClient
from openbook_core.errors import ConfigError
from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.server import start_server
from openbook_core.security.dial import Dial
from openbook_core.telemetry import bind_request_id, request_id
from openbook_proto.v1 import retriever_pb2, retriever_pb2_grpc

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    yield
    tracing.stop_traces()


class _Retriever(retriever_pb2_grpc.RetrieverServicer):
    """Keeps the headers of calls, and calls `next` if there is one."""

    def __init__(self, following: RetrieverClient | None = None) -> None:
        self.following, self.headers = following, {}

    def Describe(self, request: retriever_pb2.DescribeRequest, context: grpc.ServicerContext) -> object:
        self.headers = dict(context.invocation_metadata())
        if self.following is not None:
            self.following.describe("book")
        return retriever_pb2.DescribeReply(database=request_id())


def serve(retriever: _Retriever):
    return start_server(
        lambda server: retriever_pb2_grpc.add_RetrieverServicer_to_server(retriever, server),
        host="127.0.0.1",
        port=0,
        services=[],
    )


@pytest.mark.parametrize(
    ("traceparent", "kept"), [(TRACEPARENT, True), ("00-xyz", False), (f"{TRACEPARENT}-more", False), ("", False)]
)
def test_a_service_without_traces_hands_the_context_on(traceparent: str, kept: bool) -> None:
    last = _Retriever()
    behind = serve(last)
    with RetrieverClient(behind.address, Dial()) as client:
        front = serve(_Retriever(client))
        with open_channel(front.address, Dial()) as channel:
            describe = retriever_pb2_grpc.RetrieverStub(channel).Describe
            metadata = [("traceparent", traceparent), ("tracestate", "vendor=1"), ("x-request-id", "mine")]
            assert describe(retriever_pb2.DescribeRequest(), metadata=metadata).database == "mine"
        front.stop(0)
    behind.stop(0)
    assert last.headers.get("traceparent") == (TRACEPARENT if kept else None)
    assert last.headers["tracestate"] == "vendor=1"
    assert last.headers["x-request-id"] == "mine"


def test_what_may_not_stand_in_a_header_is_no_request_id() -> None:
    bind = copy_context().run
    assert bind(bind_request_id, "a-b_c.7") == "a-b_c.7"
    for odd in ("naïve", "two\nlines", "x" * 129, "", None):
        assert bind(bind_request_id, odd) not in (odd, "")


def test_nothing_of_opentelemetry_is_imported_where_traces_are_off() -> None:
    probe = (
        "import sys; import openbook_core.rpc.server; from openbook_core import tracing; tracing.setup_traces('x')\n"
        "with tracing.serving('x', {}): tracing.annotate(a=1); tracing.record('x', 0, 1); tracing.outgoing()\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_traces_without_the_extra_or_an_address_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT") as refused:
        tracing.setup_traces("embedder", "collector:4318")
    assert refused.value.field == "traces_endpoint"
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"openbook-core\[traces\]"):
        tracing.setup_traces("embedder", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    tracing.setup_traces("embedder")
    assert "install openbook-core[traces]" in caplog.text
