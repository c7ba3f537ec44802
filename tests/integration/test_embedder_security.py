"""The embedder behind TLS and tokens over gRPC and HTTP, its spans, and callers that vanish without a word."""

from __future__ import annotations

import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch

from openbook_core import tracing
from openbook_core.clients import EmbedderClient
from openbook_core.errors import AuthenticationError
from openbook_core.rpc.channel import open_channel
from openbook_core.security.dial import Dial
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "security"))
from embedder_support import MODEL, RunningEmbedder, running_embedder, write_tiny_encoder
from otlp_collector import collecting
from security_files import Files, make_files

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EncoderEngine]:
    threads = torch.get_num_threads()
    folder = write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")
    yield EncoderEngine.load(folder, dtype="float32", threads=1, options=EncoderOptions(pooling="mean"))
    torch.set_num_threads(threads)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return make_files(tmp_path / "files")


@pytest.fixture
def secured(engine: EncoderEngine, files: Files) -> Iterator[RunningEmbedder]:
    with running_embedder(engine, protection=files.protection(mutual=True, tokens=True)) as running:
        yield running


def trusting(files: Files, *, shown: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.path("ca.pem")))
    if shown:
        context.load_cert_chain(files.path("client.pem"), files.path("client.key"))
    return context


def test_the_openai_client_with_our_token(secured: RunningEmbedder, files: Files) -> None:
    assert secured.http.startswith("https://")
    with EmbedderClient(secured.address, files.dial(files.read)) as client:
        expected = client.embed(["a text"], "query").vectors[0]

    def ask(key: str) -> list[float]:
        http = httpx.Client(verify=trusting(files))
        with openai.OpenAI(api_key=key, base_url=f"{secured.http}/v1", http_client=http, max_retries=0) as client:
            reply = client.embeddings.create(model=f"{MODEL}-query", input="a text", encoding_format="float")
            return reply.data[0].embedding

    assert ask(files.read) == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(openai.AuthenticationError, match="not known here"):
        ask("wrong")
    with pytest.raises(openai.PermissionDeniedError, match="needs read"):
        ask(files.admin)


def test_http_refuses_in_openais_shape_and_leaves_probes_open(secured: RunningEmbedder, files: Files) -> None:
    with httpx.Client(base_url=secured.http, verify=trusting(files)) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200, path
        for path in ("/v1/models", "/v1/nothing", "/healthz/", "/healthz/x"):
            refused = client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == 'Bearer realm="openbook"'
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "UNAUTHENTICATED")
            assert "authorization: Bearer TOKEN" in error["message"]
        assert client.post("/v1/embeddings", content=b"x" * 8_000_000).status_code == 401, "seen for a large body too"
        refused = client.get("/v1/models", headers={"authorization": f"Bearer {files.admin}"})
        assert refused.status_code == 403
        assert "insufficient_scope" in refused.headers["www-authenticate"]
        assert client.get("/v1/models", headers={"authorization": f"Bearer {files.read}"}).status_code == 200
    assert secured.value("openbook_embedder_http_replies_total", path="other", status="401") == 5
    for context in (trusting(files, shown=False), ssl.create_default_context()):
        with pytest.raises(httpx.TransportError), httpx.Client(verify=context) as stranger:
            stranger.get(f"{secured.http}/healthz")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{secured.http.replace('https', 'http')}/healthz")


def test_https_serves_a_new_certificate_without_a_restart(engine: EncoderEngine, files: Files, tmp_path: Path) -> None:
    new = make_files(tmp_path / "new")
    with running_embedder(engine, protection=files.protection()) as running:
        address = f"{running.http}/healthz"
        assert httpx.get(address, verify=trusting(files)).status_code == 200
        for name in ("server.key", "server.pem"):
            files.path(name).write_bytes(new.path(name).read_bytes())
        assert httpx.get(address, verify=trusting(new)).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(address, verify=trusting(files))


def test_spans_of_both_endpoints_belong_to_the_callers_trace(
    engine: EncoderEngine, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    headers = {"traceparent": TRACEPARENT, "x-request-id": "question-7"}
    with collecting() as collector, running_embedder(engine, protection=files.protection(tokens=True)) as running:
        tracing.setup_traces("embedder", collector.endpoint)
        try:
            with httpx.Client(base_url=running.http, verify=trusting(files), headers=headers) as client:
                body = {"model": f"{MODEL}-query", "input": ["a", "b c"]}
                allowed = {"authorization": f"Bearer {files.read}"}
                assert client.post("/v1/embeddings", json=body, headers=allowed).status_code == 200
                assert client.post("/v1/embeddings", json=body).status_code == 401
                assert client.get("/healthz").status_code == 200
            with open_channel(running.address, files.dial(files.read)) as channel:
                request = embedder_pb2.EmbedRequest(texts=["a"], role=embedder_pb2.EMBED_ROLE_QUERY)
                embed = embedder_pb2_grpc.EmbedderStub(channel).Embed
                embed(request, metadata=[("traceparent", TRACEPARENT), ("x-request-id", "question-8")])
        finally:
            tracing.stop_traces()
        spans = collector.wait_for(TRACE, {"HTTP POST /v1/embeddings", "Embedder/Embed", "queue", "network"})
    refused, http, rpc = (
        next(s for s in spans if s.name == name and s.attributes.get("openbook.status") == status)
        for name, status in (
            ("HTTP POST /v1/embeddings", 401),
            ("HTTP POST /v1/embeddings", 200),
            ("Embedder/Embed", None),
        )
    )
    assert {span.parent for span in (refused, http, rpc)} == {"b7ad6b7169203331"}
    assert [http.attributes["openbook.request_id"], rpc.attributes["openbook.request_id"]] == [
        "question-7",
        "question-8",
    ]
    for server, texts in ((http, 2), (rpc, 1)):
        inside = {span.name: span for span in spans if span.parent == server.id}
        assert set(inside) == {"queue", "network"}
        assert {span.attributes["openbook.texts"] for span in inside.values()} == {texts}
        assert 0 < sum(span.nanoseconds for span in inside.values()) <= server.nanoseconds
    assert not [span for span in spans if span.parent == refused.id or "healthz" in span.name]


class VanishingProxy:
    """Forwards one TCP connection at a time until `vanish`: then nothing passes, and both sides stay open."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._target, self._ended = (host, int(port)), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def vanish(self) -> None:
        self._ended.set()
        self._thread.join(10)

    def close(self) -> None:
        self.vanish()
        for each in (self._listener, self._client, self._server):
            each.close()

    def _run(self) -> None:
        self._client, _ = self._listener.accept()
        self._server = socket.create_connection(self._target)
        to = {self._client: self._server, self._server: self._client}
        while not self._ended.is_set():
            for each in select.select(list(to), [], [], 0.05)[0]:
                if data := each.recv(65536):
                    to[each].sendall(data)
                else:
                    return


def test_a_caller_that_vanished_gives_its_slot_back(engine: EncoderEngine) -> None:
    with running_embedder(engine, keepalive_s=1.0, max_calls=1) as running:
        proxy = VanishingProxy(running.address)
        with open_channel(proxy.address, Dial()) as channel:
            stub = embedder_pb2_grpc.EmbedderStub(channel)
            ended = threading.Event()
            request = embedder_pb2.EmbedRequest(texts=["a"], role=embedder_pb2.EMBED_ROLE_PASSAGE)

            def messages() -> Iterator[embedder_pb2.EmbedStreamRequest]:
                yield embedder_pb2.EmbedStreamRequest(request=request)
                ended.wait(60)

            stream = stub.EmbedStream(messages())
            assert next(stream).reply.token_counts
            assert running.intake._free._value == 0
            time.sleep(2.5)
            assert running.intake._free._value == 0, "a silent caller that answers the ping is not given up"
            proxy.vanish()
            deadline = time.monotonic() + 15
            while running.intake._free._value == 0:
                assert time.monotonic() < deadline, "the slot of a caller that vanished is still taken"
                time.sleep(0.05)
            ended.set()
            stream.cancel()
        with EmbedderClient(running.address, Dial()) as client:
            assert len(client.embed(["a"], "query").vectors) == 1
        proxy.close()


def test_a_build_with_a_wrong_token_says_so(secured: RunningEmbedder, files: Files) -> None:
    from openbook_database.remote_encoder import RemoteEncoder

    with EmbedderClient(secured.address, files.dial("wrong")) as client, pytest.raises(AuthenticationError):
        RemoteEncoder(client)
    with EmbedderClient(secured.address, files.dial(files.read)) as client:
        assert RemoteEncoder(client).encode(["a", "b"]).shape == (2, 32)
