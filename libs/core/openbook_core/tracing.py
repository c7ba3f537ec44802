"""OpenTelemetry traces: off unless `setup_traces` is given a collector, and then the extra openbook-core[traces] is needed.

A service that is off still hands its caller's trace context on, so that a trace is not torn by it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from openbook_core.errors import ConfigError
from openbook_core.telemetry import get_logger, request_id

_HEADERS = {"traceparent": r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", "tracestate": r"[\x20-\x7e]{1,512}"}
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORT_TIMEOUT_S = 5

_log = get_logger(__name__)
_carried: ContextVar[Mapping[str, str]] = ContextVar("trace", default=MappingProxyType({}))
# Tracer and provider of OpenTelemetry's SDK, once traces are on.
_tracer: Any = None
_provider: Any = None


def setup_traces(service: str, endpoint: str | None = None) -> None:
    """Send spans to `endpoint`, such as http://127.0.0.1:4318, or to where OpenTelemetry's own variables say.

    Raises ConfigError where `endpoint` is given and the extra is not installed; for the variables this is a warning.
    """
    global _tracer, _provider
    if not endpoint and not any(os.environ.get(name) for name in _VARIABLES):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = f"traces_endpoint: {error.name} is missing; install openbook-core[traces]"
        if endpoint:
            raise ConfigError(message, field="traces_endpoint") from None
        _log.warning(message)
        return
    if endpoint and not re.match(r"https?://[^/]", endpoint):
        raise ConfigError(f"traces_endpoint: give http://HOST:PORT, given {endpoint!r}", field="traces_endpoint")
    url = f"{endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/traces" if endpoint else None
    _provider = TracerProvider(resource=Resource.create({"service.name": f"openbook-{service}"}))
    exporter = OTLPSpanExporter(endpoint=url, timeout=_EXPORT_TIMEOUT_S)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("openbook")


def stop_traces() -> None:
    """Send what is left and switch traces off."""
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is not None:
        provider.shutdown()


@contextmanager
def serving(name: str, headers: Mapping[str, str]) -> Iterator[None]:
    """The work on one request, a span of the caller's trace; `headers` hold its context, keys in lower case."""
    carried = {key: headers[key] for key, form in _HEADERS.items() if re.fullmatch(form, headers.get(key, ""))}
    _carried.set(carried)
    if _tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(carried)
    attributes = {"openbook.request_id": request_id()}
    with _tracer.start_as_current_span(
        name, parent, SpanKind.SERVER, attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_status(StatusCode.ERROR, str(error))
            raise


def annotate(**attributes: Any) -> None:
    """Attributes of the current span, as openbook.NAME; does nothing where traces are off."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes({f"openbook.{name}": value for name, value in attributes.items()})


def record(name: str, start_s: float, end_s: float, **attributes: Any) -> None:
    """A finished part of the current span, in seconds of time.monotonic()."""
    if _tracer is not None:
        now_ns, now_s = time.time_ns(), time.monotonic()
        begin, end = (now_ns - int(1e9 * (now_s - each)) for each in (start_s, end_s))
        named = {f"openbook.{key}": value for key, value in attributes.items()}
        _tracer.start_span(name, start_time=begin, attributes=named).end(end)


def outgoing() -> list[tuple[str, str]]:
    """What a call to another service carries: the request id and the trace's context."""
    carried = dict(_carried.get())
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carried = {}
        TraceContextTextMapPropagator().inject(carried)
    if current := request_id():
        carried["x-request-id"] = current
    return list(carried.items())
