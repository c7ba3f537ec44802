"""Routers and replicas as users start them, the load beside them, and their memory seen from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from measure import anonymous_bytes, mapped_files

from openbook_core.errors import OpenbookError, UnavailableError

_HERE = Path(__file__).parent
_SAMPLE_S = 0.5


class Cluster:
    """`routers` routers and `replicas` processes for each of `members` shares of the shards; ends them all at its end."""

    def __init__(
        self,
        folder: Path,
        routers: int,
        members: int,
        *,
        replicas: int = 2,
        guard: bool = True,
        drain_s: float = 0.3,
        options: Sequence[str] = (),
    ) -> None:
        """`options`: of all of them."""
        self.log = folder / "processes.log"
        common = ["--registry", str(folder / "registry"), "--snapshot-guard" if guard else "--no-snapshot-guard"]
        common += options
        if not guard:
            common += ["--poll-interval-s", "0.5"]
        self._processes: list[subprocess.Popen[str]] = []
        self.routers: list[str] = []
        self.shards: list[str] = []
        self.shard_pids: list[int] = []
        try:
            for member in [*range(members)] * replicas:
                share = ["--member-index", str(member), "--member-count", str(members)]
                self.shards.append(self._start(["--role", "shard", "--drain-s", str(drain_s), *share, *common]))
                self.shard_pids.append(self._processes[-1].pid)
            self.routers = [self._start(["--role", "router", *common]) for _ in range(routers)]
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """Shards, then routers; one that has ended is an error."""
        ended = [process.args for process in self._processes if process.poll() is not None]
        if ended:
            raise OpenbookError(f"{len(ended)} processes have ended: {tail(self.log)}")
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, options: Sequence[str]) -> str:
        with self.log.open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "openbook_retriever", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            )
        self._processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UnavailableError(f"a retriever did not start: {tail(self.log)}")
        return str(json.loads(line)["address"])


def tail(log: Path) -> str:
    """Its last lines."""
    return log.read_text(errors="replace")[-2000:]


@contextmanager
def load(folder: Path, spec: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """`swap_load.py` under way; at the end of the context it is told to end, and has written what it found."""
    with (folder / "load.log").open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, str(_HERE / "swap_load.py"), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise OpenbookError(f"the load did not start: {(folder / 'load.log').read_text()[-2000:]}")
        yield process
        process.communicate("\n", timeout=120)
        if process.returncode:
            raise OpenbookError(f"the load failed: {(folder / 'load.log').read_text()[-2000:]}")
    finally:
        process.kill()
        process.wait()


def capacity(folder: Path, spec: Mapping[str, Any]) -> float:
    """Calls a second of `spec["callers"]` callers that call again when answered."""
    with load(folder, {**spec, "mode": "closed"}) as process:
        assert process.stdout is not None
        return float(json.loads(process.stdout.readline())["per_s"])


@dataclass
class Memory:
    """Bytes of the shard processes that are no file's, sampled on a thread of its own while the context lasts; those of
    the processes that they started to check files apart. Samples are (monotonic seconds, serving, checking)."""

    pids: Sequence[int]
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        assert self._thread is not None
        self._thread.join()

    def serving(self) -> int:
        """Now, all shard processes together."""
        return sum(map(_anonymous, self.pids))

    def mapped(self, folder: Path) -> dict[str, int]:
        """Of the files below `folder`: address space and what of it is present, all shard processes together."""
        found = [mapped_files(Path(f"/proc/{pid}/smaps").read_text(), folder) for pid in self.pids]
        return {"mapped": sum(each.mapped for each in found), "resident": sum(each.resident for each in found)}

    def _watch(self) -> None:
        while not self._end.wait(_SAMPLE_S):
            checking = sum(_anonymous(child) for pid in self.pids for child in _children(pid))
            self.samples.append((time.monotonic(), self.serving(), checking))


def _anonymous(pid: int) -> int:
    with suppress(OSError):
        return anonymous_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found + [below for child in found for below in _children(child)]
