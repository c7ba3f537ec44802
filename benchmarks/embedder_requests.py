"""Requests to a running embedder, valid and not, each with its oracle: the right status and field, or the right vectors.

The vectors come from an engine in this process. A `Violation` is a reply that is not the right one.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
from google.rpc import status_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from openbook_core.errors import OpenbookError
from openbook_core.fingerprint import Fingerprint
from openbook_core.rpc.channel import LIMITS
from openbook_core.rpc.status import error_from_status
from openbook_core.vectors import VECTOR_TYPES, decode_vectors
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.intake import MAX_TEXT_CHARACTERS
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

ROLES = {"query": embedder_pb2.EMBED_ROLE_QUERY, "passage": embedder_pb2.EMBED_ROLE_PASSAGE}
# Of a row's largest element: 1e-4 for who shares the batch, and half a step of the type.
TOLERANCE = {"float32": 1e-4, "float16": 6e-4, "bfloat16": 4.1e-3, "int8": 4.1e-3}
TIMEOUT_S = 120.0
_HTTP_BODY_LIMIT = 16 * 1024 * 1024


class Violation(Exception):  # noqa: N818  it says what happened
    """A reply that is not the right one."""


class Oracle:
    """Texts whose right vectors [n, d] in each role are known, and what the server's limits are."""

    def __init__(self, engine: EncoderEngine, texts: Sequence[str], *, model: str, max_texts: int) -> None:
        self.texts, self.model, self.max_texts = list(texts), model, max_texts
        self.ids = {role: engine.tokenize(texts, role) for role in ROLES}
        self.vectors = {"query": engine.encode_queries(texts), "passage": engine.encode(texts)}
        self.digest = Fingerprint(engine.fingerprint.record["tokenizer"]).digest
        # In bfloat16 a vector depends on who shares its batch.
        self._least_tolerance = 2e-2 if engine.dtype == "bfloat16" else 0.0
        self.max_tokens, self.vocab_size, self.dimension = engine.max_tokens, engine.vocab_size, engine.dimension

    def pick(self, rng: random.Random, most: int) -> list[int]:
        return [rng.randrange(len(self.texts)) for _ in range(rng.randint(1, most))]

    def cut(self, places: Sequence[int], role: str) -> int | None:
        """Which of the texts is the first that does not fit; None where all do."""
        return next((at for at, place in enumerate(places) if self.ids[role].truncated[place]), None)

    def require_vectors(
        self, vectors_ND: NDArray[np.float32], places: Sequence[int], role: str, kind: str = "float32"
    ) -> None:
        if vectors_ND.shape != (len(places), self.dimension):
            raise Violation(f"vectors of {vectors_ND.shape} for {len(places)} texts")
        right_ND = self.vectors[role][places]
        largest_N1 = np.abs(right_ND).max(axis=1, keepdims=True)
        difference = float((np.abs(vectors_ND - right_ND) / largest_N1).max())
        if not difference <= max(TOLERANCE[kind], self._least_tolerance):
            raise Violation(f"{kind} vectors differ by {difference:.2e}")


@dataclass(frozen=True)
class Expected:
    """An error: one of `codes` (gRPC's names), and its field where that is known."""

    codes: tuple[str, ...]
    field: str | None = None


class GrpcRequests:
    """Every method makes one request and returns its outcome, or raises Violation."""

    def __init__(self, address: str, oracle: Oracle) -> None:
        self._address, self._oracle = address, oracle
        self._channel = grpc.insecure_channel(address, options=[*LIMITS, ("grpc.use_local_subchannel_pool", 1)])
        self._stub = embedder_pb2_grpc.EmbedderStub(self._channel)
        self._raw = self._channel.unary_unary(
            "/openbook_proto.v1.Embedder/Embed", request_serializer=bytes, response_deserializer=bytes
        )

    def close(self) -> None:
        self._channel.close()

    def texts(self, rng: random.Random, most: int = 8) -> str:
        request, places, role, kind = self._valid(rng, most)
        expected = None
        if not request.truncate and (at := self._oracle.cut(places, role)) is not None:
            expected = Expected(("INVALID_ARGUMENT",), f"texts[{at}]")
        return self._embed(request, expected, places, role, kind)

    def token_ids(self, rng: random.Random, most: int = 8) -> str:
        places, role = self._oracle.pick(rng, most), rng.choice(list(ROLES))
        ids = [embedder_pb2.TokenIds(ids=self._oracle.ids[role].ids[place]) for place in places]
        request = embedder_pb2.EmbedRequest(token_ids=ids, role=ROLES[role], tokenizer=self._oracle.digest)
        return self._embed(request, None, places, role)

    def refused(self, rng: random.Random) -> str:
        """A valid request with one thing wrong."""
        request, places, role, _ = self._valid(rng, 6)
        request.truncate = True
        at, oracle = rng.randrange(len(places)), self._oracle
        wrong = rng.choice(
            ["empty list", "empty text", "huge text", "role", "type", "both", "too many", "no digest", "digest", "ids"]
        )
        codes: tuple[str, ...] = ("INVALID_ARGUMENT",)
        field = "texts"
        if wrong == "empty list":
            del request.texts[:]
        elif wrong == "empty text":
            request.texts[at], field = "", f"texts[{at}]"
        elif wrong == "huge text":
            request.texts[at] = "a " * (MAX_TEXT_CHARACTERS // 2 + rng.randint(1, 1_000_000))
            field = f"texts[{at}]"
        elif wrong == "role":
            request.role, field = rng.choice([0, 3, 99, 2**31 - 1]), "role"
        elif wrong == "type":
            request.type, field = rng.choice([3, 77, 2**31 - 1]), "type"
            if request.type in VECTOR_TYPES.values():
                request.type = 77
        elif wrong == "both":
            request.token_ids.add(ids=[1, 2])
        elif wrong == "too many":
            request.texts.extend(["more"] * oracle.max_texts)
        else:
            field = self._wrong_ids(request, places, role, wrong, at, rng)
            codes = ("FAILED_PRECONDITION",) if wrong == "digest" else codes
        return f"{wrong}: {self._embed(request, Expected(codes, field), places, role)}"

    def not_utf8(self, rng: random.Random) -> str:
        """Bytes in a text that are not UTF-8, which no protobuf library sends."""
        request, places, _, _ = self._valid(rng, 4)
        at, mark = rng.randrange(len(places)), "#not-utf-8#"
        request.texts[at] = mark
        bad = rng.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
        data = request.SerializeToString().replace(mark.encode(), (bad + b"x" * len(mark))[: len(mark)])
        return self._send(data, Expected(("INVALID_ARGUMENT",), f"texts[{at}]"))

    def garbage(self, rng: random.Random) -> str:
        """Random bytes: no message, or one without a role."""
        return self._send(rng.randbytes(rng.randint(0, 300)), Expected(("INVALID_ARGUMENT",)))

    def cancelled(self, rng: random.Random) -> str:
        request, places, role, kind = self._valid(rng, 16)
        request.truncate = True
        call = self._stub.Embed.future(request, timeout=TIMEOUT_S)
        time.sleep(rng.choice([0, 0.001, 0.01, 0.05]))
        if call.cancel() or call.cancelled():
            return "cancelled"
        return self._outcome(call, None, places, role, kind)

    def late(self, rng: random.Random) -> str:
        """A deadline that passes, or nearly."""
        request, places, role, kind = self._valid(rng, 16)
        request.truncate = True
        call = self._stub.Embed.future(request, timeout=rng.choice([1e-6, 0.001, 0.01, 0.05]))
        try:
            call.exception()
        except grpc.FutureCancelledError:
            return "cancelled"
        if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "DEADLINE_EXCEEDED"
        return self._outcome(call, None, places, role, kind)

    def stream(self, rng: random.Random) -> str:
        """Messages of which some are wrong; the sending side closes at once, the answers are read at leisure."""
        sent: list[tuple[Expected | None, list[int], str, str]] = []
        messages = []
        for number in range(rng.randint(1, 12)):
            request, places, role, kind = self._valid(rng, 6)
            request.truncate = True
            expected = None
            if rng.random() < 0.3:
                at = rng.randrange(len(places))
                request.texts[at] = ""
                expected = Expected(("INVALID_ARGUMENT",), f"texts[{at}]")
            sent.append((expected, places, role, kind))
            exclusive = rng.random() < 0.3
            messages.append(embedder_pb2.EmbedStreamRequest(sequence=number, request=request, exclusive=exclusive))
        answered = set()
        for reply in self._stub.EmbedStream(iter(messages), timeout=TIMEOUT_S):
            expected, places, role, kind = sent[reply.sequence]
            answered.add(reply.sequence)
            if reply.WhichOneof("outcome") == "error":
                _require(expected, error_from_status(status_pb2.Status.FromString(reply.error)))
            elif expected is not None:
                raise Violation(f"vectors where {expected} was due")
            else:
                self._oracle.require_vectors(decode_vectors(reply.reply.vectors, "vectors"), places, role, kind)
            if rng.random() < 0.1:
                time.sleep(0.02)
        if len(answered) != len(messages):
            raise Violation(f"{len(answered)} answers to {len(messages)} messages")
        return "OK"

    def stream_left(self, rng: random.Random) -> str:
        """A stream whose caller never closes its side, and leaves: before, between or after the answers."""

        def messages() -> Iterator[embedder_pb2.EmbedStreamRequest]:
            for number in range(rng.randint(0, 10)):
                request, *_ = self._valid(rng, 6)
                yield embedder_pb2.EmbedStreamRequest(sequence=number, request=request)
            while call.is_active():
                time.sleep(0.01)

        call: Any = self._stub.EmbedStream(messages(), timeout=TIMEOUT_S)
        time.sleep(rng.choice([0, 0.005, 0.05]))
        call.cancel()
        return "cancelled"

    def raw_socket(self, rng: random.Random) -> str:
        """Bytes that are no HTTP/2, or a connection that ends in the middle of a frame."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if rng.random() < 0.5 else b""
        host, _, port = self._address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(preface + rng.randbytes(rng.randint(1, 2000)))
        return "left"

    def _valid(self, rng: random.Random, most: int) -> tuple[embedder_pb2.EmbedRequest, list[int], str, str]:
        places, role, kind = self._oracle.pick(rng, most), rng.choice(list(ROLES)), rng.choice(list(VECTOR_TYPES))
        request = embedder_pb2.EmbedRequest(
            texts=[self._oracle.texts[place] for place in places],
            role=ROLES[role],
            type=VECTOR_TYPES[kind],
            truncate=rng.random() < 0.7,
        )
        return request, places, role, kind

    def _wrong_ids(self, request: Any, places: list[int], role: str, wrong: str, at: int, rng: random.Random) -> str:
        """Put token ids with something wrong in the place of the texts; the field to be named."""
        oracle = self._oracle
        del request.texts[:]
        for place in places:
            request.token_ids.add(ids=oracle.ids[role].ids[place])
        if wrong != "no digest":
            request.tokenizer = oracle.digest if wrong == "ids" else "sha256:" + "0" * 64
        if wrong != "ids":
            return "tokenizer"
        ids = request.token_ids[at].ids
        kind = rng.choice(["none", "too many", "out of range"])
        if kind == "none":
            del ids[:]
        elif kind == "too many":
            ids.extend([1] * oracle.max_tokens)
        else:
            ids[rng.randrange(len(ids))] = rng.choice([oracle.vocab_size, 2**31, 2**32 - 1])
        return f"token_ids[{at}]"

    def _embed(
        self, request: Any, expected: Expected | None, places: list[int], role: str, kind: str = "float32"
    ) -> str:
        if request.type not in VECTOR_TYPES.values() and expected is None:
            request.type = VECTOR_TYPES[kind]
        return self._outcome(self._stub.Embed.future(request, timeout=TIMEOUT_S), expected, places, role, kind)

    def _outcome(self, call: Any, expected: Expected | None, places: list[int], role: str, kind: str) -> str:
        try:
            reply = call.result()
        except grpc.RpcError as error:
            return _refusal(expected, error)
        if expected is not None:
            raise Violation(f"vectors where {expected} was due")
        self._oracle.require_vectors(decode_vectors(reply.vectors, "vectors"), places, role, kind)
        counts = self._oracle.ids[role].counts
        if list(reply.token_counts) != [counts[place] for place in places]:
            raise Violation(f"token counts {list(reply.token_counts)}")
        return "OK"

    def _send(self, data: bytes, expected: Expected) -> str:
        try:
            self._raw(data, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return _refusal(expected, error)
        raise Violation(f"an answer where {expected} was due")


class HttpRequests:
    """As GrpcRequests, for /v1/embeddings."""

    def __init__(self, url: str, oracle: Oracle) -> None:
        self._url, self._oracle = url, oracle
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S)

    def close(self) -> None:
        self._client.close()

    def texts(self, rng: random.Random, most: int = 8) -> str:
        body, places, role = self._valid(rng, most)
        expected = None
        if not body["truncate"] and (at := self._oracle.cut(places, role)) is not None:
            expected = (400, f"input[{at}]")
        return self._post(json.dumps(body).encode(), expected, places, role)

    def refused(self, rng: random.Random) -> str:
        """A valid body with one thing wrong."""
        body, places, role = self._valid(rng, 6)
        body["truncate"], at = True, rng.randrange(len(places))
        many = ["more"] * (self._oracle.max_texts + 1)
        texts = list(body["input"])
        changes: dict[str, tuple[dict[str, Any], int, str | None]] = {
            "no role": ({"input_type": None, "model": self._oracle.model}, 400, "input_type"),
            "role": ({"input_type": "title"}, 400, "input_type"),
            "model": ({"model": "another"}, 404, "model"),
            "empty list": ({"input": []}, 400, "input"),
            "empty text": ({"input": [*texts[:at], "", *texts[at + 1 :]]}, 400, f"input[{at}]"),
            "huge text": ({"input": ["a" * (MAX_TEXT_CHARACTERS + 1)]}, 400, "input[0]"),
            "too many": ({"input": many}, 400, "input"),
            "a number in the list": ({"input": [*texts, 7]}, 400, "input"),
            "an object": ({"input": {"text": "a"}}, 400, "input"),
            "dimensions": ({"dimensions": self._oracle.dimension + 1}, 400, "dimensions"),
            "format": ({"encoding_format": "hex"}, 400, "encoding_format"),
            "unknown field": ({"colour": "red"}, 400, "colour"),
            "ids without digest": ({"input": [[1, 2]]}, 400, "tokenizer"),
            "id out of range": (
                {"input": [[1, self._oracle.vocab_size]], "tokenizer": self._oracle.digest},
                400,
                "input[0]",
            ),
        }
        name = rng.choice(list(changes))
        change, status, field = changes[name]
        return f"{name}: {self._post(json.dumps(body | change).encode(), (status, field), places, role)}"

    def not_json(self, rng: random.Random) -> str:
        body, places, role = self._valid(rng, 3)
        whole = json.dumps(body).encode()
        data = rng.choice(
            [
                whole[: rng.randint(0, len(whole) - 1)],
                whole.replace(b'"input"', b'"input":NaN,"input"'),
                b'{"input": ["\\ud800"]}',
                b'{"input": ["\xff"]}',
                b"[" * 100_000,
                rng.randbytes(rng.randint(1, 200)),
                b"[]",
                b"null",
            ]
        )
        return self._post(data, (400, None), places, role)

    def routes(self, rng: random.Random) -> str:
        """Paths and methods that there are not."""
        method, path, status = rng.choice(
            [("GET", "/v1/embeddings", 405), ("POST", "/v1/nothing", 404), ("DELETE", "/healthz", 405)]
        )
        reply = self._client.request(method, path)
        if reply.status_code != status:
            raise Violation(f"{method} {path} gave {reply.status_code}")
        return str(status)

    def dropped(self, rng: random.Random) -> str:
        """A connection that ends in the middle of its body, or before its answer."""
        body, *_ = self._valid(rng, 16)
        data = json.dumps(body).encode()
        sent = data[: rng.randint(0, len(data) - 1)] if rng.random() < 0.6 else data
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        with self._connection() as connection:
            connection.sendall(head + sent)
            time.sleep(rng.choice([0, 0.01, 0.05]))
        return "left"

    def too_large(self, rng: random.Random) -> str:
        """A body that declares more than the limit is refused before it is read."""
        size = _HTTP_BODY_LIMIT + rng.randint(1, 10**12)
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode()
        with self._connection() as connection:
            connection.sendall(head + b'{"input": "')
            answer = connection.recv(64)
        if b" 413 " not in answer:
            raise Violation(f"{answer!r} to a body of {size} bytes")
        return "413"

    def raw_socket(self, rng: random.Random) -> str:
        """Bytes that are no HTTP."""
        with self._connection() as connection:
            connection.sendall(rng.randbytes(rng.randint(1, 2000)))
        return "left"

    def _connection(self) -> socket.socket:
        address = urlsplit(self._url)
        return socket.create_connection((address.hostname or "", address.port or 0), timeout=30)

    def _valid(self, rng: random.Random, most: int) -> tuple[dict[str, Any], list[int], str]:
        places, role = self._oracle.pick(rng, most), rng.choice(list(ROLES))
        body = {
            "model": rng.choice([self._oracle.model, f"{self._oracle.model}-{role}"]),
            "input": [self._oracle.texts[place] for place in places],
            "input_type": role,
            "truncate": rng.random() < 0.7,
            "encoding_format": rng.choice(["float", "base64"]),
        }
        return body, places, role

    def _post(self, data: bytes, expected: tuple[int, str | None] | None, places: list[int], role: str) -> str:
        reply = self._client.post("/v1/embeddings", content=data, headers={"content-type": "application/json"})
        if reply.status_code == 429 and int(reply.headers.get("retry-after", 0)) >= 1:
            return "429"
        if expected is not None:
            status, field = expected
            param = reply.json().get("error", {}).get("param")
            if reply.status_code != status or (field is not None and param != field):
                raise Violation(f"{reply.status_code} {param!r} where {status} {field!r} was due: {reply.text[:200]}")
            return str(status)
        if reply.status_code != 200:
            raise Violation(f"{reply.status_code} for a valid request: {reply.text[:200]}")
        rows = [each["embedding"] for each in reply.json()["data"]]
        vectors = [np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in rows]
        self._oracle.require_vectors(np.array(vectors, "f4"), places, role)
        return "OK"


def _refusal(expected: Expected | None, error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)
    if status is None:
        raise Violation(f"{error.code()} without details: {error.details()}")
    return _require(expected, error_from_status(status))


def _require(expected: Expected | None, error: OpenbookError) -> str:
    """The code of an error that is the right one; a refusal for load is right where it says when to come back."""
    if error.grpc_code == "RESOURCE_EXHAUSTED" and error.retry_after_s:
        return "RESOURCE_EXHAUSTED"
    if expected is None:
        raise Violation(f"a valid request met {error.grpc_code} {error.field!r}: {error.message}")
    if error.grpc_code not in expected.codes or (expected.field is not None and error.field != expected.field):
        raise Violation(f"{error.grpc_code} {error.field!r} where {expected} was due: {error.message}")
    return error.grpc_code
