"""Checks a snapshot's files in a process of its own, before they are mapped by one that serves.

It reads files that may be anything with libraries that trust what they read, so it may crash, run out of memory or be slow:
nobody else does with it (`loading`).

`python -m openbook_retriever.check FOLDER [--snapshot ID] [--shards N ...]` checks once: exit code 0, or 1 with the reason.
With `--serve` it imports what it needs once, takes requests as lines of JSON on standard input, checks each in a fork
and answers with a line: {"seconds"}, {"reason", "error"}, or {"code", "complaint"} of a fork that crashed. It ends with
standard input, which means that its parent is gone, or after IDLE_S without a request.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

IDLE_S = 60.0
_COMPLAINT_BYTES = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m openbook_retriever.check", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", nargs="?", help="the snapshot")
    parser.add_argument("--serve", action="store_true", help="take requests on standard input")
    parser.add_argument("--snapshot", help="the id that the folder must have")
    parser.add_argument("--shards", type=int, nargs="*", help="only these")
    parser.add_argument("--verify", choices=("sizes", "sample", "full"), default="sample")
    parser.add_argument("--memory-mb", type=float, help="most memory that it may take beyond the program itself")
    parser.add_argument("--nice", type=int, default=0, help="how far to stand back behind other processes")
    options = parser.parse_args(arguments)
    if options.serve:
        return serve()
    if options.folder is None:
        parser.error("give the folder of a snapshot")
    answer = check(vars(options))
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


def check(request: Mapping[str, Any]) -> dict[str, Any]:
    """`request`: folder, snapshot, shards, verify, memory_mb and nice, all but the folder None where they are not asked."""
    from openbook_database.snapshot import Snapshot

    started, folder = time.monotonic(), request["folder"]
    _stand_back(request.get("nice") or 0)
    if request.get("memory_mb"):
        _limit_memory(int(request["memory_mb"] * 1e6))
    try:
        snapshot = Snapshot.open(
            folder, request.get("verify") or "sample", shards=request.get("shards"), expected_id=request.get("snapshot")
        )
        snapshot.check_golden()
    except MemoryError as error:
        return {"reason": "OUT_OF_MEMORY", "error": f"{folder}: out of memory while it was checked {error}".rstrip()}
    except Exception as error:  # noqa: BLE001  whatever it is, the parent reports it
        reason = getattr(error, "reason", None)
        message = str(error) if reason else f"{folder}: {type(error).__name__}: {error}"
        return {"reason": str(reason or "CORRUPT"), "error": message}
    return {"seconds": time.monotonic() - started}


def serve() -> int:
    """Exit code 0."""
    import openbook_database.snapshot  # noqa: F401  the forks have it then

    buffered = b""
    while select.select([0], [], [], IDLE_S)[0]:
        data = os.read(0, 1 << 16)
        if not data:
            return 0
        *lines, buffered = (buffered + data).split(b"\n")
        for line in lines:
            answer = _in_a_fork(json.loads(line))
            if answer is None:
                return 0
            print(json.dumps(answer), flush=True)
    return 0


def _in_a_fork(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """None where standard input ended meanwhile."""
    read, write = os.pipe()
    complaints = tempfile.TemporaryFile()  # noqa: SIM115
    child = os.fork()
    if child == 0:
        os.dup2(complaints.fileno(), 2)
        os.write(write, json.dumps(check(request)).encode())
        os._exit(0)
    os.close(write)
    said = b""
    while True:
        ready, _, _ = select.select([0, read], [], [])
        data = os.read(read, 1 << 16) if read in ready else None
        if data == b"":
            break
        said += data or b""
        if data is None and not os.read(0, 1 << 16):
            os.kill(child, signal.SIGKILL)
            return None
    _, status = os.waitpid(child, 0)
    os.close(read)
    with complaints:
        complaints.seek(0)
        complaint = complaints.read(_COMPLAINT_BYTES).decode(errors="replace")
    if said:
        found: dict[str, Any] = json.loads(said)
        return found
    return {"code": os.waitstatus_to_exitcode(status), "complaint": complaint}


def _stand_back(nice: int) -> None:
    """The kernel may compare whole sessions with each other (autogroup): then a nice process in a session of its own
    stands back behind nobody, unless its session does. Where the session is not the server's own it is left alone."""
    os.nice(nice)
    if os.getsid(0) == os.getppid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))


def _limit_memory(more: int) -> None:
    """Of what is no file's mapping: what the program has now and `more` bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            limit = int(line.split()[1]) * 1024 + more
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
