"""`python -m openbook_retriever.check FOLDER ...`: checks a snapshot's files in a process of its own, before they are mapped.

Reads files that may be anything with libraries that trust what they read, so it may crash, run out of memory or be slow:
nobody else does with it (`loading`). Ends with exit code 0 and {"seconds": ...}, or 1 and {"reason", "error"}, on
one line of standard output; and at once when standard input ends, which means that its parent is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m openbook_retriever.check", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--snapshot", help="the id that the folder must have")
    parser.add_argument("--shards", type=int, nargs="*", help="only these")
    parser.add_argument("--verify", choices=("sizes", "sample", "full"), default="sample")
    parser.add_argument("--memory-mb", type=float, help="most memory that it may take beyond the program itself")
    parser.add_argument("--nice", type=int, default=0)
    options = parser.parse_args(arguments)
    os.nice(options.nice)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    started = time.monotonic()
    try:
        _check(options)
    except MemoryError as error:
        return _fail("OUT_OF_MEMORY", f"{options.folder}: out of memory while it was checked {error}".rstrip())
    except Exception as error:  # noqa: BLE001  whatever it is, the parent reports it
        reason = getattr(error, "reason", "CORRUPT")
        message = str(error) if hasattr(error, "reason") else f"{options.folder}: {type(error).__name__}: {error}"
        return _fail(str(reason), message)
    print(json.dumps({"seconds": time.monotonic() - started}), flush=True)
    return 0


def _check(options: argparse.Namespace) -> None:
    from openbook_database.snapshot import Snapshot

    if options.memory_mb is not None:
        _limit_memory(int(options.memory_mb * 1e6))
    snapshot = Snapshot.open(options.folder, options.verify, shards=options.shards, expected_id=options.snapshot)
    snapshot.check_golden()


def _limit_memory(more: int) -> None:
    """Of what is no file's mapping: what the program has now and `more` bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            limit = int(line.split()[1]) * 1024 + more
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(2)


def _fail(reason: str, error: str) -> int:
    print(json.dumps({"reason": reason, "error": error}), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
