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
    """Set by the first SIGTERM; while nobody heeds it, the process lives."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()


@contextmanager
def heeding_sigterm() -> Iterator[StopRequest]:
    """SIGTERM sets the request within the block (in the main thread; elsewhere it stays unset).

    Where the block ends by another error after a SIGTERM, that error is what the process goes down with.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, lambda *_: request._event.set())
    try:
        yield request
    except OpenbookError as error:
        error.metadata["sigterm"] = str(bool(request))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
