"""One run to a folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from openbook_core.errors import ConflictError


@contextmanager
def alone_in(folder: Path, run: str, option: str) -> Iterator[None]:
    """Hold the folder's lock, which a killed run lets go; raises ConflictError that names the `option` for another one."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConflictError(f"another {run} works in {folder}; wait for its end, or give another {option}") from None
    try:
        yield
    finally:
        lock.release()
