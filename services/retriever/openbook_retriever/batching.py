"""Batches across callers: one worker searches the queries of several calls at once.

An idle worker takes what is there at once; while it searches, calls gather, and the next batch is the oldest call and
all others of the same shard and k, up to a number of queries. Nothing waits for company. A call with more queries than
that is searched in slices, and others have their turn between them. A caller that went away or is too late is dropped
before its queries, or its next slice, are searched.

The number of threads in a search is set once, for the worker; the threads of the callers only wait. But a single query
that finds nothing under way is searched by its caller's own thread: there is nothing to share among threads, and none to
wake. Never is there more than one search at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.admission import Admission
from openbook_core.errors import DeadlineError, OpenbookError, UnavailableError
from openbook_core.telemetry import get_logger
from openbook_database.allowed import Allowed
from openbook_database.exclusions import Exclusions
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
        exclude: Exclusions | Sequence[Collection[int]] | None = None,
        min_score: float | None = None,
        allowed: Allowed | Sequence[NDArray[np.bool_] | None] | None = None,
        deadline: float | None = None,
    ) -> None:
        self.shard, self.k = shard, k
        self.queries_QD = check_query(queries_QD, k, shard.dimension)
        self.exclude = None if exclude is None else Exclusions.of(exclude)
        self.allowed = None if allowed is None else Allowed.of(allowed)
        self.min_score = min_score
        self.deadline = deadline
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.taken = 0
        self.hits: Future[Hits] = Future()
        self._slices: list[Hits] = []

    def __len__(self) -> int:
        return len(self.queries_QD)

    @property
    def left(self) -> int:
        """Queries that are in no batch yet."""
        return len(self) - self.taken

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

    def take(self, most: int) -> _Slice:
        """The next queries, at most so many, for a batch."""
        first, self.taken = self.taken, min(len(self), self.taken + most)
        return _Slice(self, first, self.taken)

    def put(self, hits: Hits) -> None:
        """What the next slice found; slices are searched in order."""
        self._slices.append(hits)
        if sum(len(found.ids_QK) for found in self._slices) < len(self):
            return
        if len(self._slices) > 1:
            hits = Hits(*(np.concatenate(arrays) for arrays in zip(*self._slices, strict=True)))
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


class _Slice(NamedTuple):
    """Queries [first, end) of a call."""

    ticket: Ticket
    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def exclude(self) -> Exclusions:
        given = self.ticket.exclude
        return Exclusions.none(len(self)) if given is None else given.part(self.first, self.end)

    @property
    def allowed(self) -> Allowed:
        given = self.ticket.allowed
        return Allowed.none(len(self)) if given is None else given.part(self.first, self.end)


class SearchBatcher:
    """Owns the queue and the worker thread; safe to use from several threads."""

    def __init__(self, *, threads: int = 1, batch_queries: int = 512, max_queue_queries: int = 16_384) -> None:
        """`threads`: of Faiss in one search. `batch_queries`: most in a batch."""
        self._threads, self._batch_queries = threads, batch_queries
        self._admission = Admission("queries", max_queue_queries, _ASSUMED_QUERIES_PER_S)
        self._waiting: list[Ticket] = []
        self._queries = 0
        self._closing = False
        self._busy = False
        self._sliced: Ticket | None = None
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._run, name="retriever-batches", daemon=True)
        self._worker.start()

    def search(
        self, tickets: Sequence[Ticket], watch: Callable[[Callable[[], None]], bool] = lambda leave: True
    ) -> list[Hits]:
        """The hits of one caller's tickets, for the same queries in several shards.

        `watch` is given what to call when the caller goes away, and is false where it has gone. Raises what `submit` and
        `Ticket.result` raise.
        """
        if all(len(ticket) == 1 for ticket in tickets) and self._begin_alone(tickets):
            try:
                faiss.omp_set_num_threads(1)
                for ticket in tickets:
                    self._serve([ticket.take(1)])
            finally:
                self._end()
            return [ticket.result() for ticket in tickets]

        def leave() -> None:
            for ticket in tickets:
                ticket.cancel()

        try:
            self._admit(tickets)
            if not watch(leave):
                leave()
            return [ticket.result() for ticket in tickets]
        except OpenbookError:
            leave()
            raise

    def submit(self, ticket: Ticket) -> Ticket:
        """Queue a call, all or none. One that has more queries than the queue has room for is let in where nothing waits.

        Raises OverloadedError with a retry delay where the queue is full, DeadlineError where the deadline has passed.
        """
        self._admit([ticket])
        return ticket

    def close(self) -> None:
        """Search what waits, refuse what comes, and end the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join()

    def _admit(self, tickets: Sequence[Ticket]) -> None:
        """`submit` for all tickets of one call, which do not wait for each other."""
        for ticket in tickets:
            if ticket.deadline is not None and ticket.deadline <= ticket.submitted:
                raise ticket.late()
        queries = sum(map(len, tickets))
        with self._changed:
            if self._closing:
                raise UnavailableError("the shard is shutting down; ask another replica")
            if not self._admission.has_room(self._queries, queries):
                self._drop_closed()
            if self._queries and not self._admission.has_room(self._queries, queries):
                raise self._admission.refusal(self._queries, queries)
            self._waiting.extend(tickets)
            self._count(queries)
            self._changed.notify()

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
        self._count(sum(ticket.left for ticket in waiting) - self._queries)

    def _begin_alone(self, tickets: Sequence[Ticket]) -> bool:
        """Whether the caller's thread may search now; then `_end` must follow."""
        with self._changed:
            late = any(ticket.deadline is not None and ticket.deadline <= ticket.submitted for ticket in tickets)
            if self._busy or self._waiting or self._closing or late:
                return False
            self._busy = True
            return True

    def _end(self) -> None:
        with self._changed:
            self._busy = False
            if self._waiting or self._closing:
                self._changed.notify()

    def _run(self) -> None:
        faiss.omp_set_num_threads(self._threads)
        while batch := self._next_batch():
            try:
                self._serve(batch)
            finally:
                self._end()

    def _serve(self, batch: Sequence[_Slice]) -> None:
        started = time.monotonic()
        for part in batch:
            if part.ticket.started is None:
                part.ticket.started = started
        queries = sum(map(len, batch))
        BATCH_QUERIES.observe(queries)
        try:
            _search(batch)
        except Exception:  # noqa: BLE001  whatever the index raises
            _log.exception("a batch of %d calls failed; each is searched alone", len(batch))
            BATCH_FAILURES.inc()
            for part in batch:
                _search_alone(part)
        with self._changed:
            self._admission.measured(queries, time.monotonic() - started)

    def _next_batch(self) -> list[_Slice]:
        """Block until there is a batch and nobody searches; empty when closed and nothing is left."""
        with self._changed:
            while True:
                self._drop_closed()
                if self._waiting and not self._busy:
                    break
                if self._closing and not self._waiting:
                    return []
                self._changed.wait()
            self._busy = True
            # One that had a slice in the last batch lets those go first that came meanwhile.
            self._waiting.sort(key=lambda ticket: ticket is self._sliced)
            oldest, room = self._waiting[0], self._batch_queries
            self._sliced = oldest if oldest.left > room else None
            batch, left = [], []
            for ticket in self._waiting:
                if ticket is oldest or (ticket.joins(oldest) and ticket.left <= room):
                    batch.append(ticket.take(room))
                    room -= len(batch[-1])
                if ticket.left:
                    left.append(ticket)
            self._keep(left)
            return batch


def _search(batch: Sequence[_Slice]) -> None:
    first = batch[0].ticket
    exclude = allowed = min_score = None
    if any(part.ticket.exclude is not None for part in batch):
        exclude = Exclusions.join([part.exclude for part in batch])
    if any(part.ticket.allowed is not None for part in batch):
        allowed = Allowed.join([part.allowed for part in batch])
    if any(part.ticket.min_score is not None for part in batch):
        least = [-np.inf if part.ticket.min_score is None else part.ticket.min_score for part in batch]
        min_score = np.repeat(np.asarray(least, dtype=np.float32), [len(part) for part in batch])
    queries = [part.ticket.queries_QD[part.first : part.end] for part in batch]
    queries_QD = queries[0] if len(batch) == 1 else np.concatenate(queries)
    hits = first.shard.search_checked(queries_QD, first.k, exclude, min_score, allowed)
    place = 0
    for part in batch:
        mine = slice(place, place + len(part))
        part.ticket.put(Hits(hits.ids_QK[mine], hits.scores_QK[mine]))
        place += len(part)


def _search_alone(part: _Slice) -> None:
    try:
        _search([part])
    except OpenbookError as error:
        part.ticket.fail(error)
    except Exception as error:  # noqa: BLE001  whatever the index raises
        _log.exception("a search failed")
        part.ticket.fail(OpenbookError(f"the search failed: {type(error).__name__}: {error}"))
