"""Batches across callers: one queue, one worker that pulls the next batch as soon as it is free.

The oldest text always goes; those nearest to it in length fill the batch up to a budget of padded tokens. Nothing
waits for company: an idle worker takes what is there. The queue is bounded, and the lock owns all of its state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import DeadlineError, OpenbookError, OverloadedError, UnavailableError
from openbook_core.telemetry import get_logger
from openbook_embedder.metrics import EmbedderMetrics

EncodeBatch = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]

# Before the first batch was timed; only the first retry delays rest on it.
_ASSUMED_TOKENS_PER_S = 5000.0

_log = get_logger(__name__)


class Ticket:
    """One caller's texts on their way through the queue; `deadline` is in seconds of time.monotonic()."""

    def __init__(self, ids: Sequence[Sequence[int]], deadline: float | None) -> None:
        self.ids = ids
        self.deadline = deadline
        self.submitted = time.monotonic()
        self.started: float | None = None
        self._rows: list[NDArray[np.float32] | None] = [None] * len(ids)
        self._left = len(ids)
        self._error: OpenbookError | None = None
        self._done = threading.Event()

    @property
    def closed(self) -> bool:
        """Answered, failed, cancelled or too late: what is left of it in the queue is dropped."""
        return self._done.is_set()

    def result(self) -> NDArray[np.float32]:
        """Wait for the vectors [n, d]; raises DeadlineError, or the error that its batch met."""
        timeout = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        if not self._done.wait(timeout):
            self.fail(late(self.deadline, self.submitted))
        if self._error is not None:
            raise self._error
        return np.stack([row for row in self._rows if row is not None])

    def put(self, place: int, vector: NDArray[np.float32]) -> None:
        """The vector of text `place`; called by the worker only."""
        self._rows[place] = vector
        self._left -= 1
        if self._left == 0:
            self._done.set()

    def fail(self, error: OpenbookError) -> None:
        """Close it with `error`, unless it is closed already."""
        if not self._done.is_set():
            self._error = error
            self._done.set()

    def cancel(self) -> None:
        """The caller went away; nothing more is encoded for it."""
        self.fail(DeadlineError("the caller went away before its texts were encoded"))


class _Item:
    """One text in the queue: text `place` of `ticket`."""

    __slots__ = ("ids", "place", "ticket")

    def __init__(self, ticket: Ticket, place: int) -> None:
        self.ticket, self.place, self.ids = ticket, place, ticket.ids[place]


class Batcher:
    """Owns the queue and the worker thread that calls `encode`."""

    def __init__(
        self, encode: EncodeBatch, *, batch_tokens: int, max_queue_texts: int, metrics: EmbedderMetrics
    ) -> None:
        self._encode = encode
        self._batch_tokens = batch_tokens
        self._max_queue_texts = max_queue_texts
        self._metrics = metrics
        self._queue: list[_Item] = []
        self._tokens_per_s = _ASSUMED_TOKENS_PER_S
        self._closing = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._run, name="embedder-batches", daemon=True)
        self._worker.start()

    def submit(self, ids: Sequence[Sequence[int]], deadline: float | None = None) -> Ticket:
        """Queue the texts of one call.

        Raises OverloadedError with a retry delay where the queue has no room for all of them, DeadlineError where
        the deadline has passed, UnavailableError during shutdown.
        """
        ticket = Ticket(ids, deadline)
        if deadline is not None and deadline <= ticket.submitted:
            raise late(deadline, ticket.submitted)
        with self._changed:
            if self._closing:
                raise UnavailableError("the embedder is shutting down; ask another one")
            self._drop_closed()
            if len(self._queue) + len(ids) > self._max_queue_texts:
                waiting = sum(len(item.ids) for item in self._queue)
                delay = max(0.05, waiting / self._tokens_per_s)
                raise OverloadedError(
                    f"{len(self._queue)} texts wait and {len(ids)} more do not fit into the queue of "
                    f"{self._max_queue_texts}; come back in {delay:.2f} s",
                    field="texts",
                    retry_after_s=delay,
                )
            self._queue += [_Item(ticket, place) for place in range(len(ids))]
            self._metrics.queue_texts.set(len(self._queue))
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """Encode what waits, refuse what comes, and end the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._encode_one(batch)

    def _next_batch(self) -> list[_Item]:
        """Block until there is a batch; empty when closed and nothing is left."""
        with self._changed:
            while True:
                self._drop_closed()
                if self._queue:
                    break
                if self._closing:
                    return []
                self._changed.wait()
            batch = choose_batch(self._queue, self._batch_tokens)
            taken = set(map(id, batch))
            self._queue = [item for item in self._queue if id(item) not in taken]
            self._metrics.queue_texts.set(len(self._queue))
            return batch

    def _drop_closed(self) -> None:
        now = time.monotonic()
        for item in self._queue:
            ticket = item.ticket
            if ticket.deadline is not None and ticket.deadline <= now:
                ticket.fail(late(ticket.deadline, ticket.submitted))
        self._queue = [item for item in self._queue if not item.ticket.closed]
        self._metrics.queue_texts.set(len(self._queue))

    def _encode_one(self, batch: list[_Item]) -> None:
        start = time.monotonic()
        for item in batch:
            item.ticket.started = item.ticket.started or start
        padded = len(batch) * max(len(item.ids) for item in batch)
        read = sum(len(item.ids) for item in batch)
        self._metrics.batch_tokens.observe(padded)
        self._metrics.padding_tokens.inc(padded - read)
        try:
            vectors_ND = self._encode([item.ids for item in batch])
        except Exception as error:  # noqa: BLE001  whatever the encoder raises fails this batch alone
            self._metrics.batch_failures.inc()
            _log.exception(f"the encoder failed on a batch of {len(batch)} texts")
            failure = OpenbookError(f"the encoder failed on a batch with this call's texts: {error}")
            for item in batch:
                item.ticket.fail(failure)
            return
        for item, vector_D in zip(batch, vectors_ND, strict=True):
            item.ticket.put(item.place, vector_D)
        rate = read / max(1e-6, time.monotonic() - start)
        self._tokens_per_s += 0.2 * (rate - self._tokens_per_s)


def choose_batch(queue: Sequence[_Item], batch_tokens: int) -> list[_Item]:
    """The oldest item of a queue that is not empty, and those nearest in length that fit the padded budget."""
    oldest = queue[0]
    batch, width = [oldest], len(oldest.ids)
    for item in sorted(queue[1:], key=lambda item: abs(len(item.ids) - len(oldest.ids))):
        wider = max(width, len(item.ids))
        if wider * (len(batch) + 1) > batch_tokens:
            break
        batch.append(item)
        width = wider
    return batch


def late(deadline: float | None, submitted: float) -> DeadlineError:
    """The error of a call whose deadline passed in the queue."""
    allowed = max(0.0, (deadline or submitted) - submitted)
    return DeadlineError(
        f"the call's deadline ({allowed:.3f} s after it was queued) passed before its texts were encoded"
    )
