"""What a request may hold; every error names the field, what was given and what is right.

Axes: Q queries, D dimension, K neighbours, N ids.
"""

from __future__ import annotations

import math
import re
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_core.rpc.channel import MAX_MESSAGE_BYTES
from openbook_core.vectors import check_vectors, decode_vectors
from openbook_database.registry.base import check_database_name
from openbook_proto.v1 import retriever_pb2 as pb

MAX_K = 1000
MAX_QUERIES = 16_384
MAX_RESULTS = 1 << 20
_SNAPSHOT = re.compile(r"[0-9a-f]{64}")
Reply = TypeVar("Reply", pb.SearchReply, pb.SearchTextReply, pb.GetChunksReply)


def check_names(database: str, snapshot: str, *, snapshot_required: bool = False) -> None:
    """A database's name, and a snapshot's whole id (or none, unless it is required)."""
    check_database_name(database)
    if not snapshot and snapshot_required:
        raise ArgumentError("snapshot: is required here: an id means nothing without its snapshot", field="snapshot")
    if snapshot and not _SNAPSHOT.fullmatch(snapshot):
        raise ArgumentError(
            f"snapshot: an id has 64 hexadecimal digits in lower case, given {snapshot!r}", field="snapshot"
        )


def check_search(request: pb.SearchRequest, queries: int) -> None:
    """All of a search but its vectors; `queries` is their number."""
    check_names(request.database, request.snapshot)
    if not 1 <= request.k <= MAX_K:
        raise ArgumentError(f"k: must be from 1 to {MAX_K}, given {request.k}", field="k")
    if not 1 <= queries <= MAX_QUERIES:
        raise ArgumentError(f"queries: give 1 to {MAX_QUERIES} of them, given {queries}", field="queries")
    if queries * request.k > MAX_RESULTS:
        raise ArgumentError(
            f"k: {queries} queries of {request.k} neighbours are more than {MAX_RESULTS} results: send fewer queries",
            field="k",
        )
    if request.exclusions and len(request.exclusions) != queries:
        raise ArgumentError(
            f"exclusions: give none or one for each of {queries} queries, given {len(request.exclusions)}",
            field="exclusions",
        )
    if request.HasField("min_score") and not math.isfinite(request.min_score):
        raise ArgumentError(f"min_score: must be finite, given {request.min_score}", field="min_score")


def check_shape(request: pb.SearchRequest, dimension: int) -> None:
    """Type, size and dimension of the queries; their values are for the shard to judge, which alone decodes them."""
    check_vectors(request.queries, "queries", dimension=dimension)


def read_queries(request: pb.SearchRequest, dimension: int) -> NDArray[np.float32]:
    """The queries [q, d]; ArgumentError for a wrong type, size or dimension and for values that are not finite."""
    return decode_vectors(request.queries, "queries", dimension=dimension)


def read_ids(data: bytes, chunks: int) -> NDArray[np.int64]:
    """Chunk ids [n] of a snapshot with `chunks` chunks."""
    if not data or len(data) % 8:
        raise ArgumentError(f"ids: 8 bytes for each id and at least one, given {len(data)} bytes", field="ids")
    if len(data) > 8 * MAX_RESULTS:
        raise ArgumentError(f"ids: at most {MAX_RESULTS}, given {len(data) // 8}", field="ids")
    ids = np.frombuffer(data, dtype="<i8").astype(np.int64)
    wrong = ids[(ids < 0) | (ids >= chunks)]
    if len(wrong):
        raise ArgumentError(f"ids: the snapshot holds chunks 0 to {chunks - 1}, given {wrong[0]}", field="ids")
    return ids


def sendable(reply: Reply, field: str) -> Reply:
    """The reply; ArgumentError naming what to give less of, where it is larger than a message may be."""
    size = reply.ByteSize()
    if size > MAX_MESSAGE_BYTES:
        raise ArgumentError(
            f"{field}: the reply would have {size / 1e6:.1f} MB, a message has at most {MAX_MESSAGE_BYTES / 1e6:.1f}: ask for "
            f"fewer {field} at once, a smaller k, or fewer fields",
            field=field,
        )
    return reply


def refuse_shard(request: pb.SearchRequest | pb.GetChunksRequest) -> None:
    """A router's clients never name a shard."""
    if request.HasField("shard"):
        raise ArgumentError("shard: is set by a router only; leave it out", field="shard")
    if isinstance(request, pb.SearchRequest) and request.shards:
        raise ArgumentError("shards: are set by a router only; leave them out", field="shards")
