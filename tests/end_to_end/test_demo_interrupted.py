"""The demo ended at different moments: nothing that it started is left, and the next run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(workdir: Path, registry: str = "directory") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "openbook_cli", "demo", "--documents", "2", "--questions", "1"]
    command += ["--train-seconds", "0", "--workdir", str(workdir), "--registry", registry, "--no-cross-attention"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} never came:\n{''.join(seen)}")


def left_behind(workdir: Path) -> list[str]:
    """Command lines of living processes that name the work folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(workdir) in command:
                found.append(f"{entry.name}: {command}")
    return found


@pytest.mark.parametrize(
    ("number", "moment", "registry"),
    [
        (signal.SIGKILL, "building", "directory"),
        (signal.SIGHUP, "starting the embedder", "redis"),
        (signal.SIGINT, "starting the generation server", "redis"),
    ],
)
def test_nothing_is_left_and_the_next_run_goes_on(
    number: signal.Signals, moment: str, registry: str, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    process = start(workdir, registry)
    read_until(process, moment)
    time.sleep(1.0)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + 15
    while left_behind(workdir) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_behind(workdir) == []
    # A build that had gone on would have come to its end.
    assert (workdir / "snapshots" / "factbook-2015-11-18-first-2").exists() == (moment != "building")
    again = start(workdir)
    try:
        read_until(again, "live: 2015-11-18")
    finally:
        again.send_signal(signal.SIGTERM)
        assert again.wait(60) == 128 + signal.SIGTERM
    assert left_behind(workdir) == []
