"""Values that can be had again, kept in Redis. Everything there may be lost at any time.

Redis never holds up a call for more than _TIMEOUT_S and a little for each key: looking up is another thread's work, whatever
it is that hangs, and writing too. After a failure nobody asks for _PAUSE_S, then one call tries.
"""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from openbook_core.errors import UnavailableError
from openbook_core.redis import RedisUrl, clear_errors, connect
from openbook_core.telemetry import get_logger

# A healthy Redis answers in a millisecond, but the thread that reads it may wait for a core.
_TIMEOUT_S = 0.1
_PAUSE_S = 5.0
# Values that wait to be written; more are dropped.
_MAX_UNWRITTEN = 4096
_READERS = 4
_HEADER = struct.Struct("<4sII")

_log = get_logger(__name__)


class RedisCache:
    """The keys KIND... (behind the URL's prefix) in the Redis at `url` (see `openbook_core.redis`); entries live `ttl_s`
    seconds. A look-up takes at most _TIMEOUT_S and `key_s` for each key. `extra`: what to install where the package redis
    is missing.

    `written` is told of so many entries: "stored", "error" (Redis failed) or "dropped" (too many wait, or Redis fails).
    Raises ArgumentError (field "cache") for a URL, password or database number that is wrong. Where Redis does not
    answer, that is logged, and the cache begins as after any failure.
    """

    def __init__(
        self, url: str, kind: str, *, ttl_s: float, key_s: float, extra: str, written: Callable[[str, int], None]
    ) -> None:
        self._url = RedisUrl.parse(url, setting="cache")
        self._client = connect(self._url, timeout_s=_TIMEOUT_S, extra=extra, text=False)
        self._prefix = f"{self._url.prefix}{kind}".encode()
        self._key_s = key_s
        self._ttl_ms, self._written = max(1, round(1000 * ttl_s)), written
        self._reads, self._writes = _Breaker(f"reading {self._url.place}"), _Breaker(f"writing to {self._url.place}")
        self._readers = ThreadPoolExecutor(_READERS, "cache-read")
        self._writer = ThreadPoolExecutor(1, "cache-write")
        self._unwritten = 0
        self._lock = threading.Lock()
        try:
            with clear_errors(self._url):
                self._client.ping()
        except UnavailableError as error:
            self._reads.failed(error)

    def allows(self) -> bool:
        """Whether `get` is to be called now: not for a while after a failure, and then once."""
        return self._reads.allows()

    def get(self, keys: Sequence[bytes], patience_s: float | None = None) -> list[bytes | str | None] | None:
        """The value of each key, None where there is none; None alone where Redis fails. Never raises.

        `patience_s`: the caller's, where that may be less than Redis is given.
        """
        limit = _TIMEOUT_S + len(keys) * self._key_s
        patience = limit if patience_s is None else min(limit, max(0.0, patience_s))
        reading = self._readers.submit(self._client.mget, [self._prefix + key for key in keys])
        try:
            values: list[bytes | str | None] = reading.result(patience)
            if len(values) != len(keys):
                raise ValueError(f"{len(values)} answers to {len(keys)} keys")
        except Exception as error:  # noqa: BLE001  a cache that fails is no reason to fail
            reading.cancel()
            # Redis is not to blame for a caller's hurry.
            if patience == limit or not isinstance(error, TimeoutError):
                self._reads.failed(error)
            return None
        self._reads.worked()
        return values

    def put(self, entries: Callable[[], Iterable[tuple[bytes, bytes]]], count: int) -> None:
        """Have another thread make and write `count` entries; returns at once."""
        with self._lock:
            full = self._unwritten + count > _MAX_UNWRITTEN
            if not full and self._writes.allows():
                self._unwritten += count
                self._writer.submit(self._write, entries, count)
                return
        self._written("dropped", count)

    def close(self) -> None:
        """Drop what is not written, and let Redis go."""
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        self._client.close()

    def _write(self, entries: Callable[[], Iterable[tuple[bytes, bytes]]], count: int) -> None:
        try:
            pipeline = self._client.pipeline(transaction=False)
            for key, value in entries():
                pipeline.set(self._prefix + key, value, px=self._ttl_ms)
            pipeline.execute()
        except Exception as error:  # noqa: BLE001  a cache that fails is no reason to fail
            self._writes.failed(error)
            outcome = "error"
        else:
            self._writes.worked()
            outcome = "stored"
        self._written(outcome, count)
        with self._lock:
            self._unwritten -= count


def seal(mark: bytes, number: int, data: bytes) -> bytes:
    """A value: a header (4 bytes of mark and version, `number`, CRC-32 of the data), then the data; little-endian."""
    return _HEADER.pack(mark, number, zlib.crc32(data)) + data


def unseal(mark: bytes, number: int, size: int, value: bytes | str) -> memoryview | None:
    """The `size` bytes of data; None where `value` is not what `seal` made of this mark and number."""
    if isinstance(value, bytes) and len(value) == _HEADER.size + size:
        data = memoryview(value)[_HEADER.size :]
        if _HEADER.unpack_from(value) == (mark, number, zlib.crc32(data)):
            return data
    return None


class _Breaker:
    """Whether to ask: not for _PAUSE_S after a failure, then one try decides. Logs where an outage begins and ends."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._failing = False
        self._tried = 0.0

    def allows(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if self._failing and now < self._tried + _PAUSE_S:
                return False
            self._tried = now
            return True

    def worked(self) -> None:
        with self._lock:
            if self._failing:
                _log.info(f"{self._what} works again")
            self._failing = False

    def failed(self, error: BaseException) -> None:
        with self._lock:
            self._tried = time.monotonic()
            if not self._failing:
                _log.warning(
                    f"{self._what} fails, one call in {_PAUSE_S:g} s tries on: {type(error).__name__}: {error}"
                )
            self._failing = True
