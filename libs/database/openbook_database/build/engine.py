"""Where the work of a build's stages is done: in this process, in several, or on a Ray cluster (`ray_engine`).

A stage hands out numbered items: blocks of chunks, shards. Each is a file or a folder of its own and follows from the
input alone, so any engine gives the same bytes, and what is left of an interrupted one goes on in any other.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Protocol

import faiss

from openbook_core.errors import OpenbookError
from openbook_database.encoder import Encoder

# Called once in each process that takes part; what it returns does one item. Must be picklable.
Job = Callable[[], Callable[[int], None]]

# In-memory bytes of the items together from which processes are worth starting (about a second).
_WORTHWHILE_BYTES = 256 << 20


class Engine(Protocol):
    """Does the items of a stage."""

    @property
    def load_encoder(self) -> Callable[[], Encoder] | None:
        """Makes an encoder in each process of the embed stage; None: the build's own encodes, in its process."""

    def map(self, job: Job, items: Sequence[int], *, name: str, item_bytes: int) -> Generator[int]:
        """Do all items, each of which may take `item_bytes` of memory; yields each when it is done, in any order.

        Raises OpenbookError naming the item, as "`name` 7", where the job raises what is no OpenbookError, or where a
        process is lost. When the iterator is closed early or raises, no process of it is left.
        """


class LocalEngine:
    """This process, or up to `workers` processes on this machine; None: as many as cores and memory allow, where the
    work is worth it."""

    load_encoder = None

    def __init__(self, workers: int | None = 1) -> None:
        self._workers = workers

    def map(self, job: Job, items: Sequence[int], *, name: str, item_bytes: int) -> Generator[int]:
        workers = min(len(items), self._workers or _useful_workers(len(items), item_bytes))
        return _here(job, items, name) if workers <= 1 else _in_processes(job, items, name, workers)


def _useful_workers(items: int, item_bytes: int) -> int:
    if items * item_bytes < _WORTHWHILE_BYTES:
        return 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), free // (2 * item_bytes)))


def _here(job: Job, items: Sequence[int], name: str) -> Generator[int]:
    if not items:
        return
    do = job()
    for item in items:
        try:
            do(item)
        except Exception as error:
            raise item_error(name, item, error) from error
        yield item


def item_error(name: str, item: int, error: BaseException) -> OpenbookError:
    """What to raise for an item that raised `error`: the error itself where it is for people."""
    if isinstance(error, OpenbookError):
        return error
    return OpenbookError(f"{name} {item}: {type(error).__name__}: {error}")


def _in_processes(job: Job, items: Sequence[int], name: str, workers: int) -> Generator[int]:
    context = get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
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
                    error = each.recv()
                except (EOFError, ConnectionError):
                    processes[each].join()
                    raise OpenbookError(
                        f"{name} {item}: its process ended with exit code {processes[each].exitcode} before it was done; "
                        "-9 is the system's way where memory is short. Run the same command again, with fewer workers if need be: "
                        "it goes on where it stopped"
                    ) from None
                if error is not None:
                    raise error
                if left:
                    busy[each] = left.pop()
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
    do = None
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        error: OpenbookError | None = None
        try:
            do = do or job()
            do(item)
        except Exception as caught:  # noqa: BLE001  it is raised where the items are handed out
            error = item_error(name, item, caught)
        connection.send(error)


def _end_with_the_build() -> None:
    """No worker outlives a build that is killed."""
    build = parent_process()
    assert build is not None
    build.join()
    os._exit(1)
