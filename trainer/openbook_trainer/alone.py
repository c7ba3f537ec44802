"""One run to a folder at a time: two would write each other's checkpoints and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from openbook_core.errors import ConfigError, ConflictError
from openbook_trainer.distributed import World


@contextmanager
def alone_in(folder: Path, world: World) -> Iterator[None]:
    """Process 0 holds the folder's lock, which a killed run lets go.

    Raises, on every process, ConflictError for another run and ConfigError for a folder that cannot be made or written to.
    """
    lock = FileLock(folder / ".lock")

    def acquire() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ConflictError(
                f"another run trains in {folder}; wait for its end, or give another `out`", field="out"
            ) from None
        except OSError as error:
            raise ConfigError(f"out: {folder} cannot be written to: {error.strerror}", field="out") from error

    world.from_first(acquire)
    try:
        yield
    finally:
        lock.release()
