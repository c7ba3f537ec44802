"""What a build says of itself: updates for a terminal, events for its log."""

from __future__ import annotations

import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from openbook_database.files import clear_write_errors

# The rate is that of the last minute: a resumed build, and one beside which another program began, soon tell the truth.
_WINDOW_S = 60.0
_LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Update:
    """How far a stage is, in chunks or what `unit` says. `total` is None while it is not known; `share` is then that of the
    sources that has been read, 0 to 1, or None.

    `rate`: a second; in a build over the last minute, without what an earlier run did. `seconds_left` at that rate, None
    where the rate, or both total and share, are not known.
    """

    stage: str
    done: int
    total: int | None
    rate: float
    seconds_left: float | None = None
    share: float | None = None
    unit: str = "chunks"


def time_left(left: float | None, rate: float) -> float | None:
    """Seconds for what is left, 0 for nothing; None where that or the rate is not known."""
    return 0.0 if left == 0 else left / rate if left is not None and rate > 0 else None


Progress = Callable[[Update], None]


class BuildLog:
    """Appends events to DIR.log.jsonl: when, where, how long. Nothing of it enters the snapshot."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **details: object) -> None:
        record = {"at": time.time(), "event": event, "host": platform.node(), "pid": os.getpid(), **details}
        with clear_write_errors(self.path), self.path.open("ab", buffering=0) as stream:
            stream.write((json.dumps(record) + "\n").encode())


class Stage:
    """One stage of a build: tells `progress` of every advance and the log of one every ten seconds."""

    def __init__(
        self,
        name: str,
        total: int | None,
        progress: Progress,
        log: BuildLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._progress, self._log, self._clock = name, total, progress, log, clock
        self._done = self._reused = 0
        self._started = self._logged = clock()
        # Times, and chunks that this run had done by then.
        self._window: deque[tuple[float, int]] = deque([(self._started, 0)])
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._log.write("begin", stage=self._name, total=self._total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.seconds = self._clock() - self._started
        outcome = "end" if kind is None else "stopped"
        details = {} if error is None else {"error": f"{type(error).__name__}: {error}"}
        self._log.write(
            outcome, stage=self._name, done=self._done, reused=self._reused, seconds=self.seconds, **details
        )

    def advance(self, chunks: int, *, reused: bool = False, share: float | None = None) -> None:
        """Count finished chunks; `reused` ones were done by an earlier run. `share` as in `Update`."""
        self._done += chunks
        now = self._clock()
        if reused:
            self._reused += chunks
            if self._done == self._reused:  # what this run does begins now
                self._window = deque([(now, 0)])
        update = self._update(now, share)
        self._progress(update)
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            self._log.write(
                "progress",
                stage=self._name,
                done=self._done,
                total=self._total,
                reused=self._reused,
                rate=round(update.rate, 3),
                seconds_left=None if update.seconds_left is None else round(update.seconds_left, 1),
            )

    def reach(self, chunks: int) -> Callable[[float], None]:
        """Of work that counts as so many chunks, tells what share is done, 0 to 1; the next call tells what has come."""
        told = 0

        def tell(share: float) -> None:
            nonlocal told
            told, before = round(share * chunks), told
            self.advance(told - before)

        return tell

    def _update(self, now: float, share: float | None) -> Update:
        fresh = self._done - self._reused
        self._window.append((now, fresh))
        while len(self._window) > 2 and self._window[1][0] <= now - _WINDOW_S:
            self._window.popleft()
        then, before = self._window[0]
        rate = (fresh - before) / (now - then) if now > then else 0.0
        total = self._total if self._total is not None or not share else self._done / share
        seconds_left = time_left(None if total is None else total - self._done, rate)
        return Update(self._name, self._done, self._total, rate, seconds_left, share)
