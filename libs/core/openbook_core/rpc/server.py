"""A gRPC server with health, reflection, TLS, tokens, request ids, traces and errors that carry details."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from openbook_core.errors import OpenbookError, Reason, UnavailableError
from openbook_core.rpc.channel import KEEPALIVE_S, LIMITS, keepalive
from openbook_core.rpc.status import status_from_error
from openbook_core.rpc.undecodable import decoded, deserializer_of
from openbook_core.rpc.workers import Workers
from openbook_core.security.options import Protection
from openbook_core.security.tokens import TokenFile, bind_caller, scope_of
from openbook_core.telemetry import RPC_SECONDS, bind_request_id, get_logger
from openbook_core.tracing import serving

_log = get_logger("openbook.rpc")


class RunningServer:
    """A started server; `stop` may be called from any thread, more than once."""

    def __init__(self, server: grpc.Server, address: str, health_servicer: Any, services: Sequence[str]) -> None:
        self.address = address
        self._server, self._health, self._services = server, health_servicer, services
        self._signal = threading.Event()
        self._lock = threading.Lock()
        self._ready, self._parts = False, dict[str, bool]()

    def set_ready(self, ready: bool) -> None:
        """What the health service says of each service, and of the server as a whole, which is named ""."""
        with self._lock:
            self._ready = ready
            for name in ("", *self._services):
                self._say(name, ready)
            for name, part_ready in self._parts.items():
                self._say(name, ready and part_ready)

    def set_part(self, name: str, ready: bool) -> None:
        """What it says of a part that may be ready or not while the server is; never ready while that is not."""
        with self._lock:
            if self._parts.get(name) != ready:
                self._parts[name] = ready
                self._say(name, self._ready and ready)

    def _say(self, name: str, ready: bool) -> None:
        states = health_pb2.HealthCheckResponse
        self._health.set(name, states.SERVING if ready else states.NOT_SERVING)

    def stop(self, grace_s: float = 5.0) -> None:
        """Not ready first, then let running calls end for at most `grace_s` seconds."""
        self.set_ready(False)
        self._server.stop(grace_s).wait()

    def wait_for_signal(self, grace_s: float = 5.0, before_stop: Callable[[], None] = lambda: None) -> None:
        """Block the main thread until SIGTERM or Ctrl-C, then call `before_stop`, still serving, and stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._signal.set())
        while not self._signal.wait(0.5):
            pass
        before_stop()
        self.stop(grace_s)


def start_server(
    register: Callable[[grpc.Server], None],
    *,
    host: str,
    port: int,
    services: Sequence[str],
    max_workers: int = 8,
    max_calls: int = 4096,
    protection: Protection | None = None,
    keepalive_s: float = KEEPALIVE_S,
    max_connection_age_s: float | None = None,
    reflects: bool = True,
) -> RunningServer:
    """Start serving on `host`:`port` (0 picks a free port); not ready until `set_ready(True)`.

    `max_workers` calls are served at once and `max_calls` taken in; more are refused with RESOURCE_EXHAUSTED and a retry
    delay. While calls wait for others to end, those whose callers are silent are cancelled (`rpc.workers`).
    With tokens in `protection` every call needs one. None of this holds for health checks (`security.tokens.scope_of`),
    which have threads of their own (`rpc.health`). `reflects`: tell whoever asks which services and messages there are.
    A client that vanished without a word is given up after 1.5 times `keepalive_s`. A connection older than
    `max_connection_age_s`, give or take a tenth, takes no new calls: its client connects anew, and perhaps elsewhere.
    Raises UnavailableError with reason PORT_IN_USE when the address is taken.
    """
    protection = protection or Protection()
    workers = Workers(max_workers, max_calls)
    server = grpc.server(
        workers,
        interceptors=[_Interceptor(protection.tokens, workers)],
        options=[
            *LIMITS,
            *keepalive(keepalive_s, idle=True),
            *(
                []
                if max_connection_age_s is None
                else [("grpc.max_connection_age_ms", int(1000 * max_connection_age_s))]
            ),
            ("grpc.so_reuseport", 0),
        ],
    )
    register(server)
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if reflects:
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    require_free(host, port)
    try:
        if protection.tls is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            bound = server.add_secure_port(f"{host}:{port}", protection.tls.credentials())
    except RuntimeError as error:
        raise _port_in_use(host, port) from error
    running = RunningServer(server, f"{host}:{bound}", servicer, services)
    running.set_ready(False)
    server.start()
    return running


def require_free(host: str, port: int) -> None:
    """Raise UnavailableError with reason PORT_IN_USE where `host`:`port` cannot be listened on now.

    For what takes long before `start_server`, and because gRPC writes lines of its own about a port that is taken.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise _port_in_use(host, port) from error


def _port_in_use(host: str, port: int) -> UnavailableError:
    return UnavailableError(
        f"cannot listen on {host}:{port}: the port is in use or not allowed; choose another with --port",
        field="port",
        reason=Reason.PORT_IN_USE,
    )


class _Interceptor(grpc.ServerInterceptor):
    """Asks for the token, turns errors into statuses, binds request id, caller and trace, and counts.

    A stream's handler is a generator.
    """

    def __init__(self, tokens: TokenFile | None, workers: Workers) -> None:
        self._tokens, self._workers = tokens, workers

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        headers = {key: value for key, value in details.invocation_metadata if isinstance(value, str)}
        caller, scope = "", scope_of(details.method)
        if self._tokens is not None and scope is not None:
            try:
                caller = self._tokens.admit(headers.get("authorization"), scope, details.method.lstrip("/"))
            except OpenbookError as error:
                return _refusal(error, details.method, headers)
        handler = continuation(details)
        if handler is None or handler.stream_unary:
            return handler
        if scope is None:
            return self._workers.health.handler(
                handler, lambda context: _answering(details.method, headers, caller, context)
            )

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with _answering(details.method, headers, caller, context):
                self._workers.require_admitted()
                return handler.unary_unary(decoded(request), context)

        def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with _answering(details.method, headers, caller, context):
                self._workers.require_admitted()
                for reply in handler.stream_stream(map(decoded, self._workers.each(requests)), context):
                    with self._workers.waiting():
                        yield reply

        def follow(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _answering(details.method, headers, caller, context):
                self._workers.require_admitted()
                for reply in handler.unary_stream(decoded(request), context):
                    with self._workers.waiting():
                        yield reply

        kind: Any = grpc.stream_stream_rpc_method_handler
        behaviour: Any = stream
        if handler.unary_unary:
            kind, behaviour = grpc.unary_unary_rpc_method_handler, call
        elif handler.unary_stream:
            kind, behaviour = grpc.unary_stream_rpc_method_handler, follow
        return kind(
            behaviour,
            request_deserializer=deserializer_of(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


def _refusal(error: OpenbookError, method: str, headers: Mapping[str, str]) -> Any:
    """A handler that raises `error` before any message is read; for calls of every kind, a stream being the general one."""

    def refuse(_: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        with _answering(method, headers, "", context):
            raise error
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)


@contextmanager
def _answering(path: str, headers: Mapping[str, str], caller: str, context: grpc.ServicerContext) -> Iterator[None]:
    service, _, method = path.rpartition("/")
    bind_request_id(headers.get("x-request-id"))
    bind_caller(caller)
    start = time.perf_counter()
    code = "OK"
    try:
        with serving(f"{service.rpartition('.')[2]}/{method}", headers):
            yield
    except OpenbookError as error:
        code = error.grpc_code
        context.abort_with_status(rpc_status.to_status(status_from_error(error)))
    except Exception as error:
        if context.code() is not None:  # the handler aborted by itself
            raise
        code = "INTERNAL"
        _log.exception("unexpected error in %s", method)
        wrapped = OpenbookError(f"{method}: unexpected {type(error).__name__}: {error}")
        context.abort_with_status(rpc_status.to_status(status_from_error(wrapped)))
    finally:
        RPC_SECONDS.labels(method=method, code=code).observe(time.perf_counter() - start)
