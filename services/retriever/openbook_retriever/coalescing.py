"""Small searches of several callers that ask for the same thing leave the router as one.

A call goes out at once while few are under way; those that come meanwhile gather, and the first of them takes the
others along when one is back. Nothing waits for company. What is answered does not depend on it
(`openbook_database.scoring`), and where a shard refuses the whole, each call is sent alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Event, Lock

from openbook_core.errors import ArgumentError, DeadlineError
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.merging import split_reply
from openbook_retriever.metrics import COALESCED

MOST_QUERIES = 16
_BATCH_QUERIES = 256
Key = tuple[object, ...]
Search = Callable[[pb.SearchRequest, float], pb.SearchReply]


def key_of(request: pb.SearchRequest, snapshot: str) -> Key | None:
    """Equal for calls that may leave as one; None where a call goes alone."""
    if request.exclusions or request.filters or request.queries.rows > MOST_QUERIES:
        return None
    fields, queries = request.fields, request.queries
    least = request.min_score if request.HasField("min_score") else None
    return (
        request.database, snapshot, request.k, least, request.allow_partial, queries.type, queries.dimension,
        fields.tokens, fields.text, fields.document,
    )  # fmt: skip


class _Call:
    """One caller's request. What comes of it is set before `ready`: a batch to take along, a reply, an error, or nothing:
    then it is sent alone."""

    def __init__(self, request: pb.SearchRequest, deadline: float) -> None:
        self.request, self.deadline = request, deadline
        self.ready = Event()
        self.batch: list[_Call] | None = None
        self.reply: pb.SearchReply | None = None
        self.error: Exception | None = None


class Coalescer:
    """Owner of what gathers; safe to use from several threads. The work is done on the callers' threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._under_way: dict[Key, int] = {}
        self._waiting: dict[Key, deque[_Call]] = {}

    def search(
        self, key: Key, request: pb.SearchRequest, timeout_s: float, width: int, search: Search
    ) -> pb.SearchReply:
        """`search(request, timeout_s)`, or this request's part of what it gives for several.

        `width`: how many such calls may be under way. Raises what `search` raises, and DeadlineError.
        """
        call = _Call(request, time.monotonic() + timeout_s)
        with self._lock:
            under_way = self._under_way.get(key, 0)
            if under_way < width:
                self._under_way[key] = under_way + 1
                call.batch = [call]
            else:
                self._waiting.setdefault(key, deque()).append(call)
        if call.batch is None and not call.ready.wait(timeout_s):
            self._give_up(key, call)
        if call.batch is not None:
            self._lead(key, call.batch, search)
        if call.error is not None:
            raise call.error
        return call.reply or search(request, max(0.0, call.deadline - time.monotonic()))

    def _give_up(self, key: Key, call: _Call) -> None:
        """Too late; unless others rely on this call by now."""
        with self._lock:
            waiting = self._waiting.get(key, ())
            if call in waiting:
                self._waiting[key].remove(call)
            if call.batch is None:
                raise DeadlineError("the call's deadline passed before its queries were sent to the shards")

    def _lead(self, key: Key, batch: list[_Call], search: Search) -> None:
        try:
            _answer(batch, search)
        finally:
            for call in batch[1:]:
                call.ready.set()
            self._hand_over(key)

    def _hand_over(self, key: Key) -> None:
        """The oldest call that waits goes out next, with as many others as fit."""
        with self._lock:
            waiting = self._waiting.get(key)
            batch: list[_Call] = []
            room = _BATCH_QUERIES
            while waiting and waiting[0].request.queries.rows <= room:
                batch.append(waiting.popleft())
                room -= batch[-1].request.queries.rows
            if not batch:
                self._under_way[key] -= 1
                if not self._under_way[key]:
                    del self._under_way[key]
                    self._waiting.pop(key, None)
                return
            batch[0].batch = batch
        batch[0].ready.set()


def _answer(batch: Sequence[_Call], search: Search) -> None:
    """Give each call its reply or error; none, where the shards refuse what some of several calls hold."""
    first = batch[0]
    timeout_s = max(0.0, max(call.deadline for call in batch) - time.monotonic())
    if len(batch) == 1:
        try:
            first.reply = search(first.request, timeout_s)
        except Exception as error:  # noqa: BLE001  # raised by the caller's own thread
            first.error = error
        return
    COALESCED.inc(len(batch))
    whole = pb.SearchRequest()
    whole.CopyFrom(first.request)
    queries = [call.request.queries for call in batch]
    whole.queries.data = b"".join(each.data for each in queries)
    whole.queries.scales = b"".join(each.scales for each in queries)
    counts = [each.rows for each in queries]
    whole.queries.rows = sum(counts)
    try:
        parts = split_reply(search(whole, timeout_s), counts, whole.fields)
    except ArgumentError:
        return
    except Exception as error:  # noqa: BLE001  # raised by each caller's own thread
        for call in batch:
            call.error = error
        return
    for call, part in zip(batch, parts, strict=True):
        call.reply = part
