"""Whether the encoder answers, seen from outside of it: one that hangs raises nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from openbook_core.telemetry import get_logger

# Between two looks.
_LOOK_S = 1.0
# Longer texts and other work on the machine make a healthy batch slower than the quickest was, hardly by as much.
_SLOWER = 4

_log = get_logger(__name__)


class EncoderWatch:
    """Owns the state `ready`: not while the encoder fails, nor while one call of it is late: when it has run for more than
    `timeout_s`, and for more than 4 times what its tokens take at the best rate that was measured.

    `on_ready` hears of every change, `on_hang` of a call that is late. `on_dead` gets the reason once where the encoder
    hangs, or has failed for `restart_s`; it is for a device that only a new process brings back, so None leaves it at
    waiting. `clock` counts seconds.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        restart_s: float,
        on_ready: Callable[[bool], None],
        on_hang: Callable[[], None],
        on_dead: Callable[[str], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s, self._restart_s, self._clock = timeout_s, restart_s, clock
        self._on_ready, self._on_hang, self._on_dead = on_ready, on_hang, on_dead
        self._lock = threading.Lock()
        self._began: float | None = None
        self._limit_s, self._best_per_s = timeout_s, 0.0
        self._failing_since: float | None = None
        self.hangs = False
        self.ready = True
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="embedder-watch", daemon=True)

    @property
    def failing(self) -> bool:
        """From `fails` to `answers`."""
        return self._failing_since is not None

    @contextmanager
    def call(self, tokens: int) -> Iterator[None]:
        """Around each call of the encoder with so many padded `tokens`; one at a time."""
        expected_s = tokens / self._best_per_s if self._best_per_s else 0.0
        self._limit_s = max(self._timeout_s, _SLOWER * expected_s)
        self._began = began = self._clock()
        try:
            yield
            if (taken_s := self._clock() - began) > 0:
                self._best_per_s = max(self._best_per_s, tokens / taken_s)
        finally:
            with self._lock:
                self._began, self.hangs = None, False
                self._show()

    def fails(self) -> None:
        with self._lock:
            self._failing_since = self._failing_since or self._clock()
            self._show()

    def answers(self) -> None:
        with self._lock:
            self._failing_since = None
            self._show()

    def look(self) -> None:
        """Notice what has become late since the last look."""
        now, hung = self._clock(), False
        with self._lock:
            if self._began is not None and not self.hangs and now - self._began > self._limit_s:
                self.hangs = hung = True
                self._show()
            failed_s = 0.0 if self._failing_since is None else now - self._failing_since
        if hung:
            _log.error(f"a batch has not come back from the encoder for {self._limit_s:g} s; not ready until it does")
            self._on_hang()
        if hung or failed_s > self._restart_s:
            self._give_up("hangs" if hung else f"has failed for {failed_s:.0f} s")

    def start(self) -> None:
        """Look every second, until `close`."""
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_looking(self) -> None:
        while not self._closed.wait(min(_LOOK_S, self._timeout_s / 4)):
            self.look()

    def _give_up(self, reason: str) -> None:
        on_dead, self._on_dead = self._on_dead, None
        if on_dead is not None:
            on_dead(reason)

    def _show(self) -> None:
        ready = not self.hangs and self._failing_since is None
        if ready != self.ready:
            self.ready = ready
            self._on_ready(ready)
