"""Batches across callers: one worker that pulls the next batch as soon as it is free.

The oldest text always goes; those nearest to it in length fill the batch up to a budget of padded tokens. Nothing
waits for company: an idle worker takes what is there. Calls and streams wait in a lane each, and the worker takes them
in turns: a build that keeps its lane full costs a call one batch of delay. The lock owns both lanes.

It is `ready` or not (see `watch`): from the moment that the encoder fails on a text that it has encoded before, that the
thread ends or that a batch does not come back, until the encoder has answered again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_core.admission import Admission
from openbook_core.errors import OpenbookError, UnavailableError
from openbook_core.telemetry import get_logger
from openbook_embedder.metrics import EmbedderMetrics
from openbook_embedder.queueing import Item, Lane
from openbook_embedder.ticket import Ticket
from openbook_embedder.watch import EncoderWatch

EncodeBatch = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]

# Before the first batch was timed; only the first retry delays rest on it.
_ASSUMED_TOKENS_PER_S = 5000.0
# Between two looks at an encoder that fails, and at whether a waiting stream's caller is still there.
_LOOK_S = 0.5

_log = get_logger(__name__)


class Batcher:
    """Owns the queue and the worker thread that calls `encode`, or `encode_alone` for batches that nothing else joins.

    Of several calls a batch takes at most half of what waits, or `enough_tokens`, by default `batch_tokens`; `encode`
    divides it between `cores`.
    `probe` are the token ids that tell whether the encoder answers; `on_ready` hears of every change of `ready`.
    `timeout_s`, `restart_s`, `on_dead` and `clock` are as of `EncoderWatch`.
    """

    def __init__(
        self,
        encode: EncodeBatch,
        *,
        batch_tokens: int,
        max_queue_tokens: int,
        metrics: EmbedderMetrics,
        enough_tokens: int | None = None,
        cores: int = 1,
        encode_alone: EncodeBatch | None = None,
        probe: Sequence[int] = (0,),
        on_ready: Callable[[bool], None] = lambda ready: None,
        timeout_s: float = 120.0,
        restart_s: float = 30.0,
        on_dead: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encode, self._encode_alone = encode, encode_alone or encode
        self._batch_tokens, self._enough_tokens = batch_tokens, enough_tokens or batch_tokens
        self._cores = cores
        self._admission = Admission("tokens", max_queue_tokens, _ASSUMED_TOKENS_PER_S)
        self._metrics = metrics
        self._probe = probe
        self._on_ready = on_ready
        self.watch = EncoderWatch(
            timeout_s=timeout_s,
            restart_s=restart_s,
            on_ready=self._ready_changed,
            on_hang=self._refuse_all,
            on_dead=on_dead,
            clock=clock,
        )
        metrics.ready.set(1)
        self._calls, self._streams = Lane(), Lane()
        self._last = self._streams
        self._batch: list[Item] = []
        self._closing = False
        self._changed = threading.Condition()
        self._start_worker()
        self.watch.start()

    @property
    def ready(self) -> bool:
        """Whether the encoder answers."""
        return self.watch.ready

    def submit(
        self,
        ids: Sequence[Sequence[int]],
        deadline: float | None = None,
        known: Sequence[NDArray[np.float32] | None] = (),
    ) -> Ticket:
        """Queue the texts of one call, all or none, but for those with a `known` vector (see `Ticket`).

        Raises OverloadedError with a retry delay where the queue has no room for all of them, DeadlineError where the
        deadline has passed, UnavailableError while the encoder does not answer.
        """
        ticket = Ticket(ids, deadline, known)
        if deadline is not None and deadline <= ticket.submitted:
            raise ticket.late()
        if not ticket.missing:
            return ticket
        with self._changed:
            self._require_ready()
            if not self._has_room(self._calls, ticket):
                raise self._admission.refusal(self._calls.tokens, ticket.tokens, self._streams.tokens)
            self._add(self._calls, [Item(ticket, [place]) for place in ticket.missing])
        return ticket

    def feed(
        self,
        ids: Sequence[Sequence[int]],
        deadline: float | None,
        *,
        batches: Sequence[Sequence[int]] | None,
        gone: threading.Event,
        known: Sequence[NDArray[np.float32] | None] = (),
    ) -> Ticket:
        """Queue one message of a stream, and wait for room unless the caller is `gone`. A message fits an empty queue.

        `batches` are the places of the texts in batches that nothing else joins; with them no vector is `known`. Raises
        as `submit` but for OverloadedError.
        """
        ticket = Ticket(ids, deadline, known)
        if not ticket.missing:
            return ticket
        with self._changed:
            while not self._has_room(self._streams, ticket) or not self.ready:
                if gone.is_set():
                    ticket.cancel()
                    return ticket
                if deadline is not None and deadline <= time.monotonic():
                    raise ticket.late()
                self._require_open()
                self._changed.wait(_LOOK_S)
            self._require_open()
            alone = batches is not None
            places = batches if batches is not None else [[place] for place in ticket.missing]
            self._add(self._streams, [Item(ticket, each, alone=alone) for each in places])
        return ticket

    def retry_delay(self) -> float:
        """Seconds until what waits now will have gone."""
        with self._changed:
            return self._admission.delay(self._calls.tokens, self._admission.most, self._streams.tokens)

    def close(self) -> None:
        """Encode what waits, refuse what comes, and end the worker; one that hangs is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while self._worker.is_alive() and not self.watch.hangs:
            self._worker.join(_LOOK_S)
        self.watch.close()

    def _has_room(self, lane: Lane, ticket: Ticket) -> bool:
        if not self._admission.has_room(lane.tokens, ticket.tokens):
            lane.drop_closed()
        return self._admission.has_room(lane.tokens, ticket.tokens)

    def _require_ready(self) -> None:
        self._require_open()
        if not self.ready:
            raise UnavailableError("the encoder fails and is being restarted; come back later", retry_after_s=1.0)

    def _require_open(self) -> None:
        if self._closing:
            raise UnavailableError("the embedder is shutting down; ask another one")

    def _add(self, lane: Lane, items: list[Item]) -> None:
        lane.add(items)
        self._show()
        self._changed.notify_all()

    def _show(self) -> None:
        self._metrics.queue_texts.set(self._calls.texts + self._streams.texts)
        self._metrics.queue_tokens.set(self._calls.tokens + self._streams.tokens)

    def _start_worker(self) -> None:
        self._worker = threading.Thread(target=self._run, name="embedder-batches", daemon=True)
        self._worker.start()

    def _run(self) -> None:
        try:
            while self._answers_again() and (batch := self._next_batch()):
                self._batch = batch
                self._encode_or_split(batch)
        except BaseException as error:  # noqa: BLE001  whatever ended the thread, another one takes over
            _log.exception("the encoding thread ended and is replaced")
            self._metrics.worker_restarts.inc()
            self.watch.fails()
            _fail(self._batch, OpenbookError(f"the encoding thread ended on a batch with this call's texts: {error!r}"))
            self._start_worker()

    def _answers_again(self) -> bool:
        """Wait until the encoder answers, where it did not; False where the wait ended with the service."""
        while self.watch.failing:
            if self._probe_fails() is None:
                self.watch.answers()
                break
            with self._changed:
                if not self._closing:
                    self._changed.wait(_LOOK_S)
                    continue
                _fail(self._waiting(), UnavailableError("the embedder is shutting down; ask another one"))
                return False
        return True

    def _probe_fails(self) -> BaseException | None:
        try:
            with self.watch.call(len(self._probe)):
                self._encode([self._probe])
        except BaseException as error:  # noqa: BLE001  what ends a thread too: the probe is what decides on the next one
            return error
        return None

    def _ready_changed(self, ready: bool) -> None:
        self._metrics.ready.set(ready)
        self._on_ready(ready)
        with self._changed:
            self._changed.notify_all()

    def _refuse_all(self) -> None:
        """Nobody waits for an encoder that hangs, neither in its batch nor for the next one."""
        with self._changed:
            _fail(
                [*self._batch, *self._waiting()],
                UnavailableError("the encoder does not come back; ask another one", retry_after_s=1.0),
            )
            for lane in (self._calls, self._streams):
                lane.drop_closed()
            self._show()
            self._changed.notify_all()

    def _waiting(self) -> list[Item]:
        return [*self._calls.items, *self._streams.items]

    def _next_batch(self) -> list[Item]:
        """Block until there is a batch; empty when closed and nothing is left."""
        with self._changed:
            while True:
                self._calls.drop_closed()
                self._streams.drop_closed()
                self._show()
                waiting = [lane for lane in (self._calls, self._streams) if lane.items]
                if waiting:
                    break
                if self._closing:
                    return []
                self._changed.wait()
            self._last = waiting[0] if len(waiting) == 1 or self._last is not waiting[0] else waiting[1]
            batch = self._last.take(self._batch_tokens, self._enough_tokens, self._cores)
            self._show()
            self._changed.notify_all()
            return batch

    def _encode_or_split(self, batch: list[Item]) -> None:
        """Encode; where the encoder raises, find the item that makes it raise, so that its mates are answered."""
        start = time.monotonic()
        for item in batch:
            if item.ticket.started is None:
                item.ticket.started = start
                self._metrics.stage_seconds.labels("queue").observe(item.ticket.queued_s)
        error = self._encode_items(batch)
        if error is None:
            return
        _log.error(f"the encoder failed on a batch of {len(batch)} items: {error!r}", exc_info=error)
        if (down := self._probe_fails()) is None:
            self._split(batch, error)
            return
        self.watch.fails()
        _fail(batch, UnavailableError(f"the encoder fails on every text: {down}", retry_after_s=1.0))

    def _split(self, batch: list[Item], error: Exception) -> None:
        if len(batch) == 1:
            _fail(batch, OpenbookError(f"the encoder failed on this text: {error}"))
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            if inner := self._encode_items(half):
                self._split(half, inner)

    def _encode_items(self, batch: list[Item]) -> Exception | None:
        """Encode as one batch and hand out the vectors; what the encoder raised, if it did."""
        ids = [row for item in batch for row in item.ids]
        padded = len(ids) * max(item.width for item in batch)
        read = sum(item.tokens for item in batch)
        start = time.monotonic()
        try:
            with self.watch.call(padded):
                vectors_ND = (self._encode_alone if batch[0].alone else self._encode)(ids)
            if len(vectors_ND) != len(ids):
                raise RuntimeError(f"the encoder gave {len(vectors_ND)} vectors for {len(ids)} texts")
        except Exception as error:  # noqa: BLE001  whatever the encoder raises
            self._metrics.batch_failures.inc()
            return error
        taken = time.monotonic() - start
        self._metrics.stage_seconds.labels("encode").observe(taken)
        self._metrics.batch_tokens.observe(padded)
        self._metrics.padding_share.observe((padded - read) / padded)
        self._admission.measured(read, taken)
        first = 0
        for item in batch:
            item.ticket.put(item.places, vectors_ND[first : first + len(item.places)])
            first += len(item.places)
        return None


def _fail(batch: list[Item], error: OpenbookError) -> None:
    for item in batch:
        item.ticket.fail(error)
