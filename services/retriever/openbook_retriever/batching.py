"""Batches across callers: one worker searches the queries of several calls at once.

An idle worker takes what is there at once; while it searches, calls gather, and the next batch is the oldest call and
all others of the same shard and k, up to a number of queries. Nothing waits for company. The number of threads in a
search is set once, for the worker; the threads of the callers only wait. A caller that went away or is too late is
dropped before its queries are searched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.admission import Admission
from openbook_core.errors import DeadlineError, OpenbookError, UnavailableError
from openbook_core.telemetry import get_logger
from openbook_database.scoring import Hits
from openbook_database.search import check_query
from openbook_database.shard import Shard
from openbook_retriever.metrics import BATCH_FAILURES, BATCH_QUERIES, QUEUE_QUERIES

# Before the first batch was timed; only the first retry delays rest on it.
_ASSUMED_QUERIES_PER_S = 1000.0

_log = get_logger(__name__)


class Ticket:
    """One call's queries on their way: float32 [q, d] with k, and for each query what may not come back (`Shard.search`).

    `deadline` in seconds of time.monotonic(). Raises ArgumentError for queries or k that the shard cannot take.
    """

    def __init__(
        self,
        shard: Shard,
        queries_QD: NDArray[np.float32],
        k: int,
        exclude: Sequence[Collection[int]] | None = None,
        min_score: float | None = None,
        allowed: Sequence[NDArray[np.bool_] | None] | None = None,
        deadline: float | None = None,
    ) -> None:
        self.shard, self.k = shard, k
        self.queries_QD = check_query(queries_QD, k, shard.dimension)
        self.exclude, self.min_score, self.allowed = exclude, min_score, allowed
        self.deadline = deadline
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.hits: Future[Hits] = Future()

    def __len__(self) -> int:
        return len(self.queries_QD)

    @property
    def closed(self) -> bool:
        """Answered, failed, cancelled or too late: what is left of it in the queue is dropped."""
        return self.hits.done()

    @property
    def queued_s(self) -> float:
        """Seconds from submission to its batch."""
        return (self.started or time.monotonic()) - self.submitted

    def joins(self, other: Ticket) -> bool:
        """Whether both can be in one batch."""
        return self.shard is other.shard and self.k == other.k

    def result(self) -> Hits:
        """Wait for the hits; raises DeadlineError, or the error that the queries met."""
        timeout = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        try:
            return self.hits.result(timeout)
        except TimeoutError:
            self.fail(self.late())
            return self.hits.result()

    def put(self, hits: Hits) -> None:
        with suppress(InvalidStateError):
            self.hits.set_result(hits)

    def fail(self, error: OpenbookError) -> None:
        """Close it with `error`, unless it is closed already."""
        with suppress(InvalidStateError):
            self.hits.set_exception(error)

    def cancel(self) -> None:
        """The caller went away; nothing more is searched for it."""
        self.fail(DeadlineError("the caller went away before its queries were searched"))

    def late(self) -> DeadlineError:
        allowed = max(0.0, (self.deadline or self.submitted) - self.submitted)
        return DeadlineError(
            f"the call's deadline ({allowed:.3f} s after it was queued) passed before its queries were searched"
        )


class SearchBatcher:
    """Owns the queue and the worker thread; safe to use from several threads."""

    def __init__(self, *, threads: int = 1, batch_queries: int = 512, max_queue_queries: int = 16_384) -> None:
        """`threads`: of Faiss in one search. `batch_queries`: most in a batch, but for a call that has more alone."""
        self._threads, self._batch_queries = threads, batch_queries
        self._admission = Admission("queries", max_queue_queries, _ASSUMED_QUERIES_PER_S)
        self._waiting: list[Ticket] = []
        self._queries = 0
        self._closing = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._run, name="retriever-batches", daemon=True)
        self._worker.start()

    def submit(self, ticket: Ticket) -> Ticket:
        """Queue a call, all or none. One that has more queries than the queue has room for is let in where nothing waits.

        Raises OverloadedError with a retry delay where the queue is full, DeadlineError where the deadline has passed.
        """
        if ticket.deadline is not None and ticket.deadline <= ticket.submitted:
            raise ticket.late()
        with self._changed:
            if self._closing:
                raise UnavailableError("the shard is shutting down; ask another replica")
            if not self._admission.has_room(self._queries, len(ticket)):
                self._drop_closed()
            if self._queries and not self._admission.has_room(self._queries, len(ticket)):
                raise self._admission.refusal(self._queries, len(ticket))
            self._waiting.append(ticket)
            self._count(len(ticket))
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """Search what waits, refuse what comes, and end the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join()

    def _count(self, queries: int) -> None:
        self._queries += queries
        QUEUE_QUERIES.inc(queries)

    def _drop_closed(self) -> None:
        now = time.monotonic()
        for ticket in self._waiting:
            if ticket.deadline is not None and ticket.deadline <= now:
                ticket.fail(ticket.late())
        self._keep([ticket for ticket in self._waiting if not ticket.closed])

    def _keep(self, waiting: list[Ticket]) -> None:
        self._waiting = waiting
        self._count(sum(map(len, waiting)) - self._queries)

    def _run(self) -> None:
        faiss.omp_set_num_threads(self._threads)
        while batch := self._next_batch():
            started = time.monotonic()
            for ticket in batch:
                ticket.started = started
            queries = sum(map(len, batch))
            BATCH_QUERIES.observe(queries)
            try:
                _search(batch)
            except Exception:  # noqa: BLE001  whatever the index raises
                _log.exception("a batch of %d calls failed; each is searched alone", len(batch))
                BATCH_FAILURES.inc()
                for ticket in batch:
                    _search_alone(ticket)
            with self._changed:
                self._admission.measured(queries, time.monotonic() - started)

    def _next_batch(self) -> list[Ticket]:
        """Block until there is a batch; empty when closed and nothing is left."""
        with self._changed:
            while True:
                self._drop_closed()
                if self._waiting:
                    break
                if self._closing:
                    return []
                self._changed.wait()
            oldest, room = self._waiting[0], self._batch_queries
            batch, left = [], []
            for ticket in self._waiting:
                if ticket is oldest or (ticket.joins(oldest) and len(ticket) <= room):
                    batch.append(ticket)
                    room -= len(ticket)
                else:
                    left.append(ticket)
            self._keep(left)
            return batch


def _search(batch: Sequence[Ticket]) -> None:
    first = batch[0]
    exclude = allowed = min_score = None
    if any(ticket.exclude is not None for ticket in batch):
        exclude = [numbers for ticket in batch for numbers in ticket.exclude or [()] * len(ticket)]
    if any(ticket.allowed is not None for ticket in batch):
        allowed = [mask for ticket in batch for mask in ticket.allowed or [None] * len(ticket)]
    if any(ticket.min_score is not None for ticket in batch):
        least = [-np.inf if ticket.min_score is None else ticket.min_score for ticket in batch]
        min_score = np.repeat(np.asarray(least, dtype=np.float32), [len(ticket) for ticket in batch])
    queries_QD = first.queries_QD if len(batch) == 1 else np.concatenate([ticket.queries_QD for ticket in batch])
    hits = first.shard.search(queries_QD, first.k, exclude, min_score, allowed)
    place = 0
    for ticket in batch:
        mine = slice(place, place + len(ticket))
        ticket.put(Hits(hits.ids_QK[mine], hits.scores_QK[mine]))
        place += len(ticket)


def _search_alone(ticket: Ticket) -> None:
    try:
        _search([ticket])
    except OpenbookError as error:
        ticket.fail(error)
    except Exception as error:  # noqa: BLE001  whatever the index raises
        _log.exception("a search failed")
        ticket.fail(OpenbookError(f"the search failed: {type(error).__name__}: {error}"))
