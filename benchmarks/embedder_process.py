"""The embedder as users start it, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from measure import anonymous_bytes

from openbook_core.errors import UnavailableError

_SAMPLE = re.compile(r"^(?P<name>[a-z_]+)(?:\{[^}]*\})? (?P<value>\S+)$")


class EmbedderProcess:
    """`python -m openbook_embedder`; `start_s` from the process's start to the line that says it answers."""

    def __init__(self, log: Path, options: Sequence[str] = ()) -> None:
        self.log = log
        command = [sys.executable, "-m", "openbook_embedder", "--port", "0", "--http-port", "0", *options]
        started = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.start_s = time.perf_counter() - started
        if not line:
            self._process.wait()
            raise UnavailableError(f"the embedder did not start; the end of its log:\n{tail(log)}")
        addresses = json.loads(line)
        self.address, self.http, self.pid = addresses["address"], addresses["http"], self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)

    def metric(self, name: str) -> float:
        """Sum over all labels of one metric."""
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        found = [sample for line in lines if (sample := _SAMPLE.match(line)) and sample["name"] == name]
        return sum(float(sample["value"]) for sample in found)

    def ready(self) -> bool:
        with urllib.request.urlopen(f"{self.http}/readyz", timeout=10) as reply:
            return int(reply.status) == 200

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def anonymous_bytes(self) -> int:
        """Resident memory that is no file's."""
        return anonymous_bytes(Path(f"/proc/{self.pid}/smaps_rollup").read_text())


def end(process: subprocess.Popen[Any]) -> None:
    """By SIGTERM, by SIGKILL after ten seconds; also one that is stopped."""
    process.terminate()
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path) -> str:
    """Its last lines."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])
