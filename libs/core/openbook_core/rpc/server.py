"""A gRPC server with health, reflection, request ids and errors that carry details."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from openbook_core.errors import ArgumentError, OpenbookError, Reason, UnavailableError
from openbook_core.rpc.channel import LIMITS
from openbook_core.rpc.status import status_from_error
from openbook_core.rpc.undecodable import deserializer_of
from openbook_core.telemetry import RPC_SECONDS, bind_request_id, get_logger

_log = get_logger("openbook.rpc")


class RunningServer:
    """A started server; `stop` may be called from any thread, more than once."""

    def __init__(self, server: grpc.Server, address: str, health_servicer: Any, services: Sequence[str]) -> None:
        self.address = address
        self._server, self._health, self._services = server, health_servicer, services
        self._signal = threading.Event()

    def set_ready(self, ready: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            self._health.set(service, state)

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
) -> RunningServer:
    """Start serving on `host`:`port` (0 picks a free port); not ready until `set_ready(True)`.

    Raises UnavailableError with reason PORT_IN_USE when the address is taken.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers, thread_name_prefix="rpc"),
        interceptors=[_Interceptor()],
        options=[*LIMITS, ("grpc.so_reuseport", 0)],
    )
    register(server)
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    require_free(host, port)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise _port_in_use(host, port) from error
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
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
    """Turns errors into statuses, binds the request id, and counts; a stream's handler is a generator."""

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(details)
        if handler is None or not (handler.unary_unary or handler.stream_stream):
            return handler
        method = details.method.rsplit("/", 1)[-1]
        request_id = next((str(v) for k, v in details.invocation_metadata if k == "x-request-id"), None)

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with _answering(method, request_id, context):
                return handler.unary_unary(_decoded(request), context)

        def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with _answering(method, request_id, context):
                yield from handler.stream_stream(map(_decoded, requests), context)

        kind = grpc.unary_unary_rpc_method_handler if handler.unary_unary else grpc.stream_stream_rpc_method_handler
        return kind(
            call if handler.unary_unary else stream,
            request_deserializer=deserializer_of(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


def _decoded(request: Any) -> Any:
    if isinstance(request, ArgumentError):
        raise request
    return request


@contextmanager
def _answering(method: str, request_id: str | None, context: grpc.ServicerContext) -> Iterator[None]:
    bind_request_id(request_id)
    start = time.perf_counter()
    code = "OK"
    try:
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
