"""What a router's own requests say of a new snapshot: a share of them tries it before the swap, all are watched after it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from openbook_core.errors import MismatchError, OpenbookError
from openbook_database.registry.records import SwapTerms

MIN_REQUESTS = 20
"""Fewer requests break no limit on a share."""
MIN_FOR_P99 = 100
_LATENCIES = 2000
# The caller's mistakes, what a pin or the snapshot's absence asks for, and too many requests: they say nothing of the
# snapshot's answers.
_NOT_COUNTED = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED")
_SHORTEST_DEADLINE_S = 0.1


@dataclass
class _Seen:
    requests: int = 0
    failed: int = 0
    queries: int = 0
    empty: int = 0
    ms: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))


class Traffic:
    """Outcomes of requests by (database, snapshot) since it was last forgotten; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._seen: dict[tuple[str, str], _Seen] = {}

    def answered(self, database: str, snapshot: str, seconds: float, queries: int, empty: int) -> None:
        """`empty`: how many of the queries have no neighbour at all."""
        with self._lock:
            seen = self._seen.setdefault((database, snapshot), _Seen())
            seen.requests += 1
            seen.queries += queries
            seen.empty += empty
            seen.ms.append(seconds * 1e3)

    def failed(self, database: str, snapshot: str, error: OpenbookError, seconds: float) -> None:
        """Not counted: what is not the snapshot's, and a caller's deadline that is too short to tell."""
        hasty = error.grpc_code == "DEADLINE_EXCEEDED" and seconds < _SHORTEST_DEADLINE_S
        if error.grpc_code in _NOT_COUNTED or is_another_parts(error) or hasty:
            return
        with self._lock:
            seen = self._seen.setdefault((database, snapshot), _Seen())
            seen.requests += 1
            seen.failed += 1

    def forget(self, database: str) -> None:
        """Count from 0, whatever the snapshot."""
        with self._lock:
            self._seen = {key: seen for key, seen in self._seen.items() if key[0] != database}

    def breach(self, database: str, snapshot: str, terms: SwapTerms) -> str:
        """Which limit the snapshot's answers break, in words; empty where they break none or there are too few."""
        with self._lock:
            seen = self._seen.get((database, snapshot))
            if seen is None or seen.requests < MIN_REQUESTS:
                return ""
            requests, failed, queries, empty, ms = seen.requests, seen.failed, seen.queries, seen.empty, list(seen.ms)
        if terms.max_error_share is not None and failed > terms.max_error_share * requests:
            return f"{failed} of {requests} requests failed, a share above {terms.max_error_share:g}"
        if terms.max_empty_share is not None and empty > terms.max_empty_share * queries:
            return f"{empty} of {queries} queries found nothing, a share above {terms.max_empty_share:g}"
        if terms.max_p99_ms is not None and len(ms) >= MIN_FOR_P99:
            p99 = float(np.percentile(ms, 99))
            if p99 > terms.max_p99_ms:
                return f"the 99th percentile of {len(ms)} requests is {p99:.1f} ms, above {terms.max_p99_ms:g}"
        return ""


@contextmanager
def errors_of(part: str) -> Iterator[None]:
    """Errors raised inside are of this `part` and say so in their metadata: no snapshot is to blame. But a mismatch is
    between the part and one snapshot."""
    try:
        yield
    except MismatchError:
        raise
    except OpenbookError as error:
        error.metadata["part"] = part
        raise


def is_another_parts(error: OpenbookError) -> bool:
    """Whether a part failed that another snapshot would need as well (`errors_of`)."""
    return "part" in error.metadata


def in_canary(request_id: str, snapshot: str, percent: float) -> bool:
    """Whether a request is among the `percent` that try `snapshot`: a function of both names alone."""
    digest = hashlib.blake2b(f"{snapshot} {request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < percent / 100 * 2.0**64
