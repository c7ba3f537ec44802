"""The threads that serve calls, and how many calls they take in."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from threading import Lock, local
from typing import Any

from openbook_core.admission import Admission
from openbook_core.rpc.health import HealthCalls

# Before the first call was timed; only the first retry delays rest on it.
_ASSUMED_CALLS_PER_S = 500.0


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
        """Raises OverloadedError with a retry delay in a call that was not taken in."""
        if getattr(self._thread, "refuses", False):
            with self._lock:
                raise self._admission.refusal(self._taken, 1)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._refusing.shutdown(wait, cancel_futures=cancel_futures)
        self.health.shutdown(wait, cancel_futures)
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _refuse_here(self) -> None:
        self._thread.refuses = True

    def _serve(self, serve: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        begun = time.monotonic()
        busy = min(self._taken, self._max_workers)
        try:
            return serve(*arguments, **options)
        finally:
            with self._lock:
                self._taken -= 1
                self._admission.measured(busy, time.monotonic() - begun)
