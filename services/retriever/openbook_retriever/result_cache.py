"""Answers that were found before, in Redis (`openbook_core.cache`): ids and scores, never chunks.

A key is PREFIXresults:SNAPSHOT:SHA-256 of what a query's answer follows from: k, least score, the vector as it was sent,
the ids of its excluded documents and its filter. A value is the mark, k, k ids (int64) and k scores (float32), all
little-endian; anything else counts as damaged and as a miss. An answer depends neither on batch mates nor on shards or
order (`openbook_database.scoring`), so queries are looked up one by one, and what is found is, to the bit, what would be
found now.

Not kept are answers of which a shard is missing, of requests whose exclusions name unknown documents (the reply counts
them over all queries), and of queries that found nothing.

Axes: Q queries, K neighbours.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_core.cache import RedisCache, seal, unseal
from openbook_core.errors import ArgumentError, UnavailableError
from openbook_database.scoring import MISSING
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.chunks import gather_chunks
from openbook_retriever.metrics import CACHE_DAMAGED, CACHE_QUERIES, CACHE_WRITES

# Another one where equal requests may find something else than the release before: it is the only thing not in the key.
_MARK = b"OBR\x01"
_ENTRY_BYTES = 12
# About what a query of a large batch takes.
_KEY_S = 0.00005
Search = Callable[[pb.SearchRequest, float], pb.SearchReply]
Fetch = Callable[[NDArray[np.int64], float], pb.Chunks]


class ResultCache:
    """The cache in the Redis at `url`; raises as `RedisCache`. Safe to use from several threads."""

    def __init__(self, url: str, *, ttl_s: float) -> None:
        self._redis = RedisCache(
            url,
            "results:",
            ttl_s=ttl_s,
            key_s=_KEY_S,
            extra="openbook-retriever[redis]",
            written=lambda outcome, count: CACHE_WRITES.labels(outcome).inc(count),
        )

    def search(
        self, request: pb.SearchRequest, snapshot: str, timeout_s: float, search: Search, fetch: Fetch
    ) -> pb.SearchReply:
        """What `search(request, timeout_s)` would give; asked for what is not known alone, `fetch` for the known chunks.

        The caller has checked the request. Raises what `search` and `fetch` raise, of `fetch` no UnavailableError.
        """
        queries, deadline = request.queries.rows, time.monotonic() + timeout_s
        if len(request.filters) not in (0, 1, queries) or not self._redis.allows():
            CACHE_QUERIES.labels("bypassed").inc(queries)
            return search(request, timeout_s)
        keys = list(_keys(request, snapshot))
        values = self._redis.get(keys, timeout_s / 2)
        if values is None:
            CACHE_QUERIES.labels("error").inc(queries)
            return search(request, _left(deadline))
        entries = [_open(value, request.k) for value in values]
        known_Q = np.asarray([entry is not None for entry in entries])
        hits = int(np.count_nonzero(known_Q))
        CACHE_QUERIES.labels("hit").inc(hits)
        CACHE_QUERIES.labels("miss").inc(queries - hits)
        if not hits:
            reply = search(request, _left(deadline))
            self._keep(keys, reply)
            return reply
        return self._together(request, keys, entries, known_Q, deadline, search, fetch)

    def close(self) -> None:
        self._redis.close()

    def _together(
        self,
        request: pb.SearchRequest,
        keys: Sequence[bytes],
        entries: Sequence[memoryview | None],
        known_Q: NDArray[np.bool_],
        deadline: float,
        search: Search,
        fetch: Fetch,
    ) -> pb.SearchReply:
        """The known answers and those of the other queries; all are asked for where a part cannot be had whole."""
        k, unknown = request.k, np.flatnonzero(~known_Q)
        ids_QK = np.empty((len(keys), k), "<i8")
        scores_QK = np.empty((len(keys), k), "<f4")
        ids_QK[known_Q] = [np.frombuffer(entry, "<i8", k) for entry in entries if entry is not None]
        scores_QK[known_Q] = [np.frombuffer(entry, "<f4", k, 8 * k) for entry in entries if entry is not None]
        reply = pb.SearchReply(queries=len(keys), k=k)
        try:
            if len(unknown):
                reply = search(_some(request, unknown), _left(deadline))
                if reply.missing_shards:
                    return search(request, _left(deadline))
                self._keep([keys[place] for place in unknown.tolist()], reply)
                ids_QK[unknown], scores_QK[unknown] = _found(reply)
            begun = time.monotonic()
            known_ids = ids_QK[known_Q]
            chunks = fetch(known_ids[known_ids != MISSING].astype(np.int64), _left(deadline))
        except (ArgumentError, UnavailableError):
            return search(request, _left(deadline))
        reply.timings.fetch_ms += (time.monotonic() - begun) * 1e3
        parts = [reply.chunks, chunks] if len(unknown) else [chunks]
        reply.queries = len(keys)
        reply.ids, reply.scores = ids_QK.tobytes(), scores_QK.tobytes()
        reply.chunks.CopyFrom(gather_chunks(parts, _rows(ids_QK != MISSING, known_Q), request.fields))
        return reply

    def _keep(self, keys: Sequence[bytes], reply: pb.SearchReply) -> None:
        if reply.missing_shards or reply.unknown_exclusions:
            return
        ids_QK, scores_QK = _found(reply)
        places = np.flatnonzero(ids_QK[:, 0] != MISSING).tolist()

        def entries() -> Iterator[tuple[bytes, bytes]]:
            for place in places:
                yield keys[place], seal(_MARK, reply.k, ids_QK[place].tobytes() + scores_QK[place].tobytes())

        if places:
            self._redis.put(entries, len(places))


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _found(reply: pb.SearchReply) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    shape = reply.queries, reply.k
    return np.frombuffer(reply.ids, "<i8").reshape(shape), np.frombuffer(reply.scores, "<f4").reshape(shape)


def _open(value: bytes | str | None, k: int) -> memoryview | None:
    if value is None:
        return None
    entry = unseal(_MARK, k, _ENTRY_BYTES * k, value)
    if entry is None:
        CACHE_DAMAGED.inc()
    return entry


def _keys(request: pb.SearchRequest, snapshot: str) -> Iterator[bytes]:
    """The key of each query, behind the cache's own prefix."""
    queries = request.queries
    least = struct.pack("<f", request.min_score) if request.HasField("min_score") else b""
    common = hashlib.sha256(struct.pack("<IIII", request.k, queries.type, queries.dimension, len(least)) + least)
    width, scale_width = len(queries.data) // queries.rows, len(queries.scales) // queries.rows
    filters = [each.SerializeToString(deterministic=True) for each in request.filters]
    for place in range(queries.rows):
        digest = common.copy()
        digest.update(queries.data[place * width : (place + 1) * width])
        digest.update(queries.scales[place * scale_width : (place + 1) * scale_width])
        for text in sorted(set(request.exclusions[place].document_ids)) if request.exclusions else ():
            digest.update(struct.pack("<I", len(text.encode())) + text.encode())
        digest.update(b"\xff\xff\xff\xff")  # longer than any id
        if filters:
            digest.update(filters[place if len(filters) > 1 else 0])
        yield f"{snapshot}:{digest.hexdigest()}".encode()


def _some(request: pb.SearchRequest, places: NDArray[np.intp]) -> pb.SearchRequest:
    """The request with only the queries at `places`."""
    some = pb.SearchRequest()
    some.CopyFrom(request)
    some.queries.rows = len(places)
    some.queries.data = _rows_of(request.queries.data, request.queries.rows, places)
    some.queries.scales = _rows_of(request.queries.scales, request.queries.rows, places)
    for field, given in (some.exclusions, request.exclusions), (some.filters, request.filters):
        if len(given) == request.queries.rows > 1:
            del field[:]
            field.extend(given[place] for place in places)
    return some


def _rows_of(data: bytes, rows: int, places: NDArray[np.intp]) -> bytes:
    return np.frombuffer(data, "u1").reshape(rows, -1)[places].tobytes()


def _rows(found_QK: NDArray[np.bool_], known_Q: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each neighbour in order its place among those of the unknown queries and then of the known ones."""
    place_QK = np.empty(found_QK.shape, np.int64)
    first = 0
    for some_Q in (~known_Q, known_Q):
        among_QK = found_QK & some_Q[:, None]
        count = int(np.count_nonzero(among_QK))
        place_QK[among_QK] = np.arange(first, first + count)
        first += count
    return place_QK[found_QK]
