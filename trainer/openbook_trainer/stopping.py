"""SIGTERM as a request: the step that runs is finished, a checkpoint saved, and the exit code says so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from openbook_core.errors import OpenbookError

EXIT_CODE = 128 + signal.SIGTERM


class TerminatedError(OpenbookError):
    """The run was asked to stop and has saved a checkpoint."""


class StopRequest:
    """Set by the first SIGTERM within `heeded`; while nobody heeds it, the process lives."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """SIGTERM sets this within the block (in the main thread; elsewhere it stays unset)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: self._event.set())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
