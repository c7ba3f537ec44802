"""The embedder as a process of its own, over a socket, with the real MiniLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from openbook_core.clients.embedder import EmbedderClient, VectorType
from openbook_core.errors import ArgumentError, DeadlineError, MismatchError, OpenbookError
from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.status import error_from_rpc
from openbook_core.vectors import VECTOR_TYPES
from openbook_core.weights import DEFAULT_EMBEDDER
from openbook_embedder.engine import EncoderEngine
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

_SERVE = """
import json, sys
from openbook_embedder.app import serve
from openbook_embedder.config import EmbedderConfig
serve(EmbedderConfig.parse(json.loads(sys.argv[1])))
"""
_SETTINGS = {"port": 0, "dtype": "float32", "max_texts": 64, "batch_tokens": 2048}


def start(**settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SERVE, json.dumps({**_SETTINGS, **settings})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if settings else None,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process = start()
    assert process.stdout is not None
    try:
        line = json.loads(process.stdout.readline())
        assert line["service"] == "embedder"
        yield line["address"]
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    assert code == 0


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[EmbedderClient]:
    client = EmbedderClient(address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def engine() -> EncoderEngine:
    return EncoderEngine.load(DEFAULT_EMBEDDER, dtype="float32")


def call(address: str, request: embedder_pb2.EmbedRequest, timeout_s: float = 60) -> embedder_pb2.EmbedReply:
    with open_channel(address) as channel:
        try:
            return embedder_pb2_grpc.EmbedderStub(channel).Embed(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error, "embedder") from None


def test_info_and_health(address: str, client: EmbedderClient, engine: EncoderEngine) -> None:
    info = client.info()
    assert (info.model, info.dimension, info.max_tokens, info.max_texts) == (DEFAULT_EMBEDDER, 384, 256, 64)
    assert info.fingerprint == engine.fingerprint
    assert info.dtype == "float32"
    assert info.probe_texts == list(engine.probe_texts)
    assert np.abs(info.probe_vectors - engine.probe_vectors).max() <= 1e-5
    with open_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="openbook_proto.v1.Embedder")
        reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_concurrent_callers_get_their_own_vectors(client: EmbedderClient, engine: EncoderEngine) -> None:
    calls = [[f"Country number {n} exports item {i} " * (1 + n % 5) for i in range(1 + n % 4)] for n in range(24)]
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda texts: client.embed(texts, "passage", timeout_s=120), calls))
    for texts, result in zip(calls, results, strict=True):
        assert np.abs(result.vectors - engine.encode(texts)).max() <= 1e-5
        assert result.token_counts == engine.tokenize(texts).counts
        assert result.fingerprint_digest == engine.fingerprint.digest


def test_a_long_text_is_cut_and_said_to_be(address: str, client: EmbedderClient) -> None:
    result = client.embed(["Canada", "land " * 1000], "query")
    assert result.truncated == [False, True]
    assert result.token_counts == [3, 256]
    timings = call(address, embedder_pb2.EmbedRequest(texts=["a"], role=embedder_pb2.EMBED_ROLE_QUERY)).timings
    assert min(timings.embed_ms, timings.queue_ms, timings.tokenize_ms) > 0
    assert timings.total_ms == pytest.approx(timings.embed_ms + timings.queue_ms + timings.tokenize_ms)


QUERY = embedder_pb2.EMBED_ROLE_QUERY


def test_info_says_what_a_client_needs_to_size_its_batches(client: EmbedderClient) -> None:
    info = client.info()
    assert (info.batch_tokens, info.max_queue_tokens, info.max_calls) == (2048, 262_144, 128)
    assert info.types == ["float32", "float16", "bfloat16", "int8"]
    assert info.tokenizer.record == info.fingerprint.record["tokenizer"]


@pytest.mark.parametrize(
    ("type_", "width", "cosine"), [("float16", 2, 0.9999999), ("bfloat16", 2, 0.99999), ("int8", 1, 0.9999)]
)
def test_vectors_in_narrower_types(
    address: str, client: EmbedderClient, type_: VectorType, width: int, cosine: float
) -> None:
    texts = ["Canada", "land and water " * 30]
    request = embedder_pb2.EmbedRequest(texts=texts, role=QUERY, type=VECTOR_TYPES[type_])
    sent = call(address, request).vectors
    assert len(sent.data) == 2 * 384 * width
    raw = torch.frombuffer(bytearray(sent.data), dtype=getattr(torch, type_)).float().reshape(2, 384)
    if type_ == "int8":
        raw *= torch.frombuffer(bytearray(sent.scales), dtype=torch.float32)[:, None]
    assert np.array_equal(raw.numpy(), client.embed(texts, "query", type=type_).vectors)
    exact, narrow = client.embed(texts, "query").vectors, client.embed(texts, "query", type=type_).vectors
    assert ((exact * narrow).sum(1) / np.linalg.norm(narrow, axis=1)).min() > cosine


def test_token_ids_are_read_as_they_are(client: EmbedderClient, engine: EncoderEngine) -> None:
    tokenized = engine.tokenize(["Canada", "land and water"], "query")
    result = client.embed_ids(tokenized.ids, "query", tokenizer=client.info().tokenizer.digest)
    assert np.abs(result.vectors - client.embed(["Canada", "land and water"], "query").vectors).max() <= 1e-6
    assert result.token_counts == tokenized.counts


def test_token_ids_of_another_tokenizer_are_refused_naming_both(client: EmbedderClient) -> None:
    with pytest.raises(MismatchError, match="f00") as caught:
        client.embed_ids([[1, 2]], "query", tokenizer="f00")
    assert client.info().tokenizer.digest in caught.value.message


def test_text_that_is_not_utf8_names_its_field(address: str) -> None:
    with open_channel(address) as channel:
        embed = channel.unary_unary("/openbook_proto.v1.Embedder/Embed", response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as caught:
            embed(b"\x0a\x01a\x0a\x02\xff\xfe\x10\x01", timeout=10)
    error = error_from_rpc(caught.value, "embedder")
    assert isinstance(error, ArgumentError)
    assert error.field == "texts[1]"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (embedder_pb2.EmbedRequest(role=QUERY), "texts"),
        (embedder_pb2.EmbedRequest(role=QUERY, texts=["a", ""]), "texts[1]"),
        (embedder_pb2.EmbedRequest(texts=["a"]), "role"),
        (embedder_pb2.EmbedRequest(role=77, texts=["a"]), "role"),  # type: ignore[arg-type]
        (embedder_pb2.EmbedRequest(role=QUERY, texts=["a"] * 65), "texts"),
        (embedder_pb2.EmbedRequest(role=QUERY, texts=["a", "land " * 1000]), "texts[1]"),
        (embedder_pb2.EmbedRequest(role=QUERY, texts=["x" * 10_000_000], truncate=True), "texts[0]"),
    ],
    ids=["empty list", "empty text", "no role", "unknown role", "too many", "too long", "10 MB"],
)
def test_bad_input_names_its_field(
    address: str, client: EmbedderClient, request_: embedder_pb2.EmbedRequest, field: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        call(address, request_)
    assert caught.value.field == field
    assert len(client.embed(["still there"], "query").vectors) == 1


def test_a_deadline_is_an_error_of_its_own(address: str) -> None:
    texts = ["land and water " * 80] * 64
    with pytest.raises(DeadlineError):
        call(address, embedder_pb2.EmbedRequest(role=QUERY, texts=texts, truncate=True), timeout_s=0.05)


def test_a_full_queue_says_when_to_come_back() -> None:
    process = start(max_texts=8, batch_tokens=256, max_queue_tokens=2048)
    assert process.stdout is not None
    try:
        address = json.loads(process.stdout.readline())["address"]
        request = embedder_pb2.EmbedRequest(role=QUERY, texts=["land and water " * 80] * 8, truncate=True)

        def outcome(_: int) -> OpenbookError | None:
            try:
                call(address, request)
            except OpenbookError as error:
                return error
            return None

        with ThreadPoolExecutor(6) as pool:
            outcomes = list(pool.map(outcome, range(6)))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    refused = [error for error in outcomes if error is not None]
    assert 0 < len(refused) < 6
    assert all(error.reason == "OVERLOADED" and error.retry_after_s for error in refused)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("port", "the port is in use"),
        ("metrics_port", "UnavailableError: metrics cannot listen on 127.0.0.1:"),
        ("batch_tokens", "batch_tokens: 100 is less than one text of 256 tokens"),
    ],
)
def test_a_server_that_cannot_start_says_why(address: str, setting: str, reason: str) -> None:
    value = 100 if setting == "batch_tokens" else int(address.rsplit(":", 1)[1])
    process = start(**{setting: value})
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not out
    assert reason in err
