"""What a build says of itself: updates for a terminal, events for its log."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from openbook_database.files import clear_write_errors


@dataclass(frozen=True)
class Update:
    """How far a stage is, in chunks. `total` is None while it is not known; `rate` is chunks per second of this run."""

    stage: str
    done: int
    total: int | None
    rate: float


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
    """One stage of a build: reports progress, and its duration to the log."""

    def __init__(self, name: str, total: int | None, progress: Progress, log: BuildLog) -> None:
        self._name, self._total, self._progress, self._log = name, total, progress, log
        self._done = self._reused = 0
        self._started = time.monotonic()
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._log.write("begin", stage=self._name, total=self._total)
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.seconds = time.monotonic() - self._started
        outcome = "end" if kind is None else "stopped"
        details = {} if error is None else {"error": f"{type(error).__name__}: {error}"}
        self._log.write(
            outcome, stage=self._name, done=self._done, reused=self._reused, seconds=self.seconds, **details
        )

    def advance(self, chunks: int, *, reused: bool = False) -> None:
        """Count finished chunks; `reused` ones were done by an earlier run."""
        self._done += chunks
        self._reused += chunks if reused else 0
        seconds = time.monotonic() - self._started
        rate = (self._done - self._reused) / seconds if seconds > 0 else 0.0
        self._progress(Update(self._name, self._done, self._total, rate))
