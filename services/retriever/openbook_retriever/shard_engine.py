"""The work of a shard: answers from exactly the snapshot that the request names, or refuses."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from openbook_core.errors import ArgumentError
from openbook_core.tracing import annotate
from openbook_database.documents import DocumentTable
from openbook_database.exclusions import Exclusions
from openbook_database.manifest import Manifest
from openbook_database.scoring import MISSING, merge
from openbook_database.snapshot import Snapshot
from openbook_proto.v1 import common_pb2
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.batching import SearchBatcher, Ticket
from openbook_retriever.chunks import encode_chunks, encode_found
from openbook_retriever.filters import allowed_documents, read_filters
from openbook_retriever.holdings import Holdings, find_shard
from openbook_retriever.metrics import FETCH_SECONDS, QUEUE_SECONDS, SEARCH_SECONDS
from openbook_retriever.requests import check_names, check_search, read_ids, read_queries


class ShardEngine:
    """Search, GetChunks and Describe over what `holdings` has; safe to use from several threads."""

    def __init__(
        self, holdings: Holdings, batcher: SearchBatcher | None = None, *, snapshot_guard: bool = True
    ) -> None:
        self._holdings = holdings
        self._batcher = batcher or SearchBatcher()
        self._snapshot_guard = snapshot_guard

    def search(
        self,
        request: pb.SearchRequest,
        deadline: float | None = None,
        watch: Callable[[Callable[[], None]], bool] = lambda leave: True,
    ) -> pb.SearchReply:
        """The k nearest chunks of one shard, or of all together of `request.shards`.

        `deadline` in seconds of time.monotonic(). `watch` is given what to call when the caller goes away, and is false
        where it has gone.
        """
        started = time.perf_counter()
        check_search(request, request.queries.rows)
        check_names(request.database, request.snapshot, snapshot_required=True)
        numbers = _asked_shards(request)
        with self._lease(request.database, request.snapshot) as opened:
            shards = [find_shard(opened, number) for number in numbers]
            queries_QD = read_queries(request, opened.manifest.contract.dimension)
            exclude, unknown = _excluded(opened.documents, request)
            min_score = request.min_score if request.HasField("min_score") else None
            filters = read_filters(request.filters, len(queries_QD))
            allowed = allowed_documents(opened.filters, filters)
            tickets = [Ticket(shard, queries_QD, request.k, exclude, min_score, allowed, deadline) for shard in shards]
            parts = self._batcher.search(tickets, watch)
            hits = parts[0] if len(parts) == 1 else merge(parts, request.k)
            searched = time.perf_counter()
            chunks = encode_found(shards, hits.ids_QK[hits.ids_QK != MISSING], request.fields)
            finished = time.perf_counter()
            annotate(database=request.database, snapshot=opened.id, shard=",".join(map(str, numbers)))
            queued_s = max(ticket.queued_s for ticket in tickets)
            QUEUE_SECONDS.observe(queued_s)
            SEARCH_SECONDS.observe(searched - started - queued_s)
            FETCH_SECONDS.observe(finished - searched)
            return pb.SearchReply(
                snapshot=opened.id,
                queries=len(queries_QD),
                k=request.k,
                ids=hits.ids_QK.astype("<i8").tobytes(),
                scores=hits.scores_QK.astype("<f4").tobytes(),
                chunks=chunks,
                unknown_exclusions=unknown,
                timings=common_pb2.Timings(
                    queue_ms=queued_s * 1e3,
                    search_ms=(searched - started - queued_s) * 1e3,
                    fetch_ms=(finished - searched) * 1e3,
                    total_ms=(finished - started) * 1e3,
                ),
            )

    def get_chunks(self, request: pb.GetChunksRequest) -> pb.GetChunksReply:
        """Chunks of one shard by id."""
        started = time.perf_counter()
        check_names(request.database, request.snapshot, snapshot_required=True)
        _require_shard(request.HasField("shard"))
        with self._lease(request.database, request.snapshot) as opened:
            shard = find_shard(opened, request.shard)
            ids = read_ids(request.ids, opened.manifest.chunks)
            chunks = encode_chunks(shard, ids, request.fields)
            elapsed_s = time.perf_counter() - started
            FETCH_SECONDS.observe(elapsed_s)
            return pb.GetChunksReply(
                snapshot=opened.id,
                chunks=chunks,
                timings=common_pb2.Timings(fetch_ms=elapsed_s * 1e3, total_ms=elapsed_s * 1e3),
            )

    def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        """The snapshot as this process holds it; only shards that are served here count as ready."""
        check_names(request.database, request.snapshot)
        live = self._holdings.live(request.database)
        with self._holdings.lease(request.database, request.snapshot or live) as opened:
            served = {shard.number for shard in opened.shards}
            reply = describe(opened.manifest, request.database)
        reply.live_snapshot = live
        for shard in reply.shards:
            shard.ready_replicas = int(shard.shard in served)
        return reply

    @contextmanager
    def _lease(self, database: str, snapshot: str) -> Iterator[Snapshot]:
        if not self._snapshot_guard:
            snapshot = self._holdings.live(database) or snapshot
        with self._holdings.lease(database, snapshot) as opened:
            yield opened


def describe(manifest: Manifest, database: str) -> pb.DescribeReply:
    """What the manifest says; who serves it and what is live is the caller's to add."""
    return pb.DescribeReply(
        database=database,
        snapshot=manifest.snapshot_id,
        contract_json=manifest.contract.fingerprint.to_json(),
        documents=manifest.documents,
        chunks=manifest.chunks,
        shards=[
            pb.ShardState(shard=number, first_row=entry.first_row, rows=entry.rows)
            for number, entry in enumerate(manifest.shards)
        ],
    )


def _excluded(documents: DocumentTable, request: pb.SearchRequest) -> tuple[Exclusions | None, int]:
    """Documents to leave out for each query, and how many different ids the snapshot does not hold."""
    if not request.exclusions:
        return None, 0
    asked = [exclusion.document_ids for exclusion in request.exclusions]
    counts_Q = np.fromiter(map(len, asked), dtype=np.int64, count=len(asked))
    ids = list(itertools.chain.from_iterable(asked))
    numbers_E = documents.find(ids)
    unknown = {ids[place] for place in np.flatnonzero(numbers_E < 0).tolist()}
    return Exclusions.of_pairs(np.repeat(np.arange(len(asked)), counts_Q), numbers_E, len(asked)), len(unknown)


def _asked_shards(request: pb.SearchRequest) -> list[int]:
    """The shard that is asked, or the shards, each once."""
    if not request.shards:
        _require_shard(request.HasField("shard"))
        return [request.shard]
    if request.HasField("shard") or len(set(request.shards)) < len(request.shards):
        raise ArgumentError("shards: give each once, and no shard beside them", field="shards")
    return list(request.shards)


def _require_shard(given: bool) -> None:
    if not given:
        raise ArgumentError("shard: this process serves single shards: name one, or ask the router", field="shard")
