"""Vectors that were encoded before, in Redis (`openbook_core.cache`).

A key is PREFIXvectors:FINGERPRINT:DTYPE:SHA-256 of the token ids (uint32). The ids are those that the encoder reads, with
the role's prompt and the special tokens, so a text and its ids are one entry, and a query finds a passage's vector where
the model's prompts are equal, and only there. A value is the mark, the dimension and D float32, all little-endian; anything
else counts as damaged and as a miss.

A vector that is found was computed among other batch mates, and maybe on another replica: it is the one that would be
computed now within the tolerance that batch mates have, not to the last bit. So a build neither asks nor fills the cache.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_core.cache import RedisCache, seal, unseal
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.metrics import EmbedderMetrics

_MARK = b"OBV\x01"
# About what encoding a short text takes.
_KEY_S = 0.0005


class VectorCache:
    """The cache of one encoder in the Redis at `url`; raises as `RedisCache`. Entries live `ttl_s` seconds."""

    def __init__(
        self, url: str, *, fingerprint: str, dtype: str, dimension: int, ttl_s: float, metrics: EmbedderMetrics
    ) -> None:
        self._dimension, self._metrics = dimension, metrics
        self._redis = RedisCache(
            url,
            f"vectors:{fingerprint}:{dtype}:",
            ttl_s=ttl_s,
            key_s=_KEY_S,
            extra="openbook-embedder[cache]",
            written=lambda outcome, count: metrics.cache_writes.labels(outcome).inc(count),
        )

    def look_up(self, ids: Sequence[Sequence[int]], deadline: float | None) -> list[NDArray[np.float32] | None]:
        """The vector [d] of each text, None where it is not known; never raises for what Redis does.

        `deadline` in seconds of time.monotonic().
        """
        if not self._redis.allows():
            return self.bypass(ids)
        patience_s = None if deadline is None else deadline - time.monotonic()
        values = self._redis.get([_key(row) for row in ids], patience_s)
        if values is None:
            return self._count(ids, "error")
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
        self._redis.put(
            lambda: ((_key(row), _encode(vector_D)) for row, vector_D in zip(ids, vectors_ND, strict=True)), len(ids)
        )

    def close(self) -> None:
        """Drop what is not written, and let Redis go."""
        self._redis.close()

    def _decode(self, value: bytes | str | None) -> NDArray[np.float32] | None:
        if value is None:
            return None
        data = unseal(_MARK, self._dimension, 4 * self._dimension, value)
        if data is None:
            self._metrics.cache_damaged.inc()
            return None
        return np.frombuffer(data, "<f4")

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


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest().encode()


def _encode(vector_D: NDArray[np.float32]) -> bytes:
    return seal(_MARK, len(vector_D), vector_D.astype("<f4").tobytes())
