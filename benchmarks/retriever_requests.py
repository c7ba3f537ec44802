"""Requests to running retrievers, valid and not, each with its oracle: the right status, reason and field, or the right
neighbours. A `Violation` is a reply that is not the right one.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from grpc_status import rpc_status
from retriever_books import SHARDS, Book
from retriever_wrong import Wrong, wrong_call, wrong_search

from openbook_core.rpc.channel import LIMITS, MAX_MESSAGE_BYTES
from openbook_core.rpc.status import error_from_status
from openbook_database.scoring import MISSING
from openbook_proto.v1 import admin_pb2 as admin
from openbook_proto.v1 import admin_pb2_grpc, retriever_pb2_grpc
from openbook_proto.v1 import retriever_pb2 as pb

TIMEOUT_S = 120.0
RETRIEVER, ADMIN = "/openbook_proto.v1.Retriever/", "/openbook_proto.v1.DatabaseAdmin/"
METHODS = {
    RETRIEVER: ("Search", "SearchText", "GetChunks", "Describe", "Pin", "Unpin"),
    ADMIN: ("Register", "Prepare", "Activate", "Rollback", "Abort", "Plan", "Retire"),
}
# What bytes may meet that are no message, or one of chance: the caller's mistakes, and a state that does not allow it.
_REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED")

# What gRPC says itself, without details.
_OF_GRPC = ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED")


class Violation(Exception):  # noqa: N818  it says what happened
    """A reply that is not the right one."""


@dataclass(frozen=True)
class Server:
    """A process; `shards`: what it serves, None for a router."""

    address: str
    shards: tuple[int, ...] | None = None


class Requests:
    """Every method makes one request and returns its outcome, or raises Violation."""

    def __init__(self, servers: Sequence[Server], books: Sequence[Book]) -> None:
        self._servers, self._books = list(servers), list(books)
        options = [*LIMITS, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self._channels = {each.address: grpc.insecure_channel(each.address, options=options) for each in servers}
        self._stubs = {name: retriever_pb2_grpc.RetrieverStub(channel) for name, channel in self._channels.items()}
        self._router = next(each for each in servers if each.shards is None)
        self._admin = admin_pb2_grpc.DatabaseAdminStub(self._channels[self._router.address])

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    # --- what must be answered ---

    def search(self, rng: random.Random) -> str:
        server, book, request = self._valid(rng)
        call = self._stubs[server.address].Search.future(request, timeout=TIMEOUT_S)
        return self._judged(call, None, lambda reply: require_found(book, request, reply))

    def chunks(self, rng: random.Random) -> str:
        server, book = rng.choice(self._servers), rng.choice(self._books)
        ids = np.arange(book.chunks)
        request = pb.GetChunksRequest(database=book.name, snapshot=book.id, fields=pb.Fields(tokens=True, text=True))
        if server.shards is not None:
            request.shard = rng.choice(server.shards)
            ids = ids[book.opened.shards[request.shard].holds(ids)]
        asked = np.asarray(rng.choices(ids.tolist(), k=rng.choice([1, 5, 400])))
        request.ids = asked.astype("<i8").tobytes()

        def check(reply: pb.GetChunksReply) -> None:
            if reply.chunks.tokens != book.chunk_bytes(asked) or list(reply.chunks.texts) != book.texts(asked):
                raise Violation(f"other chunks than {asked[:5]}...")

        return self._judged(self._stubs[server.address].GetChunks.future(request, timeout=TIMEOUT_S), None, check)

    def describe(self, rng: random.Random) -> str:
        server, book = rng.choice(self._servers), rng.choice(self._books)
        request = pb.DescribeRequest(database=book.name, snapshot=rng.choice(["", book.id]))

        def check(reply: pb.DescribeReply) -> None:
            if (reply.live_snapshot, reply.chunks, len(reply.shards)) != (book.id, book.chunks, SHARDS):
                raise Violation(f"another database is described: {reply}")

        return self._judged(self._stubs[server.address].Describe.future(request, timeout=TIMEOUT_S), None, check)

    def pin(self, rng: random.Random) -> str:
        """Keep a snapshot for a moment, and now and then give it back."""
        book, stub = rng.choice(self._books), self._stubs[self._router.address]
        holder = f"fuzz-{rng.randrange(8)}"
        request = pb.PinRequest(database=book.name, holder=holder, ttl_seconds=rng.choice([1e-3, 1, 3600]))
        outcome = self._judged(stub.Pin.future(request, timeout=TIMEOUT_S), None, lambda reply: None)
        back = pb.UnpinRequest(database=book.name, snapshot=book.id, holder=holder)
        self._judged(stub.Unpin.future(back, timeout=TIMEOUT_S), None, lambda reply: None)
        return outcome

    # --- what must be refused ---

    def refused(self, rng: random.Random) -> str:
        """A valid search with one thing wrong."""
        server, book, request = self._valid(rng)
        wrong = wrong_search(rng, book, request, is_router=server.shards is None)
        call = self._stubs[server.address].Search.future(request, timeout=TIMEOUT_S)
        return f"{wrong.what}: {self._judged(call, wrong, lambda reply: None)}"

    def refused_call(self, rng: random.Random) -> str:
        """Another call with one thing wrong; names lead out of their folder, numbers are none."""
        book = rng.choice(self._books)
        method, message, wrong = wrong_call(rng, book)
        path = (ADMIN if hasattr(admin, type(message).__name__) else RETRIEVER) + method
        call = self._raw(self._router, path).future(message.SerializeToString(), timeout=TIMEOUT_S)
        return f"{method}, {wrong.what}: {self._judged(call, wrong, lambda reply: None)}"

    def not_utf8(self, rng: random.Random) -> str:
        """Bytes in an excluded id that are not UTF-8, which no protobuf library sends."""
        server, _, request = self._valid(rng)
        mark = "#not-utf-8#"
        del request.exclusions[:]
        request.exclusions.add(document_ids=["a", mark])
        bad = rng.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
        data = request.SerializeToString().replace(mark.encode(), (bad + b"x" * len(mark))[: len(mark)])
        wrong = Wrong("not UTF-8", field="exclusions[0].document_ids[1]")
        call = self._raw(server, RETRIEVER + "Search").future(data, timeout=TIMEOUT_S)
        return self._judged(call, wrong, lambda reply: None)

    def garbage(self, rng: random.Random) -> str:
        """Random bytes to any method. Those that are a message name nothing that there is."""
        server = rng.choice(self._servers)
        service = rng.choice([RETRIEVER, ADMIN])
        path = service + rng.choice(METHODS[service])
        return self._anything(self._raw(server, path), rng.randbytes(rng.choice([0, 1, 7, 60, 4000])))

    def mutated(self, rng: random.Random) -> str:
        """A valid search with some bytes changed, doubled or cut off: any answer but an error of the program."""
        server, _, request = self._valid(rng, most=3)
        data = bytearray(request.SerializeToString())
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            change = rng.choice(["flip", "cut", "double"])
            if change == "flip":
                data[at] ^= 1 << rng.randrange(8)
            elif change == "cut":
                del data[max(1, at) : at + rng.randint(1, 20)]
            else:
                data[at:at] = data[at : at + rng.randint(1, 20)]
        return self._anything(self._raw(server, RETRIEVER + "Search"), bytes(data), mutated=True)

    def unknown_method(self, rng: random.Random) -> str:
        path = rng.choice([RETRIEVER + "Drop", "/a.b/C", "/../Search", RETRIEVER])
        call = self._raw(rng.choice(self._servers), path).future(b"", timeout=TIMEOUT_S)
        return self._judged(call, Wrong("no such method", codes=("UNIMPLEMENTED",)), lambda reply: None)

    def too_large(self, rng: random.Random) -> str:
        call = self._raw(self._router, RETRIEVER + "Search").future(bytes(MAX_MESSAGE_BYTES + 1), timeout=TIMEOUT_S)
        return self._judged(call, Wrong("too large", codes=("RESOURCE_EXHAUSTED",)), lambda reply: None)

    # --- who does not stay ---

    def cancelled(self, rng: random.Random) -> str:
        server, book, request = self._valid(rng, most=48)
        call = self._stubs[server.address].Search.future(request, timeout=TIMEOUT_S)
        time.sleep(rng.choice([0, 0.001, 0.01, 0.1]))
        if call.cancel() or call.cancelled():
            return "cancelled"
        return self._judged(call, None, lambda reply: require_found(book, request, reply))

    def late(self, rng: random.Random) -> str:
        """A deadline that passes, or nearly."""
        server, book, request = self._valid(rng, most=48)
        call = self._stubs[server.address].Search.future(request, timeout=rng.choice([1e-6, 0.001, 0.01, 0.1, 0.3]))
        return self._judged(call, None, lambda reply: require_found(book, request, reply), ("DEADLINE_EXCEEDED",))

    def watch_left(self, rng: random.Random) -> str:
        """A stream whose caller leaves before or after its first message."""
        request = admin.WatchRequest(database=rng.choice(["", self._books[0].name]), interval_seconds=0.1)
        call = self._admin.Watch(request, timeout=TIMEOUT_S)
        try:
            if rng.random() < 0.5:
                next(call)
        except grpc.RpcError as error:
            return _refusal(error, None, ("RESOURCE_EXHAUSTED",))
        finally:
            call.cancel()
        return "cancelled"

    def raw_socket(self, rng: random.Random) -> str:
        """Bytes that are no HTTP/2, or a connection that ends in the middle of a frame."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if rng.random() < 0.5 else b""
        host, _, port = rng.choice(self._servers).address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(preface + rng.randbytes(rng.randint(1, 2000)))
        return "left"

    # --- inside ---

    def _valid(self, rng: random.Random, most: int = 8) -> tuple[Server, Book, pb.SearchRequest]:
        server, book = rng.choice(self._servers), rng.choice(self._books)
        shards = None if server.shards is None else rng.sample(server.shards, rng.randint(1, len(server.shards)))
        return server, book, book.search(rng, shards, most)

    def _raw(self, server: Server, path: str) -> Any:
        return self._channels[server.address].unary_unary(path, request_serializer=bytes, response_deserializer=bytes)

    def _anything(self, method: Any, data: bytes, *, mutated: bool = False) -> str:
        try:
            method(data, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            # UNAVAILABLE: a changed byte may ask for an epoch to come.
            return _refusal(error, None, (*_REFUSALS, "UNAVAILABLE") if mutated else _REFUSALS)
        if not mutated:
            raise Violation(f"{data[:80]!r}... was answered")
        return "OK"

    def _judged(self, call: Any, wrong: Wrong | None, check: Callable[[Any], None], also: Iterable[str] = ()) -> str:
        try:
            reply = call.result()
        except grpc.FutureCancelledError:
            return "cancelled"
        except grpc.RpcError as error:
            return _refusal(error, wrong, ("RESOURCE_EXHAUSTED", *also))
        if wrong is not None:
            raise Violation(f"an answer where {wrong} was due")
        check(reply)
        return "OK"


def require_found(book: Book, request: pb.SearchRequest, reply: pb.SearchReply) -> None:
    """Violation where the reply is not, in all that was asked for, the answer of the book."""
    hits, unknown = book.expected(request)
    ids_QK = np.frombuffer(reply.ids, "<i8").reshape(hits.ids_QK.shape)
    scores_QK = np.frombuffer(reply.scores, "<f4").reshape(hits.ids_QK.shape)
    if not np.array_equal(ids_QK, hits.ids_QK) or not np.array_equal(scores_QK, hits.scores_QK):
        query = int(np.flatnonzero((ids_QK != hits.ids_QK).any(axis=1) | (scores_QK != hits.scores_QK).any(axis=1))[0])
        raise Violation(
            f"{book.name}, query {query} of {len(ids_QK)}, k {request.k}: {ids_QK[query][:6]} {scores_QK[query][:3]} instead of "
            f"{hits.ids_QK[query][:6]} {hits.scores_QK[query][:3]}"
        )
    found = ids_QK[ids_QK != MISSING]
    documents = [reply.chunks.documents[place].external_id for place in reply.chunks.document_index]
    expected = (
        book.id,
        unknown,
        book.chunk_bytes(found) if request.fields.tokens else b"",
        book.texts(found) if request.fields.text else [],
        book.external_ids(found) if request.fields.document else [],
    )
    given = (reply.snapshot, reply.unknown_exclusions, reply.chunks.tokens, list(reply.chunks.texts), documents)
    for name, one, other in zip(("snapshot", "unknown", "tokens", "texts", "documents"), given, expected, strict=True):
        if one != other:
            raise Violation(f"{book.name}: {name} are {str(one)[:80]} instead of {str(other)[:80]}")


def _refusal(error: Any, wrong: Wrong | None, also: Sequence[str]) -> str:
    """The code; Violation where it is neither what is due nor one of `also`, or comes without its reason."""
    code = str(error.code().name)
    said = f"{code}: {error.details()}"
    status = rpc_status.from_call(error)
    carried = None if status is None else error_from_status(status)
    if carried is None and code not in _OF_GRPC:
        raise Violation(f"{said}: without a reason")
    if code == "RESOURCE_EXHAUSTED" and carried is not None and not carried.retry_after_s:
        raise Violation(f"{said}: without a delay")
    if code in also:
        return code
    if wrong is None:
        raise Violation(f"{said}: for a valid request")
    field, reason = (None, None) if carried is None else (carried.field, carried.reason)
    if code not in wrong.codes or wrong.field not in (None, field) or wrong.reason not in (None, reason):
        raise Violation(f"{said} (field {field}, reason {reason}) where {wrong} was due")
    return code
