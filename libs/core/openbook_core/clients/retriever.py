"""Client of a router or a shard."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.clients.base import Client, require_count, require_text
from openbook_core.clients.hold import Hold, holder_name
from openbook_core.clients.retries import Retries
from openbook_core.errors import ArgumentError, OpenbookError
from openbook_core.security.dial import Dial
from openbook_core.vectors import dtype_of, encode_vectors
from openbook_proto.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc


@dataclass(frozen=True)
class ChunkTable:
    """n chunks with m = `chunk_length`; fields that were not asked for are None or empty.

    `tokens` uint32 [n, 2m] (chunk, then continuation, padded with 0), `lengths` uint16 [n, 2]; where tokens were asked
    for and nothing was found, n is 0.
    """

    chunk_length: int
    tokens: NDArray[np.uint32] | None
    lengths: NDArray[np.uint16] | None
    texts: list[str]
    continuation_texts: list[str]
    documents: list[retriever_pb2.Document]

    @classmethod
    def from_proto(cls, chunks: retriever_pb2.Chunks, *, tokens_asked: bool = False) -> ChunkTable:
        tokens = lengths = None
        if not chunks.lengths and tokens_asked:
            tokens, lengths = np.zeros((0, 2 * chunks.chunk_length), np.uint32), np.zeros((0, 2), np.uint16)
        elif chunks.lengths:
            lengths = np.frombuffer(chunks.lengths, dtype="<u2").reshape(-1, 2)
            raw = np.frombuffer(chunks.tokens, dtype=dtype_of(chunks.token_type))
            tokens = raw.reshape(-1, 2 * chunks.chunk_length).astype(np.uint32)
        return cls(
            chunk_length=chunks.chunk_length,
            tokens=tokens,
            lengths=lengths,
            texts=list(chunks.texts),
            continuation_texts=list(chunks.continuation_texts),
            documents=[chunks.documents[i] for i in chunks.document_index],
        )


@dataclass(frozen=True)
class SearchResult:
    """Neighbours of Q queries: `ids` int64 [Q, k] (-1 = missing), `scores` float32 [Q, k], all from `snapshot`.

    `row_of` int64 [Q, k] is the row of each hit in `chunks`, -1 where it is missing. `coverage`: of a partial answer, what
    it is from; None where all shards answered.
    """

    snapshot: str
    epoch: int
    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    chunks: ChunkTable
    row_of: NDArray[np.int64]
    unknown_exclusions: int
    missing_shards: list[int]
    restarts: int
    timings: common_pb2.Timings
    coverage: retriever_pb2.Coverage | None = None

    @classmethod
    def from_proto(cls, reply: retriever_pb2.SearchReply, *, tokens_asked: bool = False) -> SearchResult:
        ids = np.frombuffer(reply.ids, dtype="<i8").reshape(reply.queries, reply.k)
        found = ids.ravel() >= 0
        return cls(
            snapshot=reply.snapshot,
            epoch=reply.epoch,
            ids=ids,
            scores=np.frombuffer(reply.scores, dtype="<f4").reshape(reply.queries, reply.k),
            chunks=ChunkTable.from_proto(reply.chunks, tokens_asked=tokens_asked),
            row_of=np.where(found, np.cumsum(found) - 1, -1).reshape(ids.shape),
            unknown_exclusions=reply.unknown_exclusions,
            missing_shards=list(reply.missing_shards),
            coverage=reply.coverage if reply.HasField("coverage") else None,
            restarts=reply.restarts,
            timings=reply.timings,
        )


class Epochs:
    """The highest epoch of each database that a reply carried; may be shared by threads.

    No older one is asked for, so that calls without a pinned snapshot never go back, whichever replica answers.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()

    def highest(self, database: str) -> int:
        """0 before the first reply."""
        with self._lock:
            return self._seen.get(database, 0)

    def saw(self, database: str, epoch: int) -> None:
        with self._lock:
            self._seen[database] = max(epoch, self._seen.get(database, 0))

    def ask_for_seen(self, request: retriever_pb2.SearchRequest) -> None:
        if not request.snapshot:
            request.min_epoch = max(request.min_epoch, self.highest(request.database))

    def result(self, request: retriever_pb2.SearchRequest, reply: retriever_pb2.SearchReply) -> SearchResult:
        """The reply, whose epoch is remembered."""
        self.saw(request.database, reply.epoch)
        return SearchResult.from_proto(reply, tokens_asked=request.fields.tokens)


class RetrieverClient(Client):
    """Calls one router or shard at HOST:PORT. Never retries unless it is given `retries`. May be shared by threads."""

    def __init__(self, address: str, dial: Dial | None = None, retries: Retries | None = None) -> None:
        super().__init__(address, dial)
        self._stub = retriever_pb2_grpc.RetrieverStub(self._channel)
        self._retries = retries or Retries(attempts=1)
        self._epochs = Epochs()
        self._holds: list[Hold] = []

    def search(
        self, database: str, queries: NDArray[Any], k: int, *, timeout_s: float = 30.0, **options: Any
    ) -> SearchResult:
        """Neighbours of `queries` [Q, d] float32 or float16; for the options see `search_request`."""
        request = search_request(database, k, queries=queries, **options)
        self._epochs.ask_for_seen(request)
        return self._epochs.result(request, self._call(self._stub.Search, request, timeout_s))

    def search_text(
        self, database: str, texts: Sequence[str], k: int, *, timeout_s: float = 30.0, **options: Any
    ) -> SearchResult:
        """Neighbours of texts, embedded by the router's embedder; for the options see `search_request`."""
        whole = [require_text(f"texts[{place}]", text) for place, text in enumerate(texts)]
        request = retriever_pb2.SearchTextRequest(texts=whole, search=search_request(database, k, **options))
        self._epochs.ask_for_seen(request.search)
        return self._epochs.result(request.search, self._call(self._stub.SearchText, request, timeout_s).result)

    def get_chunks(
        self, database: str, snapshot: str, ids: NDArray[np.int64], *, timeout_s: float = 30.0, **options: Any
    ) -> ChunkTable:
        """Chunks by id; for the options see `chunks_request`."""
        request = chunks_request(database, snapshot, ids, **options)
        reply = self._call(self._stub.GetChunks, request, timeout_s)
        return ChunkTable.from_proto(reply.chunks, tokens_asked=request.fields.tokens)

    def describe(self, database: str, snapshot: str = "", *, timeout_s: float = 10.0) -> retriever_pb2.DescribeReply:
        request = retriever_pb2.DescribeRequest(
            database=require_text("database", database), snapshot=require_text("snapshot", snapshot)
        )
        reply: retriever_pb2.DescribeReply = self._call(self._stub.Describe, request, timeout_s)
        self._epochs.saw(database, reply.epoch)
        return reply

    def hold(self, database: str, snapshot: str = "", *, ttl_s: float = 30.0, timeout_s: float = 10.0) -> Hold:
        """Keep `snapshot` (empty: the live one) loaded, whatever is swapped, until the hold or this client is closed.

        A process that dies holds it for `ttl_s` seconds more. Raises PreconditionError where it is not served any more.
        """
        request = retriever_pb2.PinRequest(
            database=require_text("database", database),
            snapshot=require_text("snapshot", snapshot),
            holder=holder_name(),
            ttl_seconds=ttl_s,
        )
        reply: retriever_pb2.PinReply = self._call(self._stub.Pin, request, timeout_s)
        self._epochs.saw(database, reply.epoch)
        request.snapshot = reply.snapshot
        back = retriever_pb2.UnpinRequest(database=database, snapshot=reply.snapshot, holder=request.holder)

        def renew() -> None:
            self._call(self._stub.Pin, request, timeout_s)

        def release() -> None:
            self._call(self._stub.Unpin, back, timeout_s)

        held = Hold(reply.snapshot, ttl_s, renew, release)
        self._holds = [*(each for each in self._holds if not each.closed), held]
        return held

    def close(self) -> None:
        for held in self._holds:
            held.close()
        super().close()

    def highest_epoch(self, database: str) -> int:
        """The highest epoch of `database` that a reply carried, 0 before the first."""
        return self._epochs.highest(database)

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        self._retries.earn()
        tried = 0
        while True:
            try:
                return super()._call(method, request, max(0.0, deadline - time.monotonic()))
            except OpenbookError as error:
                tried += 1
                wait_s = self._retries.wait_s(error, tried, deadline - time.monotonic())
                if wait_s is None:
                    raise
            time.sleep(wait_s)


def chunks_request(
    database: str,
    snapshot: str,
    ids: NDArray[np.int64],
    *,
    tokens: bool = False,
    text: bool = False,
    documents: bool = False,
    shard: int | None = None,
) -> retriever_pb2.GetChunksRequest:
    """Raises ArgumentError naming the field for what the message cannot hold."""
    return retriever_pb2.GetChunksRequest(
        database=require_text("database", database),
        snapshot=require_text("snapshot", snapshot),
        ids=np.asarray(ids, dtype="<i8").tobytes(),
        fields=retriever_pb2.Fields(tokens=tokens, text=text, document=documents),
        shard=None if shard is None else require_count("shard", shard, bits=32),
    )


def search_request(
    database: str,
    k: int,
    *,
    queries: NDArray[Any] | None = None,
    snapshot: str = "",
    min_epoch: int = 0,
    exclude: Sequence[Sequence[str]] | None = None,
    filters: Sequence[retriever_pb2.Filter] = (),
    min_score: float | None = None,
    tokens: bool = False,
    text: bool = False,
    documents: bool = False,
    allow_partial: bool = False,
    shard: int | None = None,
) -> retriever_pb2.SearchRequest:
    """`exclude` holds, for each query, external ids of documents that must not come back; `filters` one filter for all
    queries or one for each (`clients.filters.where`).

    Raises ArgumentError naming the field for what the message cannot hold; the rest is for the service to judge.
    """
    exclusions = []
    for place, ids in enumerate(exclude or ()):
        if isinstance(ids, str):
            raise ArgumentError(f"exclude[{place}]: must be a list of document ids, given {ids!r}", field="exclude")
        exclusions.append([require_text(f"exclude[{place}]", document) for document in ids])
    return retriever_pb2.SearchRequest(
        database=require_text("database", database),
        snapshot=require_text("snapshot", snapshot),
        min_epoch=require_count("min_epoch", min_epoch, bits=64),
        queries=None if queries is None else _encode_queries(queries),
        k=require_count("k", k, bits=32, least=1),
        exclusions=[retriever_pb2.Exclusion(document_ids=ids) for ids in exclusions],
        filters=filters,
        min_score=min_score,
        fields=retriever_pb2.Fields(tokens=tokens, text=text, document=documents),
        allow_partial=allow_partial,
        shard=None if shard is None else require_count("shard", shard, bits=32),
    )


def _encode_queries(queries_QD: NDArray[Any]) -> common_pb2.Vectors:
    if queries_QD.ndim != 2 or queries_QD.dtype.name not in ("float32", "float16"):
        raise ArgumentError(
            f"queries: must be a float32 or float16 matrix [queries, dimension], given {queries_QD.dtype} of shape "
            f"{list(queries_QD.shape)}",
            field="queries",
        )
    return encode_vectors(queries_QD)
