"""Child processes: started, waited for, and stopped by pid whatever happens; they end by themselves if we are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from openbook_core.errors import OpenbookError, UnavailableError

_CHILD = [sys.executable, "-m", "openbook_cli.demo.child"]


def leave_on_signals() -> None:
    """SIGTERM and SIGHUP end this process through what stops its children, with the exit code of a shell."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def child_environment() -> dict[str, str]:
    """Several processes share the cores: none may spin while it waits."""
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


class Processes:
    """Owns the children; leaving the context stops them all, last started first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._children: list[tuple[str, subprocess.Popen[str]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self, name: str, arguments: list[str], *, deadline_s: float = 180.0) -> str:
        """Start `openbook ARGUMENTS` and return the address in its first line of output."""
        log_path = self._logs / f"{name}.log"
        with log_path.open("w") as log:
            child = _spawn(arguments, stderr=log)
        self._children.append((name, child))
        line = _first_json_line(child, deadline_s)
        if line is None:
            tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-5:])
            raise UnavailableError(f"{name} did not start within {deadline_s:.0f} s; the end of {log_path}:\n{tail}")
        return str(line["address"])

    def run(self, name: str, arguments: list[str]) -> list[str]:
        """Run `openbook ARGUMENTS` to its end and return its lines of output; its messages go to our own.

        Raises OpenbookError with the exit code if it is not 0. An interrupt ends the child as `stop` does.
        """
        child = _spawn(arguments)
        self._children.append((name, child))
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
        child.wait()
        self._children.remove((name, child))
        if child.returncode:
            raise OpenbookError(f"{name} ended with exit code {child.returncode}; its messages are above")
        return lines

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self._children}

    def stop(self, grace_s: float = 15.0) -> None:
        for _, child in reversed(self._children):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for _, child in reversed(self._children):
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()

    def release(self) -> None:
        """Leave the children running (--keep)."""
        for _, child in self._children:
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.write("\n")
                child.stdin.flush()
        self._children.clear()


def _spawn(arguments: list[str], stderr: IO[str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_CHILD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=child_environment(),
        start_new_session=True,
    )


def _first_json_line(child: subprocess.Popen[str], deadline_s: float) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = []
    ready = threading.Event()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if not found and line.startswith("{"):
                found.append(json.loads(line))
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True, name=f"stdout-{child.pid}").start()
    ready.wait(deadline_s)
    return found[0] if found else None
