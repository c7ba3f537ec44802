"""One contract over gRPC's Embed, EmbedStream and HTTP: bad input, admission, faults, streams, builds, metrics."""

from __future__ import annotations

import base64
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import openai
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from openbook_core.clients import EmbedderClient
from openbook_core.clients.embedder import EmbedResult
from openbook_core.errors import ArgumentError, DeadlineError, MismatchError, OpenbookError, OverloadedError
from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.status import error_from_rpc
from openbook_database.build.run import build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.remote_encoder import RemoteEncoder
from openbook_database.testing import tiny_rows, tiny_tokenizer, write_rows
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.stream import MAX_STREAM_MESSAGES
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))
from embedder_support import MODEL, RunningEmbedder, running_embedder, write_tiny_encoder

QUERY = embedder_pb2.EMBED_ROLE_QUERY
Embed = Callable[[RunningEmbedder, dict[str, Any]], None]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EncoderEngine]:
    threads = torch.get_num_threads()
    yield EncoderEngine.load(
        write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny"),
        dtype="float32",
        threads=1,
        options=EncoderOptions(pooling="mean"),
    )
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def embedder(engine: EncoderEngine) -> Iterator[RunningEmbedder]:
    with running_embedder(engine, max_texts=64, batch_tokens=2048, max_queue_tokens=8192) as running:
        yield running


@pytest.fixture(scope="module")
def client(embedder: RunningEmbedder) -> Iterator[EmbedderClient]:
    with EmbedderClient(embedder.address) as client:
        yield client


class HeldEncoder:
    """Stands in front of an engine's encoder: holds every batch until `gate` is set, raises `failure`."""

    def __init__(self, engine: EncoderEngine) -> None:
        self._encode = engine.encode_batch
        self.gate = threading.Event()
        self.failure: BaseException | None = None
        self.batches: list[list[list[int]]] = []
        self.threads: set[str] = set()

    def __call__(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.batches.append([list(row) for row in ids])
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        return self._encode(ids)


@pytest.fixture
def held(engine: EncoderEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldEncoder]:
    encoder = HeldEncoder(engine)
    monkeypatch.setattr(engine, "encode_batch", encoder)
    yield encoder
    encoder.gate.set()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def request_of(given: dict[str, Any]) -> embedder_pb2.EmbedRequest:
    return embedder_pb2.EmbedRequest(
        role=given.get("role", QUERY),
        texts=given.get("texts", []),
        token_ids=[embedder_pb2.TokenIds(ids=ids) for ids in given.get("ids", [])],
        tokenizer=given.get("tokenizer", ""),
        truncate=given.get("truncate", False),
    )


def over_grpc(running: RunningEmbedder, given: dict[str, Any]) -> None:
    with open_channel(running.address) as channel:
        try:
            embedder_pb2_grpc.EmbedderStub(channel).Embed(request_of(given), timeout=60)
        except grpc.RpcError as error:
            raise error_from_rpc(error, "embedder") from None


def over_a_stream(running: RunningEmbedder, given: dict[str, Any]) -> None:
    """The message between two good ones, which are answered whatever happens to it."""
    good = request_of({"texts": ["good"]})
    messages = [
        embedder_pb2.EmbedStreamRequest(sequence=n, request=each)
        for n, each in enumerate([good, request_of(given), good])
    ]
    with open_channel(running.address) as channel:
        replies = {each.sequence: each for each in embedder_pb2_grpc.EmbedderStub(channel).EmbedStream(iter(messages))}
    assert [replies[n].WhichOneof("outcome") for n in (0, 2)] == ["reply", "reply"]
    if replies[1].error:
        from google.rpc import status_pb2

        from openbook_core.rpc.status import error_from_status

        raise error_from_status(status_pb2.Status.FromString(replies[1].error))


def over_http(running: RunningEmbedder, given: dict[str, Any]) -> None:
    role = {QUERY: "query", 0: None}.get(given.get("role", QUERY), "unknown")
    body = {"model": MODEL, "input": given.get("texts") or given.get("ids") or [], "input_type": role}
    body |= {key: given[key] for key in ("tokenizer", "truncate") if key in given}
    status, answer, _ = post(running, body)
    if status != 200:
        error = answer["error"]
        kind = {400: ArgumentError, 413: ArgumentError, 409: MismatchError}[status]
        raise kind(error["message"], field={"input_type": "role"}.get(error["param"], error["param"]))


def post(running: RunningEmbedder, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    request = urllib.request.Request(
        f"{running.http}/v1/embeddings", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply), dict(reply.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


ENDPOINTS = [over_grpc, over_a_stream, over_http]
# What is given, the field at fault over gRPC, and over HTTP.
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "empty list": ({"texts": []}, "texts", "input"),
    "empty string": ({"texts": ["a", ""]}, "texts[1]", "input[1]"),
    "10 MB": ({"texts": ["x" * 10_000_000], "truncate": True}, "texts[0]", "input[0]"),
    "no role": ({"texts": ["a"], "role": 0}, "role", "role"),
    "unknown role": ({"texts": ["a"], "role": 77}, "role", "role"),
    "too many": ({"texts": ["a"] * 65}, "texts", "input"),
    "too long": ({"texts": ["a", "land " * 1000]}, "texts[1]", "input[1]"),
    "more tokens than the queue": ({"texts": ["land " * 200] * 60}, "texts", "input"),
    "ids out of range": ({"ids": [[5], [40_000]], "tokenizer": "right"}, "token_ids[1]", "input[1]"),
    "no ids": ({"ids": [[5], []], "tokenizer": "right"}, "token_ids[1]", "input[1]"),
    "too many ids": ({"ids": [[5] * 300], "tokenizer": "right", "truncate": True}, "token_ids[0]", "input[0]"),
    "ids of no tokenizer": ({"ids": [[5]]}, "tokenizer", "tokenizer"),
    "ids of another tokenizer": ({"ids": [[5]], "tokenizer": "other"}, "tokenizer", "tokenizer"),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_alone_by_field(embedder: RunningEmbedder, case: str, endpoint: Embed) -> None:
    given, field, http_field = BAD[case]
    if given.get("tokenizer") == "right":
        given = {**given, "tokenizer": embedder.intake.tokenizer.digest}
    with pytest.raises(MismatchError if "another" in case else ArgumentError) as refused:
        endpoint(embedder, given)
    assert refused.value.field == (http_field if endpoint is over_http else field)
    endpoint(embedder, {"texts": ["still there"]})


def test_bytes_that_are_not_text(embedder: RunningEmbedder) -> None:
    wrong = b"\x0a\x01a\x0a\x02\xff\xfe\x10\x01"
    with open_channel(embedder.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/openbook_proto.v1.Embedder/Embed")(wrong, timeout=20)
        assert error_from_rpc(refused.value, "").field == "texts[1]"
        message = b"\x12" + bytes([len(wrong)]) + wrong
        with pytest.raises(grpc.RpcError) as ended:
            list(channel.stream_stream("/openbook_proto.v1.Embedder/EmbedStream")(iter([message]), timeout=20))
        assert error_from_rpc(ended.value, "").field == "request.texts[1]"
    request = urllib.request.Request(f"{embedder.http}/v1/embeddings", b'{"input": "\xff"}')
    with pytest.raises(urllib.error.HTTPError) as bad:
        urllib.request.urlopen(request, timeout=20)
    assert bad.value.code == 400


def test_the_openai_client(embedder: RunningEmbedder, engine: EncoderEngine) -> None:
    texts = ["Canada", "land and water " * 10]
    tokens = sum(engine.tokenize(texts).counts)
    with openai.OpenAI(base_url=f"{embedder.http}/v1", api_key="none", max_retries=0) as client:
        assert [each.id for each in client.models.list()] == [MODEL, f"{MODEL}-query", f"{MODEL}-passage"]
        for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            reply = client.embeddings.create(model=f"{MODEL}-passage", input=texts, **form)  # type: ignore[call-overload]
            rows = [each.embedding for each in reply.data]
            if form.get("encoding_format") == "base64":
                rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
            assert np.abs(np.array(rows) - engine.encode(texts)).max() <= 1e-5
            assert reply.usage.prompt_tokens == tokens
        one = client.embeddings.create(model=MODEL, input="Canada", extra_body={"input_type": "query"})
        assert len(one.data[0].embedding) == 32
        ids = engine.tokenize(texts).ids
        digest = {"tokenizer": embedder.intake.tokenizer.digest}
        by_ids = client.embeddings.create(model=f"{MODEL}-passage", input=ids, extra_body=digest)
        assert np.abs(np.array([each.embedding for each in by_ids.data]) - engine.encode(texts)).max() <= 1e-5
        cut = client.embeddings.create(model=f"{MODEL}-query", input=["land " * 999], extra_body={"truncate": True})
        assert cut.data[0].model_dump()["truncated"] is True
        assert cut.data[0].model_dump()["tokens"] == engine.max_tokens
        with pytest.raises(openai.BadRequestError, match="input_type: say query or passage"):
            client.embeddings.create(model=MODEL, input="a")
        with pytest.raises(openai.NotFoundError, match="served are"):
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model=f"{MODEL}-query", input="a", dimensions=8)


def test_the_other_paths(embedder: RunningEmbedder) -> None:
    for path in ("healthz", "readyz"):
        with urllib.request.urlopen(f"{embedder.http}/{path}", timeout=20) as reply:
            assert reply.status == 200
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{embedder.http}/v1/nothing", timeout=20)
    assert (
        json.load(missing.value)["error"]["message"] == "there is no /v1/nothing; answers come from POST /v1/embeddings"
    )


def test_every_endpoint_is_admitted_by_one_rule(engine: EncoderEngine, held: HeldEncoder) -> None:
    long = {"texts": ["land " * 200] * 5}
    with (
        running_embedder(engine, batch_tokens=256, max_queue_tokens=1100) as running,
        ThreadPoolExecutor(4) as pool,
    ):
        first = pool.submit(over_grpc, running, {"texts": ["first"]})
        wait_for(lambda: held.batches)
        waiting = pool.submit(over_grpc, running, long)
        wait_for(lambda: running.value("openbook_embedder_queue_texts") == 5)
        with pytest.raises(OverloadedError) as refused:
            over_grpc(running, long)
        status, answer, headers = post(running, {"model": MODEL, "input": long["texts"], "input_type": "query"})
        assert (status, answer["error"]["code"]) == (429, "OVERLOADED")
        assert refused.value.retry_after_s is not None
        assert int(headers["retry-after"]) >= 1
        streamed = pool.submit(over_a_stream, running, long)
        held.gate.set()
        for each in (first, waiting, streamed):
            each.result(60)
        assert running.value("openbook_embedder_requests_total", endpoint="Embed", outcome="OVERLOADED") == 1
        assert running.value("openbook_embedder_requests_total", endpoint="HTTP", outcome="OVERLOADED") == 1


def test_calls_over_their_number_are_refused_and_health_still_answers(engine: EncoderEngine, held: HeldEncoder) -> None:
    with running_embedder(engine, max_calls=2) as running, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(over_grpc, running, {"texts": [f"text {n}"]}) for n in range(2)]
        wait_for(lambda: running.intake._free._value == 0)
        with pytest.raises(OverloadedError, match="max_calls") as refused:
            over_grpc(running, {"texts": ["third"]})
        assert refused.value.retry_after_s is not None
        assert health(running) == health_pb2.HealthCheckResponse.SERVING
        held.gate.set()
        for each in calls:
            each.result(60)


def health(running: RunningEmbedder) -> Any:
    """Of the service, and of the server as a whole, which says the same."""
    with open_channel(running.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest
        whole, service = (
            check(request(service=name), timeout=10).status for name in ("", "openbook_proto.v1.Embedder")
        )
    return service if whole == service else None


def test_a_dead_worker_turns_health_off_until_another_one_answers(engine: EncoderEngine, held: HeldEncoder) -> None:
    with running_embedder(engine) as running, ThreadPoolExecutor(1) as pool:
        held.failure = SystemExit("the thread ends")
        call = pool.submit(over_grpc, running, {"texts": ["a"]})
        held.gate.set()
        with pytest.raises(OpenbookError, match="the encoding thread ended"):
            call.result(60)
        wait_for(lambda: health(running) == health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(urllib.error.HTTPError) as not_ready:
            urllib.request.urlopen(f"{running.http}/readyz", timeout=20)
        assert not_ready.value.code == 503
        held.failure = None
        wait_for(lambda: health(running) == health_pb2.HealthCheckResponse.SERVING)
        over_grpc(running, {"texts": ["b"]})
        assert running.value("openbook_embedder_worker_restarts_total") == 1


@contextmanager
def busy_then_idle(running: RunningEmbedder, held: HeldEncoder) -> Iterator[None]:
    """Inside the encoder is busy with one text; then only that one and one that comes after have been encoded."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(over_grpc, running, {"texts": ["first"]})
        wait_for(lambda: held.batches)
        try:
            yield
        finally:
            held.gate.set()
        first.result(60)
        over_grpc(running, {"texts": ["after"]})
        assert [len(batch) for batch in held.batches] == [1, 1]


def test_who_leaves_costs_nothing(engine: EncoderEngine, held: HeldEncoder) -> None:
    with (
        running_embedder(engine) as running,
        busy_then_idle(running, held),
        open_channel(running.address) as channel,
    ):
        stub = embedder_pb2_grpc.EmbedderStub(channel)
        left = stub.Embed.future(request_of({"texts": ["left"] * 10}))
        stream = stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest(request=request_of({"texts": ["left"] * 7}))]))
        wait_for(lambda: running.value("openbook_embedder_queue_texts") == 17)
        left.cancel()
        stream.cancel()
        with pytest.raises(DeadlineError):
            over_grpc_within(running, 0.2)
        wait_for(lambda: running.intake._free._value == running.intake.config.max_calls - 1)


def test_who_leaves_the_queue_over_http_costs_nothing(engine: EncoderEngine, held: HeldEncoder) -> None:
    body = json.dumps({"model": MODEL, "input": ["left"] * 10, "input_type": "query"}).encode()
    with running_embedder(engine) as running, busy_then_idle(running, held):
        with socket.create_connection(_http_place(running)) as connection:
            connection.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            wait_for(lambda: running.value("openbook_embedder_queue_texts") == 10)
        wait_for(lambda: running.intake._free._value == running.intake.config.max_calls - 1)


def test_a_deadline_passes_in_the_queue_over_http(
    engine: EncoderEngine, held: HeldEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbook_embedder.http.TIMEOUT_S", 0.3)
    with running_embedder(engine) as running, busy_then_idle(running, held):
        status, answer, _ = post(running, {"model": MODEL, "input": ["late"], "input_type": "query"})
        assert (status, answer["error"]["code"]) == (504, "DEADLINE")


def test_a_stream_that_waits_for_room_ends_at_its_deadline(engine: EncoderEngine, held: HeldEncoder) -> None:
    with (
        running_embedder(engine, batch_tokens=256, max_queue_tokens=256) as running,
        busy_then_idle(running, held),
        open_channel(running.address) as channel,
    ):
        stream = embedder_pb2_grpc.EmbedderStub(channel).EmbedStream
        messages = [
            embedder_pb2.EmbedStreamRequest(sequence=n, request=request_of({"texts": ["land " * 200]})) for n in (0, 1)
        ]
        with pytest.raises(grpc.RpcError) as late:
            list(stream(iter(messages), timeout=0.5))
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: running.intake._free._value == running.intake.config.max_calls - 1)


def test_a_body_that_does_not_come_gives_its_place_back(
    embedder: RunningEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbook_core.http._BODY_S", 0.3)
    monkeypatch.setattr("openbook_core.http._DRAIN_S", 0.1)
    with socket.create_connection(_http_place(embedder)) as connection:
        connection.sendall(b'POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"input"')
        reply = connection.recv(4096)
        assert reply.startswith(b"HTTP/1.1 504")
        wait_for(lambda: embedder.intake._free._value == embedder.intake.config.max_calls)


def _http_place(running: RunningEmbedder) -> tuple[str, int]:
    host, _, port = running.http.removeprefix("http://").rpartition(":")
    return host, int(port)


def over_grpc_within(running: RunningEmbedder, timeout_s: float) -> None:
    with EmbedderClient(running.address) as client:
        client.embed(["late"], "query", timeout_s=timeout_s)


def test_who_leaves_in_the_middle_of_a_body_is_no_fault_of_ours(embedder: RunningEmbedder) -> None:
    def outcomes(outcome: str) -> float:
        return embedder.value("openbook_embedder_requests_total", endpoint="HTTP", outcome=outcome)

    left, faults = outcomes("DEADLINE"), outcomes("INTERNAL")
    with socket.create_connection(_http_place(embedder)) as connection:
        connection.sendall(b'POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"input"')
    wait_for(lambda: outcomes("DEADLINE") + outcomes("INTERNAL") > left + faults)
    assert (outcomes("DEADLINE"), outcomes("INTERNAL")) == (left + 1, faults)


def test_tokens_are_made_off_the_encoders_thread(engine: EncoderEngine, held: HeldEncoder) -> None:
    """While the encoder is busy another call is tokenised and queued."""
    with running_embedder(engine) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(over_grpc, running, {"texts": ["first"]})
        wait_for(lambda: held.batches)
        second = pool.submit(over_grpc, running, {"texts": ["second"]})
        wait_for(lambda: running.value("openbook_embedder_queue_texts") == 1)
        assert running.value("openbook_embedder_stage_seconds_count", stage="tokenize") == 2
        assert running.value("openbook_embedder_stage_seconds_count", stage="encode") == 0
        held.gate.set()
        first.result(60)
        second.result(60)
        assert held.threads == {"embedder-batches"}


def test_a_stream_is_read_no_further_than_its_credits(engine: EncoderEngine, held: HeldEncoder) -> None:
    with running_embedder(engine) as running, EmbedderClient(running.address) as client:
        blocks = ([f"block {n}"] for n in range(40))
        results = client.embed_stream(blocks, "passage", window=40)

        def read() -> float:
            """Blocks off the wire: those in the held batch, however many had come when it was made, and the queued."""
            return len(held.batches[0]) + running.value("openbook_embedder_queue_texts")

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, results)
            wait_for(lambda: held.batches and read() == MAX_STREAM_MESSAGES)
            time.sleep(0.3)
            assert read() == MAX_STREAM_MESSAGES
            held.gate.set()
            vectors = [outcome.vectors for outcome in [first.result(60), *results] if isinstance(outcome, EmbedResult)]
    expected_ND = engine.encode([f"block {n}" for n in range(40)])
    assert np.abs(np.concatenate(vectors) - expected_ND).max() <= 1e-5


def test_results_of_a_stream_come_in_order_and_an_error_is_one_of_them(client: EmbedderClient) -> None:
    results = list(client.embed_stream([["a", "b"], [""], ["c"]], "query"))
    assert [len(each.vectors) for each in results if isinstance(each, EmbedResult)] == [2, 1]
    assert isinstance(results[1], ArgumentError)
    assert results[1].field == "texts[0]"
    assert list(client.embed_stream([], "query")) == []


def test_an_error_of_the_callers_blocks_is_the_callers(client: EmbedderClient) -> None:
    def blocks() -> Iterator[list[str]]:
        yield ["a"]
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(client.embed_stream(blocks(), "query"))


def test_a_build_through_the_service_gives_the_same_bytes(
    engine: EncoderEngine, embedder: RunningEmbedder, client: EmbedderClient, tmp_path: Path
) -> None:
    """While other callers keep the service's batches mixed."""
    source = write_rows(tmp_path / "rows.jsonl", tiny_rows(60, words=160))
    settings = BuildSettings(chunk_length=16, embed_block=48)

    def build(name: str, encoder: Any) -> Path:
        built = build_snapshot(
            [source], tmp_path / name, database="tiny", tokenizer=tiny_tokenizer(), encoder=encoder, settings=settings
        )
        assert built.chunks > 4 * 48
        return built.path

    here = build("here", engine)
    done = threading.Event()

    def disturb() -> int:
        calls = 0
        while not done.is_set():
            client.embed([f"noise {calls} " * (1 + calls % 9)] * 5, "query")
            calls += 1
        return calls

    with ThreadPoolExecutor(1) as pool:
        noise = pool.submit(disturb)
        there = build("there", RemoteEncoder(client))
        done.set()
        assert noise.result(60) > 3
    files = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    for name in files:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


def test_a_build_notices_another_embedder(client: EmbedderClient) -> None:
    encoder = RemoteEncoder(client)
    encoder.dtype = "bfloat16"
    with pytest.raises(MismatchError, match="is .* in float32"):
        encoder.encode(["a"])


def test_metrics_tell_queue_batches_padding_and_stages(embedder: RunningEmbedder, client: EmbedderClient) -> None:
    client.embed(["a", "a longer text than the other"], "query")
    with urllib.request.urlopen(f"{embedder.http}/metrics", timeout=20) as reply:
        text = reply.read().decode()
    for name in ("queue_texts", "queue_tokens", "batch_tokens_count", "padding_share_sum", "ready"):
        assert f"openbook_embedder_{name}" in text
    for stage in ("tokenize", "queue", "encode"):
        assert embedder.value("openbook_embedder_stage_seconds_count", stage=stage) > 0
    assert embedder.value("openbook_embedder_padding_share_sum") > 0
