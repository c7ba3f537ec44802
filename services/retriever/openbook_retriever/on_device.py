"""A snapshot that a GPU searches, in a process for this snapshot alone (`device_process`), as the shard process sees it.

What crashes there, or leaves the device's state broken, touches no other snapshot, and the end of the process gives all of
its memory back.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

from openbook_core.errors import OpenbookError, Reason, UnavailableError
from openbook_database.scoring import Hits
from openbook_database.shard import Search, Shard
from openbook_database.snapshot import Snapshot

COMMAND = (sys.executable, "-m", "openbook_retriever.device_process")
# No batch takes so long; a device that hangs does.
_ANSWER_S = 120.0


@dataclass(frozen=True)
class Load:
    """What the process is to load: the first message to it."""

    folder: str
    snapshot: str
    shards: tuple[int, ...]
    device: int
    work_bytes: int


@dataclass(frozen=True)
class Loaded:
    """Its first answer. Of the device: bytes that the snapshot took, those that are free now, and all."""

    bytes: int
    free: int
    total: int


@dataclass(frozen=True)
class Failure:
    """An error instead of an answer."""

    message: str
    reason: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        reason = error.reason if isinstance(error, OpenbookError) else Reason.INTERNAL
        return cls(str(error) if isinstance(error, OpenbookError) else f"{type(error).__name__}: {error}", reason.value)


@dataclass(frozen=True)
class Answer:
    """Hits of a search. `passed`: queries of which the processor did what is beyond the GPU."""

    hits: Hits
    passed: int


class OnDevice:
    """Owns the process. `passed`: is told of `Answer.passed`. `failed`: is told why a search failed, which this process then
    does; without it the error is raised."""

    def __init__(
        self,
        load: Load,
        *,
        threads: int,
        passed: Callable[[int], object],
        failed: Callable[[OpenbookError], None] | None = None,
    ) -> None:
        """Starts it. `threads`: of what the processor does there."""
        self._load, self._passed, self._failed = load, passed, failed
        self._lock = Lock()
        mine, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [*COMMAND, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
                start_new_session=True,
            )
        self._connection = Connection(mine.detach())
        self.memory = Loaded(0, 0, 0)

    def wait_loaded(self, opened: Snapshot) -> None:
        """Have it search the shards of `opened`, the same snapshot here; raises OpenbookError with the reason where it did not
        load, after which nothing is left of it."""
        try:
            self.memory = self._ask(self._load, None)
        except BaseException:
            self.end()
            raise
        for shard in opened.shards:
            shard.search_elsewhere(self._search_of(shard))

    @property
    def lost(self) -> str:
        """Why nothing answers any more; empty where something does."""
        code = self._process.poll()
        return "" if code is None or self._failed is not None else self._how_it_ended(code)

    def end(self) -> None:
        """End the process, whatever it does, and wait until it is gone; may be called again."""
        self._process.kill()
        self._process.wait()
        with self._lock:
            self._connection.close()

    def _search_of(self, shard: Shard) -> Search:
        def search(*asked: Any) -> Hits:
            try:
                answer = self._ask((shard.number, asked), _ANSWER_S)
            except OpenbookError as error:
                if self._failed is None:
                    raise
                self._failed(error)
                return shard.search_here(*asked)
            if answer.passed:
                self._passed(answer.passed)
            hits: Hits = answer.hits
            return hits

        return search

    def _ask(self, message: Any, timeout_s: float | None) -> Any:
        answer: Any = None
        with self._lock, suppress(OSError, EOFError):  # closed, or it ended
            self._connection.send(message)
            if self._connection.poll(timeout_s):
                answer = self._connection.recv()
        if answer is None:
            self._process.kill()
            raise UnavailableError(self._how_it_ended(self._process.wait()))
        if isinstance(answer, Failure):
            raise OpenbookError(answer.message, reason=Reason(answer.reason))
        return answer

    def _how_it_ended(self, code: int) -> str:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the process that searches snapshot {self._load.snapshot[:12]} on cuda:{self._load.device} {how}"
