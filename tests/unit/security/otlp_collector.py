"""A collector of traces: a real HTTP server that takes OTLP and keeps the spans."""

from __future__ import annotations

import gzip
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span as it arrived; ids as hexadecimal digits, `parent` is "" for a root."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    error: bool
    nanoseconds: int
    attributes: dict[str, object]


class Collector:
    """`endpoint` is what services are given."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.spans: list[Span] = []

    def add(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            )
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
                    self.spans.append(
                        Span(
                            service,
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.status.code == 2,
                            span.end_time_unix_nano - span.start_time_unix_nano,
                            values,
                        )
                    )

    def wait_for(self, trace: str, names: Iterable[str], timeout_s: float = 20.0) -> list[Span]:
        """The spans of `trace`, once each name is there as often as it is in `names`."""
        end = time.monotonic() + timeout_s
        while True:
            found = [span for span in self.spans if span.trace == trace]
            if Counter(names) <= Counter(span.name for span in found):
                return found
            assert time.monotonic() < end, f"arrived: {[(s.service, s.name, s.trace) for s in self.spans]}"
            time.sleep(0.02)


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            collector.add(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield collector
        finally:
            server.shutdown()
