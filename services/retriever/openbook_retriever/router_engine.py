"""The work of a router: one snapshot per request, every shard asked for exactly it, one merged answer.

Axes: Q queries, K neighbours, N chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.admission import Admission, Gate
from openbook_core.errors import (
    ArgumentError,
    OpenbookError,
    OverloadedError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from openbook_core.telemetry import get_logger
from openbook_core.tracing import annotate
from openbook_core.vectors import encode_vectors
from openbook_database.manifest import Manifest
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.attach import EmbedderGate
from openbook_retriever.chunks import gather_chunks
from openbook_retriever.coalescing import Coalescer, key_of
from openbook_retriever.fan_out import Answers, Question, ask
from openbook_retriever.merging import merge_replies
from openbook_retriever.metrics import MERGE_SECONDS, RESTARTS, SHARDS_SECONDS, SNAPSHOT_MIX
from openbook_retriever.replicas import Replicas
from openbook_retriever.requests import check_names, check_search, check_shape, read_ids, refuse_shard
from openbook_retriever.result_cache import ResultCache
from openbook_retriever.router_watch import RouterWatch, View
from openbook_retriever.shard_engine import describe
from openbook_retriever.traffic import errors_of

_MAX_RESTARTS = 3
# Before the first call was timed; only the first retry delays rest on it.
_ASSUMED_QUERIES_PER_S = 1000.0
_log = get_logger("openbook_retriever.router")


class SnapshotGoneError(Exception):
    """Inside of the router: the shards do not hold the snapshot any more."""


class RouterEngine:
    """Search, SearchText, GetChunks and Describe over replicas; safe to use from several threads."""

    def __init__(
        self,
        watch: RouterWatch,
        replicas: Replicas,
        embedder: EmbedderGate | None,
        cache: ResultCache | None = None,
        *,
        snapshot_guard: bool = True,
        max_queries: int = 16_384,
    ) -> None:
        """`max_queries`: most that are under way; calls with more are refused, but for one that finds none."""
        self._gate = Gate(Admission("queries", max_queries, _ASSUMED_QUERIES_PER_S))
        self._coalescer = Coalescer()
        self._watch = watch
        self._replicas = replicas
        self._embedder = embedder
        self._cache = cache
        self._snapshot_guard = snapshot_guard

    def search(self, request: pb.SearchRequest, timeout_s: float) -> pb.SearchReply:
        """k neighbours for each query vector, all from one snapshot."""
        started = time.perf_counter()
        refuse_shard(request)
        check_search(request, request.queries.rows)

        def once(view: View, snapshot: str, left_s: float) -> pb.SearchReply:
            check_shape(request, view.contract.dimension)
            return self._search_known(request, view, snapshot, left_s)

        with self._admitted(request.queries.rows):
            reply = self._restarting(request, timeout_s, once)
        reply.timings.total_ms = (time.perf_counter() - started) * 1e3
        return reply

    def search_text(self, request: pb.SearchTextRequest, timeout_s: float) -> pb.SearchTextReply:
        """As `search`, for texts, which are encoded as queries by the embedder of the database's contract."""
        started = time.perf_counter()
        search = request.search
        refuse_shard(search)
        if search.HasField("queries"):
            raise ArgumentError("search.queries: must be unset, the texts are the queries", field="search.queries")
        check_search(search, len(request.texts))
        for place, text in enumerate(request.texts):
            if not text.strip():
                raise ArgumentError(f"texts[{place}]: is empty", field="texts")
        embedder = self._embedder
        if embedder is None:
            raise PreconditionError(
                "this router has no embedder: start it with --embedder HOST:PORT, or call Search with vectors",
                reason=Reason.NOT_READY,
            )

        def once(view: View, snapshot: str, left_s: float) -> pb.SearchReply:
            begun = time.perf_counter()
            probes = self._watch.manifest(search.database, snapshot).probes
            with errors_of("embedder"):
                vectors_QD = embedder.embed(search.database, list(request.texts), view.contract, probes, left_s)
            embed_s = time.perf_counter() - begun
            whole = pb.SearchRequest()
            whole.CopyFrom(search)
            whole.queries.CopyFrom(encode_vectors(vectors_QD))
            reply = self._search_known(whole, view, snapshot, left_s - embed_s)
            reply.timings.embed_ms = embed_s * 1e3
            return reply

        with self._admitted(len(request.texts)):
            reply = self._restarting(search, timeout_s, once)
        reply.timings.total_ms = (time.perf_counter() - started) * 1e3
        return pb.SearchTextReply(result=reply)

    def get_chunks(self, request: pb.GetChunksRequest, timeout_s: float) -> pb.GetChunksReply:
        """Chunks by id, in the order of the request."""
        started = time.perf_counter()
        refuse_shard(request)
        check_names(request.database, request.snapshot, snapshot_required=True)
        view = self._watch.view(request.database)
        try:
            reply = self._fetch(request, view, timeout_s)
        except SnapshotGoneError as error:
            raise _retired(request.database, request.snapshot, str(error)) from error
        reply.timings.total_ms = (time.perf_counter() - started) * 1e3
        return reply

    def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        """The contract, counts and shards of a snapshot, and how many replicas report each shard ready."""
        check_names(request.database, request.snapshot)
        view = self._watch.view(request.database)
        snapshot = request.snapshot or _live(view)
        reply = describe(self._watch.manifest(request.database, snapshot), request.database)
        reply.live_snapshot = view.control.live or ""
        reply.epoch = view.control.epoch
        for shard in reply.shards:
            shard.ready_replicas = sum(shard.shard in replica.serves(snapshot) for replica in view.replicas)
        return reply

    def pin(self, request: pb.PinRequest) -> pb.PinReply:
        """Keep a snapshot loaded for the request's holder."""
        check_names(request.database, request.snapshot)
        snapshot, epoch = self._watch.pin(request.database, request.snapshot, request.holder, request.ttl_seconds)
        return pb.PinReply(snapshot=snapshot, epoch=epoch)

    def unpin(self, request: pb.UnpinRequest) -> pb.UnpinReply:
        """Give it back."""
        check_names(request.database, request.snapshot, snapshot_required=True)
        self._watch.unpin(request.database, request.snapshot, request.holder)
        return pb.UnpinReply()

    # --- inside ---

    @contextmanager
    def _admitted(self, queries: int) -> Iterator[None]:
        with ExitStack() as stack:
            with errors_of("router"):
                stack.enter_context(self._gate.admit(queries))
            yield

    def _restarting(
        self, request: pb.SearchRequest, timeout_s: float, once: Callable[[View, str, float], pb.SearchReply]
    ) -> pb.SearchReply:
        """Resolve the snapshot and answer `once`; an unpinned request whose snapshot was retired begins again."""
        deadline = time.monotonic() + timeout_s
        restarts = 0
        view = self._watch.view(request.database, request.min_epoch)
        while True:
            snapshot = request.snapshot or _live(view)
            try:
                reply = once(view, snapshot, deadline - time.monotonic())
            except SnapshotGoneError as error:
                if request.snapshot:
                    raise _retired(request.database, snapshot, str(error)) from error
                view = self._watch.refresh(request.database)
                if view.control.live == snapshot or restarts == _MAX_RESTARTS:
                    raise _unavailable(request.database, snapshot, str(error)) from error
                restarts += 1
                RESTARTS.inc()
                continue
            annotate(database=request.database, snapshot=snapshot)
            reply.epoch = view.control.epoch
            reply.restarts = restarts
            return reply

    def _search_known(self, request: pb.SearchRequest, view: View, snapshot: str, left_s: float) -> pb.SearchReply:
        """From the cache what it knows of a snapshot that is kept; one that may be gone is for the shards to refuse."""

        def search(some: pb.SearchRequest, some_s: float) -> pb.SearchReply:
            return self._search_together(some, view, snapshot, some_s)

        def fetch(ids_N: NDArray[np.int64], ids_s: float) -> pb.Chunks:
            if not (request.fields.tokens or request.fields.text or request.fields.document):
                return pb.Chunks(chunk_length=view.contract.chunk_length)
            wanted = pb.GetChunksRequest(
                database=request.database,
                snapshot=snapshot,
                ids=ids_N.astype("<i8").tobytes(),
                fields=request.fields,
            )
            return self._fetch(wanted, view, ids_s).chunks

        if self._cache is None or not view.kept(snapshot):
            return search(request, left_s)
        reply = self._cache.search(request, snapshot, left_s, search, fetch)
        reply.snapshot = snapshot
        return reply

    def _search_together(self, request: pb.SearchRequest, view: View, snapshot: str, left_s: float) -> pb.SearchReply:
        """Small calls that ask for the same thing leave as one."""
        key = key_of(request, snapshot)
        if key is None:
            return self._search_once(request, view, snapshot, left_s)
        width = 2 * max(1, len(view.serving(snapshot, 0)))
        return self._coalescer.search(
            key, request, left_s, width, lambda whole, whole_s: self._search_once(whole, view, snapshot, whole_s)
        )

    def _search_once(self, request: pb.SearchRequest, view: View, snapshot: str, left_s: float) -> pb.SearchReply:
        """Ask all shards. The request is serialised once: a message's bytes with a second one's behind them are the
        message with what the second sets."""
        manifest = self._watch.manifest(request.database, snapshot)
        whole = request.SerializeToString()

        def bytes_for(shards: tuple[int, ...]) -> bytes:
            asked = pb.SearchRequest(snapshot=snapshot)
            if len(shards) == 1:
                asked.shard = shards[0]
            else:
                asked.shards.extend(shards)
            return whole + asked.SerializeToString()

        question = Question("Search", range(len(manifest.shards)), bytes_for, request.queries.rows)
        asked = time.perf_counter()
        answers = self._ask(question, view, snapshot, left_s)
        answered = time.perf_counter()
        if answers.missing and not (request.allow_partial and answers.parts):
            raise _unanswered(request.database, snapshot, answers)
        self._require_one_snapshot(snapshot, answers.parts)
        parts = [answers.parts[shards] for shards in sorted(answers.parts)]
        reply = merge_replies(parts, request.queries.rows, request.k, request.fields)
        reply.snapshot = snapshot
        if answers.missing:
            reply.missing_shards.extend(sorted(answers.missing))
            reply.coverage.CopyFrom(_coverage(manifest, answers.missing))
        reply.timings.search_ms = (answered - asked) * 1e3
        reply.timings.fetch_ms = max(part.timings.fetch_ms for part in parts)
        merged_s = time.perf_counter() - answered
        reply.timings.merge_ms = merged_s * 1e3
        SHARDS_SECONDS.observe(answered - asked)
        MERGE_SECONDS.observe(merged_s)
        return reply

    def _fetch(self, request: pb.GetChunksRequest, view: View, timeout_s: float) -> pb.GetChunksReply:
        """Chunks from the shards that hold them; SnapshotGoneError as `_ask`, UnavailableError where one is missing."""
        manifest = self._watch.manifest(request.database, request.snapshot)
        ids_N = read_ids(request.ids, manifest.chunks)
        first_rows = np.asarray([entry.first_row for entry in manifest.shards])
        shards_N = np.searchsorted(first_rows, ids_N, side="right") - 1
        asked = sorted(set(shards_N.tolist()))

        def bytes_for(shards: tuple[int, ...]) -> bytes:
            (shard,) = shards
            return pb.GetChunksRequest(
                database=request.database,
                snapshot=request.snapshot,
                ids=ids_N[shards_N == shard].astype("<i8").tobytes(),
                fields=request.fields,
                shard=shard,
            ).SerializeToString()

        question = Question("GetChunks", asked, bytes_for, len(ids_N), together=False)
        answers = self._ask(question, view, request.snapshot, timeout_s)
        if answers.missing:
            raise _unanswered(request.database, request.snapshot, answers)
        self._require_one_snapshot(request.snapshot, answers.parts)
        asked_order_N = np.argsort(shards_N, kind="stable")
        rows_N = np.empty(len(ids_N), dtype=np.int64)
        rows_N[asked_order_N] = np.arange(len(ids_N))
        reply = pb.GetChunksReply(
            snapshot=request.snapshot,
            chunks=gather_chunks([answers.parts[shard,].chunks for shard in asked], rows_N, request.fields),
        )
        reply.timings.fetch_ms = max(part.timings.fetch_ms for part in answers.parts.values())
        return reply

    def _ask(self, question: Question, view: View, snapshot: str, timeout_s: float) -> Answers[Any]:
        """Ask every shard; raises SnapshotGoneError where replicas have let go of a snapshot that nobody wants kept."""
        latest = view

        def again() -> Callable[[int], Sequence[str]]:
            nonlocal latest
            latest = self._watch.refresh(view.control.database)
            return lambda shard: latest.serving(snapshot, shard)

        answers = ask(self._replicas, question, lambda shard: view.serving(snapshot, shard), again, timeout_s)
        if answers.missing.keys() - answers.overloaded.keys() and not latest.kept(snapshot):
            raise SnapshotGoneError(_reasons(answers.missing))
        return answers

    def _require_one_snapshot(self, snapshot: str, parts: Mapping[tuple[int, ...], Any]) -> None:
        others = {
            shard: part.snapshot for shards, part in parts.items() if part.snapshot != snapshot for shard in shards
        }
        if not others or not self._snapshot_guard:
            return
        SNAPSHOT_MIX.inc()
        named = ", ".join(f"shard {shard} from {other[:12]}" for shard, other in sorted(others.items()))
        _log.error("snapshot %s was asked for, answered: %s", snapshot[:12], named)
        raise OpenbookError(
            f"snapshot {snapshot[:12]} was asked for, but answered: {named}. No mixed answer is given; this is an "
            "error of the program",
            reason=Reason.SNAPSHOT_MIX,
        )


def _live(view: View) -> str:
    if view.control.live is None:
        raise PreconditionError(
            f"database {view.control.database!r} has no live snapshot yet: prepare and activate one",
            reason=Reason.NOT_READY,
            field="database",
        )
    return view.control.live


def _coverage(manifest: Manifest, missing: Mapping[int, str]) -> pb.Coverage:
    shards = [
        pb.MissingShard(shard=shard, chunks=manifest.shards[shard].rows, why=missing[shard])
        for shard in sorted(missing)
    ]
    answered = manifest.chunks - sum(shard.chunks for shard in shards)
    return pb.Coverage(chunks=manifest.chunks, answered_chunks=answered, missing=shards)


def _reasons(missing: Mapping[int, str]) -> str:
    return "; ".join(f"shard {shard}: {why}" for shard, why in sorted(missing.items()))


def _retired(database: str, snapshot: str, why: str) -> PreconditionError:
    return PreconditionError(
        f"snapshot {snapshot[:12]} of database {database!r} was retired or never prepared ({why}); ask without a pin, "
        "or prepare it again",
        reason=Reason.SNAPSHOT_RETIRED,
        field="snapshot",
    )


def _unanswered(database: str, snapshot: str, answers: Answers[Any]) -> OpenbookError:
    """OverloadedError where overload is all that keeps the missing shards from answering."""
    if answers.missing.keys() - answers.overloaded.keys():
        return _unavailable(database, snapshot, answers.missing)
    delays = [seconds for seconds in answers.overloaded.values() if seconds is not None]
    return OverloadedError(
        f"database {database!r}, snapshot {snapshot[:12]}: too many requests: {_reasons(answers.missing)}",
        retry_after_s=max(delays, default=None),
        shards=",".join(map(str, sorted(answers.missing))),
    )


def _unavailable(database: str, snapshot: str, missing: Mapping[int, str] | str) -> UnavailableError:
    shards = "" if isinstance(missing, str) else ",".join(map(str, sorted(missing)))
    why = missing if isinstance(missing, str) else _reasons(missing)
    return UnavailableError(
        f"database {database!r}, snapshot {snapshot[:12]}: no answer from {why}. Start a replica, or set allow_partial",
        reason=Reason.SHARD_UNAVAILABLE,
        shards=shards,
    )
