"""One call's texts on their way through the queue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import DeadlineError, OpenbookError
from openbook_core.tracing import record


class Ticket:
    """`deadline` is in seconds of time.monotonic(); `vectors` becomes [n, d], or the error that the texts met.

    `known` are the vectors [d] that need no encoding, None for a text that does; without it all do. The places of those
    that do are `missing`, and only they count in `tokens`.
    """

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        deadline: float | None = None,
        known: Sequence[NDArray[np.float32] | None] = (),
    ) -> None:
        self.ids = ids
        self._rows = list(known) or [None] * len(ids)
        self.missing = [place for place, row in enumerate(self._rows) if row is None]
        self.tokens = sum(len(ids[place]) for place in self.missing)
        self.deadline = deadline
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.finished = self.submitted
        self.vectors: Future[NDArray[np.float32]] = Future()
        self._left = len(self.missing)
        if not self.missing:
            self.started = self.submitted
            self._finish()

    @property
    def closed(self) -> bool:
        """Answered, failed, cancelled or too late: what is left of it in the queue is dropped."""
        return self.vectors.done()

    @property
    def cached(self) -> int:
        """How many of the texts were known."""
        return len(self.ids) - len(self.missing)

    @property
    def queued_s(self) -> float:
        """Seconds from submission to the first batch."""
        return (self.started or time.monotonic()) - self.submitted

    def result(self) -> NDArray[np.float32]:
        """Wait for the vectors; raises DeadlineError, or the error that they met."""
        timeout = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        try:
            return self.vectors.result(timeout)
        except TimeoutError:
            self.fail(self.late())
            return self.vectors.result()

    def put(self, places: Sequence[int], vectors_ND: NDArray[np.float32]) -> None:
        """The vectors of the texts at `places`; called by the worker only."""
        for place, vector_D in zip(places, vectors_ND, strict=True):
            self._rows[place] = vector_D
        self._left -= len(places)
        if self._left == 0:
            self._finish()

    def _finish(self) -> None:
        self.finished = time.monotonic()
        with suppress(InvalidStateError):
            self.vectors.set_result(np.stack([row for row in self._rows if row is not None]))

    def trace(self) -> None:
        """Add the waiting and the encoding of an answered ticket to the current trace."""
        if self.missing and self.started is not None:
            record("queue", self.submitted, self.started, texts=len(self.missing), tokens=self.tokens)
            record("network", self.started, self.finished, texts=len(self.missing), tokens=self.tokens)

    def fail(self, error: OpenbookError) -> None:
        """Close it with `error`, unless it is closed already."""
        with suppress(InvalidStateError):
            self.vectors.set_exception(error)

    def cancel(self) -> None:
        """The caller went away; nothing more is encoded for it."""
        self.fail(DeadlineError("the caller went away before its texts were encoded"))

    def late(self) -> DeadlineError:
        allowed = max(0.0, (self.deadline or self.submitted) - self.submitted)
        return DeadlineError(
            f"the call's deadline ({allowed:.3f} s after it was queued) passed before its texts were encoded"
        )
