"""The threads that serve calls, and how many calls they take in.

gRPC gives each call a thread that waits for its caller: for the first message, for the next one of a stream, and until an
answer of a stream is on its way. So that silent callers hold up no others, the calls that have waited longest are cancelled
while others wait for a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from threading import Event, Lock, Thread, get_ident, local
from typing import Any

import grpc

from openbook_core.admission import Admission
from openbook_core.rpc.health import HealthCalls

# Before the first call was timed; only the first retry delays rest on it.
_ASSUMED_CALLS_PER_S = 500.0
# No caller of good will is silent for longer, but between two messages of a stream.
PATIENCE_S = 5.0
_LOOK_EVERY_S = 0.25


class Workers(futures.ThreadPoolExecutor):
    """`count` threads that serve. A call that comes while `most` are served or wait goes to a thread of its own kind, which
    refuses it, so that a refusal waits for nobody. `health`: the threads of health checks, which wait for no work."""

    def __init__(self, count: int, most: int) -> None:
        super().__init__(count, thread_name_prefix="rpc")
        self._admission = Admission("calls", max(count, most), _ASSUMED_CALLS_PER_S)
        self._lock = Lock()
        self._taken = 0
        self._thread = local()
        self._refusing = futures.ThreadPoolExecutor(1, thread_name_prefix="rpc-refuse", initializer=self._refuse_here)
        self.health = HealthCalls()
        self._silent: dict[int, tuple[float, Any]] = {}
        self._ended = Event()
        Thread(target=self._cancel_silent, name="rpc-silent", daemon=True).start()

    def submit(self, serve: Callable[..., Any], /, *arguments: Any, **options: Any) -> futures.Future[Any]:
        with self._lock:
            admitted = self._admission.has_room(self._taken, 1)
            self._taken += admitted
        if not admitted:
            return self._refusing.submit(serve, *arguments, **options)
        try:
            return super().submit(self._serve, serve, arguments, options)
        except RuntimeError:  # shut down
            with self._lock:
                self._taken -= 1
            raise

    def require_admitted(self) -> None:
        """The call's message is here: raises OverloadedError with a retry delay where the call was not taken in."""
        self._silent.pop(get_ident(), None)
        if getattr(self._thread, "refuses", False):
            with self._lock:
                raise self._admission.refusal(self._taken, 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, this thread's call waits for its caller."""
        call = getattr(self._thread, "call", None)
        self._silent[get_ident()] = (time.monotonic(), call)
        try:
            yield
        finally:
            self._silent.pop(get_ident(), None)

    def each(self, requests: Iterable[Any]) -> Iterator[Any]:
        """The messages of a stream, waited for, until it or the whole call ends."""
        messages, none = iter(requests), object()
        while True:
            try:
                with self.waiting():
                    request = next(messages, none)
            except grpc.RpcError:  # cancelled
                return
            if request is none:
                return
            yield request

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._ended.set()
        self._refusing.shutdown(wait, cancel_futures=cancel_futures)
        self.health.shutdown(wait, cancel_futures)
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _refuse_here(self) -> None:
        self._thread.refuses = True

    def _cancel_silent(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            with self._lock:
                queued = self._taken - self._max_workers
            if queued <= 0:
                continue
            long_ago = time.monotonic() - PATIENCE_S
            for since, call in sorted(self._silent.copy().values(), key=lambda silent: silent[0])[:queued]:
                if since < long_ago and call is not None:
                    call.cancel()

    def _serve(self, serve: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        begun = time.monotonic()
        busy = min(self._taken, self._max_workers)
        # Among what gRPC hands over is the event that began the call.
        self._thread.call = next((each.call for each in arguments if hasattr(each, "call")), None)
        self._silent[get_ident()] = (begun, self._thread.call)
        try:
            return serve(*arguments, **options)
        finally:
            self._silent.pop(get_ident(), None)
            with self._lock:
                self._taken -= 1
                self._admission.measured(busy, time.monotonic() - begun)
