"""The one rule of admission: how much may wait, and when a caller that was refused may come back.

All of a call is let in or none of it. The delay follows from what waits and from the rate at which it goes, which is
measured; it is no promise, as others may come first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from openbook_core.errors import OverloadedError

_SHORTEST_DELAY_S = 0.05
_WEIGHT = 0.2


class Admission:
    """Counts in `unit` ("tokens", "queries"). It has no lock and no count of its own: the queue's owner has both.

    `assumed_per_s`: the rate before the first was measured.
    """

    def __init__(self, unit: str, most: int, assumed_per_s: float) -> None:
        self.unit, self.most = unit, most
        self.per_s = assumed_per_s

    def has_room(self, waiting: int, more: int) -> bool:
        return waiting + more <= self.most

    def delay(self, waiting: int, more: int, besides: int = 0) -> float:
        """Seconds until `more` fit where `waiting` wait. `besides`: what waits in another queue that gets half the work."""
        excess = max(0, waiting + more - self.most)
        return max(_SHORTEST_DELAY_S, (excess + min(excess, besides)) / self.per_s)

    def refusal(self, waiting: int, more: int, besides: int = 0) -> OverloadedError:
        """The error for a call that does not fit."""
        delay = self.delay(waiting, more, besides)
        return OverloadedError(
            f"{waiting} {self.unit} wait and {more} more do not fit into the queue of {self.most}; come back in "
            f"{delay:.2f} s",
            retry_after_s=delay,
        )

    def measured(self, done: int, seconds: float) -> None:
        """`done` units took `seconds`; the rate is a running average of such."""
        self.per_s += _WEIGHT * (done / max(1e-6, seconds) - self.per_s)


class Gate:
    """What is under way by one admission rule, for work that has no queue of its own; safe to use from several threads."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._lock = Lock()
        self._under_way = 0

    @contextmanager
    def admit(self, units: int) -> Iterator[None]:
        """Count `units` meanwhile. Raises OverloadedError where they do not fit beside what is under way."""
        with self._lock:
            if self._under_way and not self._admission.has_room(self._under_way, units):
                raise self._admission.refusal(self._under_way, units)
            self._under_way += units
            together = self._under_way
        begun = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= units
                self._admission.measured(together, time.monotonic() - begun)
