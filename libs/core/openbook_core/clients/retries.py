"""Retries with a budget: a service in trouble gets little more work from callers that try again."""

from __future__ import annotations

import random
from threading import Lock

from openbook_core.errors import OpenbookError, OverloadedError, UnavailableError


class Retries:
    """What one client may try again; may be shared by threads and clients.

    Calls that were refused for overload, or that nothing answered, are tried again after the delay that the service
    gave, or after `first_s` seconds, twice as long each time, and up to as much on top by chance. Each call earns
    `share` of a retry and at most `saved` are kept, so over time no more than that share of the calls is repeated.
    """

    def __init__(self, *, attempts: int = 3, share: float = 0.1, saved: float = 10.0, first_s: float = 0.05) -> None:
        """`attempts`: most tries of one call, the first among them."""
        self._attempts, self._share, self._saved, self._first_s = attempts, share, saved, first_s
        self._budget = saved
        self._lock = Lock()

    def earn(self) -> None:
        """A call begins."""
        with self._lock:
            self._budget = min(self._saved, self._budget + self._share)

    def wait_s(self, error: OpenbookError, tried: int, left_s: float) -> float | None:
        """Seconds until the next try of a call that was `tried` times; None where there is none: the error is of
        another kind, attempts or budget are used up, or the call's time would be over by then."""
        if not isinstance(error, OverloadedError | UnavailableError) or tried >= self._attempts:
            return None
        delay_s: float = max(error.retry_after_s or 0.0, self._first_s * 2.0 ** (tried - 1))
        delay_s *= 1 + random.random()
        if delay_s >= left_s:
            return None
        with self._lock:
            if self._budget < 1:
                return None
            self._budget -= 1
        return delay_s
