"""Bytes done by several threads, work shared between them, and what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from openbook_database.build.progress import Progress, Update, time_left

Item = TypeVar("Item")


@dataclass(frozen=True)
class Transfer:
    """What came of a publish or pull: files and bytes of the snapshot that were `sent`, `kept` (there already, whole)
    or `linked` (the same file of another snapshot). `reused`: nothing was left to do."""

    snapshot_id: str
    files: int
    bytes: int
    sent_bytes: int
    kept_bytes: int
    linked_bytes: int
    seconds: float
    reused: bool


class StoppedError(Exception):
    """Raised inside a thread because another one has failed."""


class Meter:
    """Counts bytes and reports them; `advance` raises StoppedError once `stop` was called."""

    def __init__(self, stage: str, total: int, kept: int, progress: Progress) -> None:
        self._stage, self._total, self._kept, self._progress = stage, total, kept, progress
        self._sent = 0
        self._lock = threading.Lock()
        self._stopped = False
        self._started = time.monotonic()
        if kept:
            progress(Update(stage, kept, total, 0.0, time_left(total - kept, 0.0), unit="bytes"))

    def advance(self, count: int) -> None:
        """`count` more bytes; fewer where it is negative."""
        if self._stopped and count >= 0:
            raise StoppedError
        with self._lock:
            self._sent += count
            seconds = time.monotonic() - self._started
            rate = self._sent / seconds if seconds > 0 else 0.0
            done = self._kept + self._sent
            left = time_left(self._total - done, rate)
            self._progress(Update(self._stage, done, self._total, rate, left, unit="bytes"))

    def each(self, work: Callable[[Item], None], items: Iterable[Item], threads: int) -> None:
        """`work` on each item, by several threads; the first error ends all of them and is raised."""
        with ThreadPoolExecutor(threads, thread_name_prefix="transfer") as pool:
            try:
                futures = [pool.submit(work, item) for item in items]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [error for future in done if (error := future.exception())]
                if failed:
                    raise failed[0]
            except BaseException:
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise
