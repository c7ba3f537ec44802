"""Loads a snapshot into a shard process: checked by a child, then mapped here with sizes compared alone, and on a GPU
searched by another child.

Hashing, reading indexes that may be damaged and the golden queries take their time, their memory and their crashes
elsewhere; the serving process only maps what was found whole.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from openbook_core.errors import CorruptError, OpenbookError, Reason
from openbook_core.tokenizer import Tokenizer
from openbook_database.registry.records import KnownSnapshot
from openbook_database.snapshot import Snapshot
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.on_device import OnDevice
from openbook_retriever.placement import Placement

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


class GivenUpError(OpenbookError):
    """The load was ended because nobody wants the snapshot any more."""


class Loader:
    """Loads one snapshot at a time. `stop` ends the load that is under way."""

    def __init__(self, config: RetrieverConfig) -> None:
        """Raises ConfigError where the device is not there (`Placement`)."""
        self._config = config
        self._placement = Placement(config)
        self._lock = Lock()
        self._checker: subprocess.Popen[str] | None = None
        self._loading = ""
        self._tokenizer: Tokenizer | None = None
        self._given_up = self._stopped = False

    def stop(self) -> None:
        """Begin no load any more, and end the one under way; may be called again."""
        with self._lock:
            self._stopped = True
            self._kill()
            self._placement.end()

    def give_up(self, snapshots: Collection[str]) -> None:
        """End the load that is under way where it is of one of these: it may hang on a disk that does not answer."""
        with self._lock:
            if self._loading and self._loading in snapshots:
                self._given_up = True
                self._kill()
                self._placement.end()

    def load(self, known: KnownSnapshot, shards: tuple[int, ...]) -> tuple[Snapshot, OnDevice | None]:
        """The snapshot, and what searches it on the GPU, which the caller ends with it.

        Raises GivenUpError after `give_up`; CorruptError naming what is damaged, also where the check of it crashed; with
        the reason OUT_OF_MEMORY an OpenbookError where it was refused memory, also of the GPU, or was killed for it."""
        with self._lock:
            self._loading, self._given_up = known.snapshot, False
        try:
            self._check(known, shards)
            opened = self._open(known, shards)
            return opened, self._placement.place(opened)
        except OpenbookError as error:
            if self._given_up:
                raise GivenUpError(f"{known.url}: is not wanted any more") from error
            raise
        finally:
            with self._lock:
                self._loading = ""

    def _open(self, known: KnownSnapshot, shards: tuple[int, ...]) -> Snapshot:
        opened = Snapshot.open(
            Path(known.url), "sizes", shards=shards, expected_id=known.snapshot, known_tokenizer=self._tokenizer
        )
        self._tokenizer = opened.tokenizer
        return opened

    def _check(self, known: KnownSnapshot, shards: tuple[int, ...]) -> None:
        request = {
            "folder": known.url,
            "snapshot": known.snapshot,
            "shards": shards,
            "verify": self._config.verify,
            "memory_mb": self._config.check_memory_mb,
            "nice": self._config.check_nice,
        }
        answer = self._answer(known, request)
        if answer.get("code") == 0:  # it had been idle, and was ending when it was asked
            answer = self._answer(known, request)
        if "seconds" not in answer:
            raise _failure(known.url, answer)

    def _answer(self, known: KnownSnapshot, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._stopped:
                raise OpenbookError("the process is stopping")
            checker = self._running()
        answer = _ask(checker, request)
        with self._lock:
            if not answer:
                self._kill()
                answer = {"code": checker.wait(), "complaint": "the process that checks files ended"}
        return answer

    def _running(self) -> subprocess.Popen[str]:
        if self._checker is None or self._checker.poll() is not None:
            self._checker = subprocess.Popen(
                [sys.executable, "-m", "openbook_retriever.check", "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **_ONE_THREAD, "OMP_WAIT_POLICY": "PASSIVE"},
                start_new_session=True,
            )
        return self._checker

    def _kill(self) -> None:
        """The process that checks, and the fork in which it does."""
        if self._checker is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._checker.pid, signal.SIGKILL)
            self._checker.wait()


def _ask(checker: subprocess.Popen[str], request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer; empty where the process ended without one."""
    assert checker.stdin is not None
    assert checker.stdout is not None
    with suppress(BrokenPipeError):
        checker.stdin.write(json.dumps(request) + "\n")
        checker.stdin.flush()
    line = checker.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}
    return answer


def _failure(folder: str, answer: Mapping[str, Any]) -> OpenbookError:
    if "error" in answer:
        kind = CorruptError if answer["reason"] == Reason.CORRUPT else OpenbookError
        return kind(answer["error"], reason=Reason(answer["reason"]))
    code, complaint = int(answer["code"]), str(answer["complaint"])
    if code == -signal.SIGKILL:
        return OpenbookError(
            f"{folder}: its check was killed: is there too little memory?", reason=Reason.OUT_OF_MEMORY
        )
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last = (complaint.strip().splitlines() or ["without a word"])[-1]
    if "bad_alloc" in complaint or "MemoryError" in complaint or "annot allocate" in complaint:
        return OpenbookError(f"{folder}: its check {how}: {last}", reason=Reason.OUT_OF_MEMORY)
    return CorruptError(f"{folder}: its check {how}: {last}; the files are damaged", reason=Reason.CORRUPT)
