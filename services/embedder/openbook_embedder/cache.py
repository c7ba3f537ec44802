"""Vectors that were encoded before, in Redis. Everything in it may be lost at any time.

A key is PREFIXvectors:FINGERPRINT:DTYPE:SHA-256 of the token ids (uint32). The ids are those that the encoder reads, with
the role's prompt and the special tokens, so a text and its ids are one entry, and a query finds a passage's vector where
the model's prompts are equal, and only there. A value is a header (mark and version, dimension, CRC-32) and D float32,
all little-endian; anything else counts as damaged and as a miss.

A vector that is found was computed among other batch mates, and maybe on another replica: it is the one that would be
computed now within the tolerance that batch mates have, not to the last bit. So a build neither asks nor fills the cache.

Redis never holds up a call for more than _TIMEOUT_S and _TIMEOUT_PER_TEXT_S, which is about what encoding the text takes:
looking up is another thread's work, whatever it is that hangs, and writing too. After a failure nobody asks for _PAUSE_S,
then one call tries.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import UnavailableError
from openbook_core.redis import RedisUrl, clear_errors, connect
from openbook_core.telemetry import get_logger
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.metrics import EmbedderMetrics

# A healthy Redis answers in a millisecond, but the thread that reads it may wait for a core.
_TIMEOUT_S = 0.1
_TIMEOUT_PER_TEXT_S = 0.0005
_PAUSE_S = 5.0
# Texts whose vectors wait to be written; more are dropped.
_MAX_UNWRITTEN = 4096
_READERS = 4
_HEADER = struct.Struct("<4sII")
_MARK = b"OBV\x01"

_log = get_logger(__name__)


class VectorCache:
    """The cache of one encoder in the Redis at `url` (see `openbook_core.redis`); entries live `ttl_s` seconds.

    Raises ArgumentError (field "cache") for a URL, password or database number that is wrong. Where Redis does not
    answer, that is logged, and the cache begins as after any failure.
    """

    def __init__(
        self, url: str, *, fingerprint: str, dtype: str, dimension: int, ttl_s: float, metrics: EmbedderMetrics
    ) -> None:
        self._url = RedisUrl.parse(url, setting="cache")
        self._client = connect(self._url, timeout_s=_TIMEOUT_S, extra="openbook-embedder[cache]", text=False)
        self._prefix = f"{self._url.prefix}vectors:{fingerprint}:{dtype}:".encode()
        self._dimension, self._ttl_ms, self._metrics = dimension, max(1, round(1000 * ttl_s)), metrics
        self._reads, self._writes = _Breaker(f"reading {self._url.place}"), _Breaker(f"writing to {self._url.place}")
        self._readers = ThreadPoolExecutor(_READERS, "embedder-cache-read")
        self._writer = ThreadPoolExecutor(1, "embedder-cache-write")
        self._unwritten = 0
        self._lock = threading.Lock()
        try:
            with clear_errors(self._url):
                self._client.ping()
        except UnavailableError as error:
            self._reads.failed(error)

    def look_up(self, ids: Sequence[Sequence[int]], deadline: float | None) -> list[NDArray[np.float32] | None]:
        """The vector [d] of each text, None where it is not known; never raises for what Redis does.

        `deadline` in seconds of time.monotonic().
        """
        if not self._reads.allows():
            return self.bypass(ids)
        keys = [self._key(row) for row in ids]
        limit = patience = _TIMEOUT_S + len(ids) * _TIMEOUT_PER_TEXT_S
        if deadline is not None:
            patience = min(limit, max(0.0, deadline - time.monotonic()))
        reading = self._readers.submit(self._client.mget, keys)
        try:
            values = reading.result(patience)
            if len(values) != len(keys):
                raise ValueError(f"{len(values)} answers to {len(keys)} keys")
        except Exception as error:  # noqa: BLE001  a cache that fails is no reason to fail
            reading.cancel()
            # Redis is not to blame for a caller's deadline.
            if patience == limit or not isinstance(error, TimeoutError):
                self._reads.failed(error)
            return self._count(ids, "error")
        self._reads.worked()
        found = [self._decode(value) for value in values]
        misses = sum(each is None for each in found)
        self._metrics.cache_texts.labels("miss").inc(misses)
        self._metrics.cache_texts.labels("hit").inc(len(found) - misses)
        return found

    def bypass(self, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float32] | None]:
        """Count texts that are encoded without a look into the cache."""
        return self._count(ids, "bypassed")

    def keep(self, ids: Sequence[Sequence[int]], vectors_ND: NDArray[np.float32]) -> None:
        """Have another thread write the texts' vectors; returns at once."""
        with self._lock:
            full = self._unwritten + len(ids) > _MAX_UNWRITTEN
            if not full and self._writes.allows():
                self._unwritten += len(ids)
                self._writer.submit(self._write, ids, vectors_ND)
                return
        self._metrics.cache_writes.labels("dropped").inc(len(ids))

    def close(self) -> None:
        """Drop what is not written, and let Redis go."""
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        self._client.close()

    def _write(self, ids: Sequence[Sequence[int]], vectors_ND: NDArray[np.float32]) -> None:
        try:
            pipeline = self._client.pipeline(transaction=False)
            for row, vector_D in zip(ids, vectors_ND, strict=True):
                pipeline.set(self._key(row), _encode(vector_D), px=self._ttl_ms)
            pipeline.execute()
        except Exception as error:  # noqa: BLE001  a cache that fails is no reason to fail
            self._writes.failed(error)
            outcome = "error"
        else:
            self._writes.worked()
            outcome = "stored"
        self._metrics.cache_writes.labels(outcome).inc(len(ids))
        with self._lock:
            self._unwritten -= len(ids)

    def _key(self, ids: Sequence[int]) -> bytes:
        return self._prefix + hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest().encode()

    def _decode(self, value: bytes | str | None) -> NDArray[np.float32] | None:
        if value is None:
            return None
        if isinstance(value, bytes) and len(value) == _HEADER.size + 4 * self._dimension:
            checksum = zlib.crc32(memoryview(value)[_HEADER.size :])
            if _HEADER.unpack_from(value) == (_MARK, self._dimension, checksum):
                return np.frombuffer(value, "<f4", offset=_HEADER.size)
        self._metrics.cache_damaged.inc()
        return None

    def _count(self, ids: Sequence[Sequence[int]], outcome: str) -> list[NDArray[np.float32] | None]:
        self._metrics.cache_texts.labels(outcome).inc(len(ids))
        return [None] * len(ids)


def open_cache(config: EmbedderConfig, engine: EncoderEngine, metrics: EmbedderMetrics) -> VectorCache | None:
    """The cache that the settings name, of this encoder; raises as `VectorCache`."""
    if config.cache is None:
        return None
    return VectorCache(
        config.cache,
        fingerprint=engine.fingerprint.digest,
        dtype=engine.dtype,
        dimension=engine.dimension,
        ttl_s=config.cache_ttl_s,
        metrics=metrics,
    )


def _encode(vector_D: NDArray[np.float32]) -> bytes:
    data = vector_D.astype("<f4").tobytes()
    return _HEADER.pack(_MARK, len(vector_D), zlib.crc32(data)) + data


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
