"""`openbook eval tasks` killed with SIGKILL while it answers: what it started ends, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tasks_support import save_model, write_task

QUESTIONS = 10
SIDES = ("closed-book", "off", "on")


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "openbook_cli", "eval", "tasks", "--tasks", "nq", "--data", str(folder)]
    command += ["--model", str(folder / "model"), "--out", str(out), "--books", str(folder / "books"), "--batch", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command += ["--max-tokens", "100", "--json", str(out.with_suffix(".json"))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    try:
        _, messages = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, messages


def children(pid: int) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.add(int(entry.parent.name))
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.is_file() else []


def test_a_killed_run_leaves_nothing_running_and_goes_on(tmp_path: Path) -> None:
    write_task(tmp_path, {f"R{number}": f"L{number}" for number in range(QUESTIONS)})
    save_model(tmp_path / "model", 64)
    unbroken = tmp_path / "unbroken"
    finish(start(tmp_path, unbroken))

    out = tmp_path / "killed"
    answers = out / "answers" / "nq"
    process = start(tmp_path, out)
    assert wait_for(lambda: len(lines(answers / "off.jsonl")) >= 2 or process.poll() is not None, 600)
    services = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    closed, off = answers / "closed-book.jsonl", lines(answers / "off.jsonl")
    assert 0 < len(off) < QUESTIONS
    assert not (answers / "on.jsonl").exists()
    before = closed.stat()

    again = start(tmp_path, out)
    assert len(services) == 3
    assert wait_for(lambda: not any(map(lives, services)), 30), "a service outlived the run that started it"
    finish(again)
    assert (closed.stat().st_mtime_ns, closed.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert lines(answers / "off.jsonl")[: len(off)] == off
    for side in (*SIDES, "passages"):
        rows = lines(answers / f"{side}.jsonl")
        assert len({json.loads(row)["id"] for row in rows}) == len(rows) == QUESTIONS
        assert rows == lines(unbroken / "answers" / "nq" / f"{side}.jsonl")
    assert out.with_suffix(".json").read_bytes() == unbroken.with_suffix(".json").read_bytes()
