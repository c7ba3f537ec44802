"""Health checks: on threads of their own, which no caller can keep.

gRPC gives each call a thread that waits for the call's message, and waits again until each answer is on its way. A caller
who sends no message, or takes no answer, would keep it. So there are many, and where all are taken the call that has held
its thread longest gives way, once it has held it for longer than any honest call does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Any

import grpc

from openbook_core.rpc.undecodable import decoded, deserializer_of

MOST_CALLS = 64
_PATIENCE_S = 0.25
_NO_MESSAGE = "a health check holds one message, and none came"


class HealthCalls:
    """Handlers for the calls of grpc.health.v1, which take the place of the servicer's own."""

    def __init__(self) -> None:
        self._checks = _Threads(MOST_CALLS, "rpc-health")
        # Apart, so that a check waits for no watch.
        self._watches = _Threads(MOST_CALLS, "rpc-health-watch")

    def handler(self, handler: Any, answering: Callable[[grpc.ServicerContext], Any]) -> Any:
        """For one call of `handler`'s method; what it does happens within `answering`.

        A stream in both directions, which is the same on the wire: its handler asks for the message itself.
        """
        behaviour: Any = self._watch(handler, answering) if handler.unary_stream else self._check(handler, answering)
        return grpc.stream_stream_rpc_method_handler(
            behaviour, deserializer_of(handler.request_deserializer), handler.response_serializer
        )

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        for threads in (self._checks, self._watches):
            threads.shutdown(wait, cancel_futures=cancel_futures)

    def _check(self, handler: Any, answering: Callable[[grpc.ServicerContext], Any]) -> Any:
        def check(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._checks.held_by(context):
                for request in _first(requests, context):
                    with answering(context):
                        reply = handler.unary_unary(decoded(request), context)
                    if context.code() in (None, grpc.StatusCode.OK):
                        yield reply

        behaviour: Any = check
        behaviour.experimental_thread_pool = self._checks
        return behaviour

    def _watch(self, handler: Any, answering: Callable[[grpc.ServicerContext], Any]) -> Any:
        """Not wrapped in a generator: each open watch would hold a thread until its caller goes away."""

        def watch(requests: Iterator[Any], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            states = _States(send, context, self._watches)
            with self._checks.held_by(context):
                for request in _first(requests, context):
                    with answering(context):
                        handler.unary_stream(decoded(request), context, states.put)

        behaviour: Any = watch
        behaviour.experimental_non_blocking = True
        behaviour.experimental_thread_pool = self._checks
        return behaviour


class _Threads(ThreadPoolExecutor):
    """Holds `most` calls, and one more that waits for the place of another."""

    def __init__(self, most: int, name: str) -> None:
        super().__init__(most + 1, thread_name_prefix=name)
        self._most = most
        self._held: dict[grpc.ServicerContext, float] = {}
        self._changed = Condition()

    @contextmanager
    def held_by(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Inside, the call has a thread of this pool; it may be cancelled for another one's sake."""
        with self._changed:
            while len(self._held) >= self._most:
                oldest, since = next(iter(self._held.items()))
                left_s = since + _PATIENCE_S - time.monotonic()
                if left_s > 0:
                    self._changed.wait(left_s)
                else:
                    del self._held[oldest]
                    oldest.cancel()
            self._held[context] = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._held.pop(context, None)
                self._changed.notify()


class _States:
    """What one watch is told: the latest state, sent by another thread, one at a time.

    The servicer tells it under a lock that the thread which ends a send may be waiting for, to forget a watch that ended.
    """

    def __init__(self, send: Callable[[Any], None], context: grpc.ServicerContext, threads: _Threads) -> None:
        self._send, self._context, self._threads = send, context, threads
        self._lock = Lock()
        self._latest: list[Any] = []
        self._sending = False

    def put(self, state: Any) -> None:
        """Send `state`, or None to end the watch."""
        with self._lock:
            self._latest = [state]
            if self._sending:
                return
            self._sending = True
        self._threads.submit(self._send_all)

    def _send_all(self) -> None:
        with self._threads.held_by(self._context):
            while (state := self._take()) is not None:
                self._send(*state)

    def _take(self) -> list[Any] | None:
        with self._lock:
            state, self._latest = self._latest, []
            self._sending = bool(state)
            return state or None


def _first(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    """The call's message; nothing where the call ended before it came."""
    try:
        request = next(requests, None)
    except grpc.RpcError:
        return
    if request is None:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_MESSAGE)
    yield request
