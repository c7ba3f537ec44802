"""Where the work of a build's stages is done: in this process, in several, or on a Ray cluster (`ray_engine`).

A stage hands out numbered items: blocks of chunks, shards. Each is a file or a folder of its own and follows from the
input alone, so any engine gives the same bytes, and what is left of an interrupted one goes on in any other.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

import faiss

from openbook_core.errors import OpenbookError
from openbook_database.encoder import Encoder

# Tells how many rows of an item have been done since it was last told.
Tell = Callable[[int], None]
# Called once in each process that takes part; what it returns does one item. Must be picklable.
Job = Callable[[], Callable[[int, Tell], None]]

# In-memory bytes of the items together from which processes are worth starting (about a second).
_WORTHWHILE_BYTES = 256 << 20


# The number of an item, and what it tells.
Told = Callable[[int, int], None]


def _nobody(item: int, rows: int) -> None:
    """Nobody is told."""


class Engine(Protocol):
    """Does the items of a stage."""

    @property
    def load_encoder(self) -> Callable[[], Encoder] | None:
        """Makes an encoder in each process of the embed stage; None: the build's own encodes, in its process."""

    def map(
        self, job: Job, items: Sequence[int], *, name: str, item_bytes: int, told: Told = _nobody
    ) -> Generator[int]:
        """Do all items, each of which may take `item_bytes` of memory; yields each when it is done, in any order. `told` gets
        what an item tells before, with its number, where the engine can pass it on.

        Raises OpenbookError naming the item, as "`name` 7", where the job raises what is no OpenbookError, or where a
        process is lost. When the iterator is closed early or raises, no process of it is left.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class LocalEngine:
    """This process, or up to `workers` processes on this machine; None: as many as cores and memory allow, where the
    work is worth it."""

    load_encoder = None

    def __init__(self, workers: int | None = 1) -> None:
        self._workers = workers

    def map(
        self, job: Job, items: Sequence[int], *, name: str, item_bytes: int, told: Told = _nobody
    ) -> Generator[int]:
        workers = min(len(items), self._workers or _useful_workers(len(items), item_bytes))
        return _here(job, items, name, told) if workers <= 1 else _in_processes(job, items, name, told, workers)

    def close(self) -> None:
        """Nothing is held."""


def _useful_workers(items: int, item_bytes: int) -> int:
    if items * item_bytes < _WORTHWHILE_BYTES:
        return 1
    return max(1, min(_cores(), _free_bytes() // (2 * item_bytes)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = meminfo.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def _here(job: Job, items: Sequence[int], name: str, told: Told) -> Generator[int]:
    worker = Worker(job, name)
    for item in items:
        if error := worker.do(item, partial(told, item)):
            raise error
        yield item


class Worker:
    """One process's part in a stage: opens the job at its first item."""

    def __init__(self, job: Job, name: str) -> None:
        self._job, self._name = job, name
        self._do: Callable[[int, Tell], None] | None = None

    def do(self, item: int, tell: Tell = lambda rows: None) -> OpenbookError | None:
        """What to raise where the items are handed out, if anything: the error itself where it is for people."""
        try:
            self._do = self._do or self._job()
            self._do(item, tell)
        except OpenbookError as error:
            return error
        except Exception as error:  # noqa: BLE001  it is raised elsewhere
            found = OpenbookError(f"{self._name} {item}: {type(error).__name__}: {error}")
            found.__cause__ = error
            return found
        return None


def _in_processes(job: Job, items: Sequence[int], name: str, told: Told, workers: int) -> Generator[int]:
    context = get_context("spawn")
    threads = max(1, _cores() // workers)
    left = list(reversed(items))
    busy: dict[Connection, int] = {}
    processes = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, job, name, threads), daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
            busy[ours] = left.pop()
            ours.send(busy[ours])
        while busy:
            for each in wait(list(busy)):
                assert isinstance(each, Connection)
                item = busy.pop(each)
                try:
                    answer = each.recv()
                except (EOFError, ConnectionError):
                    processes[each].join()
                    raise OpenbookError(
                        f"{name} {item}: its process ended with exit code {processes[each].exitcode} before it was done; "
                        "-9 is the system's way where memory is short. Run the same command again, perhaps with fewer workers: "
                        "it goes on where it stopped"
                    ) from None
                if isinstance(answer, int):
                    busy[each] = item
                    told(item, answer)
                    continue
                if answer is not None:
                    raise answer
                if left:
                    busy[each] = left.pop()
                    with suppress(BrokenPipeError):  # it has ended since, as the next look at it will tell
                        each.send(busy[each])
                yield item
    finally:
        for connection, process in processes.items():
            connection.close()
            process.kill()
            process.join()


def _work(connection: Connection, job: Job, name: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the build ends its workers
    threading.Thread(target=_end_with_the_build, daemon=True).start()
    faiss.omp_set_num_threads(threads)
    worker = Worker(job, name)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        connection.send(worker.do(item, connection.send))


def _end_with_the_build() -> None:
    """No worker outlives a build that is killed."""
    build = parent_process()
    assert build is not None
    build.join()
    os._exit(1)
