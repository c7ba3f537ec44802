"""Leases on the snapshots that generations read, one for each snapshot and process however many generations there are.

A generation may take longer than the retriever keeps what was swapped away; while it lives its snapshot stays loaded.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from dataclasses import dataclass

from openbook_core.clients import RetrieverClient
from openbook_core.clients.hold import Hold
from openbook_core.errors import OpenbookError
from openbook_core.telemetry import get_logger
from openbook_prompt.passage import Pin

_TTL_S, _TIMEOUT_S = 30.0, 2.0
_log = get_logger("openbook_generator.holds")
_Key = tuple[str, str]


@dataclass
class _Held:
    hold: Hold | None
    users: int = 0
    idle_since: float = 0.0


class Holds:
    """Safe to use from several threads. A snapshot that nothing uses is given back after `idle_s`, which spares a lease for
    each request; where no lease can be had that is logged, the generation goes on, and it is asked for again while it lasts.
    """

    def __init__(self, client: RetrieverClient, *, idle_s: float = 10.0) -> None:
        self._client, self._idle_s = client, idle_s
        self._lock = threading.Lock()
        self._held: dict[_Key, _Held] = {}
        # A finaliser may run in the middle of anything: it only puts into this queue, which is made for that.
        self._released: queue.SimpleQueue[_Key | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="generator-holds", daemon=True)
        self._thread.start()

    def keep(self, pin: Pin, owner: object) -> None:
        """Hold the pin's snapshot as long as `owner` is referred to by anything."""
        key = pin.database, pin.snapshot
        with self._lock:
            held = self._held.get(key)
            if held is None:
                held = self._held[key] = _Held(self._take(*key))
            held.users += 1
        weakref.finalize(owner, self._released.put, key).atexit = False

    def close(self) -> None:
        """Give all back; may be called again."""
        self._released.put(None)
        self._thread.join()

    def _take(self, database: str, snapshot: str) -> Hold | None:
        try:
            return self._client.hold(database, snapshot, ttl_s=_TTL_S, timeout_s=_TIMEOUT_S)
        except OpenbookError as error:
            # As a text: an error that a log handler keeps would keep its frames, and with them the owner.
            _log.warning("snapshot %s is read without a lease: %s", snapshot[:12], str(error))
            return None

    def _run(self) -> None:
        every_s = self._idle_s / 2
        again = time.monotonic() + every_s
        while True:
            try:
                key = self._released.get(timeout=every_s)
                if key is None:
                    break
                with self._lock:
                    held = self._held[key]
                    held.users -= 1
                    held.idle_since = time.monotonic()
            except queue.Empty:
                pass
            self._give_back(self._idle_s)
            if time.monotonic() >= again:
                self._take_missing()
                again = time.monotonic() + every_s
        self._give_back(None)

    def _take_missing(self) -> None:
        """Only this thread takes snapshots out of what is held, so each is still there after it was asked for."""
        with self._lock:
            missing = [(key, held) for key, held in self._held.items() if held.users and held.hold is None]
        for key, held in missing:
            held.hold = self._take(*key)

    def _give_back(self, idle_s: float | None) -> None:
        """Those that were idle for so long; all where it is None."""
        now = time.monotonic()
        with self._lock:
            done = [
                key
                for key, held in self._held.items()
                if idle_s is None or (not held.users and now - held.idle_since >= idle_s)
            ]
            holds = [self._held.pop(key).hold for key in done]
        for hold in holds:
            if hold is not None:
                hold.close()
