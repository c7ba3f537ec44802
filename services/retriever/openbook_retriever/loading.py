"""Loads a snapshot into a shard process: checked by a child, then mapped here with sizes compared alone.

Hashing, reading indexes that may be damaged and the golden queries take their time, their memory and their crashes
elsewhere; the serving process only maps what was found whole.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from threading import Lock

from openbook_core.errors import CorruptError, OpenbookError, Reason
from openbook_database.registry.records import KnownSnapshot
from openbook_database.snapshot import Snapshot
from openbook_retriever.config import RetrieverConfig

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


class GivenUpError(OpenbookError):
    """The check was ended because nobody wants the snapshot any more."""


class Loader:
    """Loads one snapshot at a time. `stop` ends the check that is under way."""

    def __init__(self, config: RetrieverConfig) -> None:
        self._config = config
        self._lock = Lock()
        self._child: subprocess.Popen[str] | None = None
        self._checked = ""
        self._given_up = False
        self._stopped = False

    def give_up(self, snapshots: Collection[str]) -> None:
        """End the check that is under way where it is of one of these: it may hang on a disk that does not answer."""
        with self._lock:
            if self._child is not None and self._checked in snapshots:
                self._given_up = True
                self._child.kill()

    def load(self, known: KnownSnapshot, shards: tuple[int, ...]) -> Snapshot:
        """Raises GivenUpError after `give_up`; CorruptError naming what is damaged, also where the check of it crashed; with
        the reason OUT_OF_MEMORY an OpenbookError where it was refused memory or was killed for it."""
        self._check(known, shards)
        return Snapshot.open(Path(known.url), "sizes", shards=shards, expected_id=known.snapshot)

    def stop(self) -> None:
        """Begin no check any more, and end the one under way; may be called again."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()

    def _check(self, known: KnownSnapshot, shards: tuple[int, ...]) -> None:
        command = [sys.executable, "-m", "openbook_retriever.check", known.url, "--snapshot", known.snapshot]
        command += [
            "--verify",
            self._config.verify,
            "--nice",
            str(self._config.check_nice),
            "--shards",
            *map(str, shards),
        ]
        if self._config.check_memory_mb is not None:
            command += ["--memory-mb", str(self._config.check_memory_mb)]
        with self._lock:
            if self._stopped:
                raise OpenbookError("the process is stopping")
            self._checked, self._given_up = known.snapshot, False
            child = self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **_ONE_THREAD, "OMP_WAIT_POLICY": "PASSIVE"},
            )
        assert child.stdout is not None
        assert child.stderr is not None
        said, complaint = child.stdout.read(), child.stderr.read()
        code = child.wait()
        with self._lock:
            self._child = None
            given_up = self._given_up
        assert child.stdin is not None
        for pipe in (child.stdin, child.stdout, child.stderr):
            pipe.close()
        if given_up:
            raise GivenUpError(f"{known.url}: is not wanted any more")
        if code:
            raise _failure(known.url, code, said, complaint)


def _failure(folder: str, code: int, said: str, complaint: str) -> OpenbookError:
    if said.startswith("{"):
        found = json.loads(said.splitlines()[0])
        kind = CorruptError if found["reason"] == Reason.CORRUPT else OpenbookError
        return kind(found["error"], reason=Reason(found["reason"]))
    if code == -signal.SIGKILL:
        return OpenbookError(
            f"{folder}: its check was killed: is there too little memory?", reason=Reason.OUT_OF_MEMORY
        )
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last = (complaint.strip().splitlines() or ["without a word"])[-1]
    if "bad_alloc" in complaint or "MemoryError" in complaint or "annot allocate" in complaint:
        return OpenbookError(f"{folder}: its check {how}: {last}", reason=Reason.OUT_OF_MEMORY)
    return CorruptError(f"{folder}: its check {how}: {last}; the files are damaged", reason=Reason.CORRUPT)
