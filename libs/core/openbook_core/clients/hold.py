"""A pin that renews itself: a training run's or a generation's snapshot stays loaded while its process lives."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable

from openbook_core.errors import OpenbookError
from openbook_core.telemetry import get_logger

_log = get_logger("openbook_core.clients.hold")


def holder_name() -> str:
    """A name that no other holder has, and that says where it is."""
    host = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in socket.gethostname())
    return f"h-{host[:60]}-{os.getpid()}-{secrets.token_hex(4)}"


class Hold:
    """Calls `renew` every third of `ttl_s` seconds on a thread of its own until `close`, which calls `release`.

    A renewal that fails is logged and tried again at the next third: the pin lasts longer than two failures.
    """

    def __init__(self, snapshot: str, ttl_s: float, renew: Callable[[], None], release: Callable[[], None]) -> None:
        self.snapshot = snapshot
        self._every_s, self._renew, self._release = ttl_s / 3, renew, release
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshot-hold", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._stop.is_set()

    def close(self) -> None:
        """End it; may be called again. A release that fails is logged: the pin then ends by itself."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._try("released", self._release)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._try("renewed", self._renew)

    def _try(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except OpenbookError as error:
            _log.warning("the pin of snapshot %s was not %s: %s", self.snapshot[:12], what, error)
