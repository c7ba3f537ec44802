"""Work in progress beside what it will become: one process at a time, settings that stay, and one rename at the end.

For all that is made over more than one run: builds, pulls, neighbour caches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from openbook_core.errors import ConfigError, ConflictError
from openbook_core.files import sync
from openbook_core.fingerprint import differences, shortened
from openbook_database.files import clear_write_errors

_LOCK = "lock"


@contextmanager
def locked(work: Path, out: Path, what: str) -> Iterator[None]:
    """Hold the lock of the folder `work`, which is made where it is missing; a killed process lets it go.

    Raises ConflictError where another `what` ("build", ...) into `out` holds it.
    """
    while True:
        with clear_write_errors(work):
            work.mkdir(parents=True, exist_ok=True)
            lock = FileLock(work / _LOCK, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise ConflictError(
                    f"another {what} writes into {out}: wait for it, or choose another folder", field="out"
                ) from None
        # The process that held the lock may have finished, and removed the file, while this one opened it.
        if (work / _LOCK).exists():
            break
        lock.release()
    try:
        yield
    finally:
        lock.release()


def in_use(work: Path) -> bool:
    """Whether a process holds the lock of the folder `work`."""
    if not (work / _LOCK).exists():
        return False
    try:
        with FileLock(work / _LOCK, timeout=0):
            return False
    except Timeout:
        return True


def appear(folder: Path, out: Path) -> None:
    """Give a finished folder its name, whole, by one rename; InputError where the disk refuses."""
    with clear_write_errors(out):
        for inside in [path for path in folder.rglob("*") if path.is_dir()] + [folder]:
            sync(inside)
        os.replace(folder, out)
        sync(out.parent)


def require_same(earlier: Mapping[str, Any], now: Mapping[str, Any], what: str, advice: str) -> None:
    """Raise ConfigError with `what`, each field that differs with both values, and `advice`; nothing where none does."""
    found = differences(earlier, now)
    if found:
        listing = "; ".join(f"{field}: was {shortened(old)}, now {shortened(new)}" for field, old, new in found)
        raise ConfigError(f"{what}: {listing}. Please {advice}", field=found[0][0])
