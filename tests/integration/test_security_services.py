"""All services as processes behind mutual TLS and tokens: a swap under load, answers, and one trace through all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core import tracing
from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import AuthenticationError, ForbiddenError, OpenbookError, UnavailableError
from openbook_core.rpc.server import start_server
from openbook_core.security.dial import Dial
from openbook_core.security.tokens import add_token
from openbook_database.registry import open_registry
from openbook_database.snapshot import Snapshot
from openbook_model import save
from openbook_proto.v1 import embedder_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "generator"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "security"))
import retriever_support as support
from generator_fakes import byte_tokenizer, tiny_model
from otlp_collector import Collector, collecting
from retriever_support import DATABASE, Load, Process, TinyEmbedder, TinyEncoder, build_edition, move
from security_files import Files, make_files

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
EMBEDDER = "openbook_proto.v1.Embedder"


@dataclass
class Secured:
    """The router, the address of a generator (with https://), and what is needed to call them. The first edition is live."""

    files: Files
    registry: Path
    editions: list[Path]
    router: Process
    generator: str
    collector: Collector

    @property
    def options(self) -> list[str]:
        """For a verb of the command that calls; without a token."""
        pairs = [(f"--{name.replace('_', '-')}", str(path)) for name, path in self.files.client_tls.items()]
        return ["--router", self.router.address, *(word for pair in pairs for word in pair)]


def start_generator(folder: Path, options: list[str]) -> subprocess.Popen[str]:
    """`python -m openbook_generator` with a tiny model that reads no neighbours."""
    tokenizer, model = folder / "tokenizer", folder / "model"
    byte_tokenizer().save(tokenizer)
    save(tiny_model(gate=0.0), model, tokenizer)
    fixed = [
        "--port",
        "0",
        "--model",
        str(model),
        "--database",
        DATABASE,
        "--dtype",
        "float32",
        "--max-context",
        "2048",
    ]
    with (folder / "generator.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "openbook_generator", *fixed, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    files, registry = make_files(folder / "files"), folder / "registry"
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        collector = stack.enter_context(collecting())
        serves = ["--tokens", str(files.path("tokens.jsonl")), "--tls-client-ca", str(files.path("ca.pem"))]
        for name, path in files.server_tls.items():
            serves += [f"--{name.replace('_', '-')}", str(path)]
        serves += ["--traces-endpoint", collector.endpoint]
        calls = ["--tls-ca", str(files.path("ca.pem")), "--token-file", str(files.path("read"))]
        tracing.setup_traces("embedder", collector.endpoint)
        stack.callback(tracing.stop_traces)
        servicer = TinyEmbedder(TinyEncoder())
        embedder = start_server(
            lambda server: embedder_pb2_grpc.add_EmbedderServicer_to_server(servicer, server),
            host="127.0.0.1",
            port=0,
            services=[EMBEDDER],
            protection=files.protection(mutual=True, tokens=True),
        )
        stack.callback(embedder.stop, 0)
        routing = [*serves, *calls, "--embedder", embedder.address]
        router, *_ = stack.enter_context(support.cluster(folder, registry, *serves, router=routing))
        generator = start_generator(folder, [*serves, *calls, "--retriever", router.address])
        stack.callback(generator.wait, 20)
        stack.callback(generator.terminate)
        editions = [build_edition(folder, edition) for edition in ("2015", "2026")]
        with AdminClient(router.address, files.dial(files.both)) as admin:
            move(admin, admin.register(DATABASE, str(editions[0])).snapshot)
        assert generator.stdout is not None
        line = generator.stdout.readline()
        assert line, (folder / "generator.log").read_text()
        yield Secured(files, registry, editions, router, json.loads(line)["address"], collector)


def openbook(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_swap_under_load(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    files = secured.files
    for name, path in files.client_tls.items():
        monkeypatch.setenv(f"OPENBOOK_{name.upper()}", str(path))
    monkeypatch.setenv("OPENBOOK_TOKEN", files.read)  # of the load's clients, which are told nothing
    both = ["--token-file", str(files.path("both")), *secured.options]
    ids = [openbook("db", "register", DATABASE, str(path), *both).strip() for path in secured.editions]
    load = Load(secured.router.address, TinyEncoder().encode(["T3 river", "T7 coast"]), threads=2)

    def answered() -> set[str]:
        return {result.snapshot for replies in load.replies for _, result in list(replies)}

    with load.running():
        with pytest.raises(ForbiddenError, match="needs admin"):
            openbook("db", "swap", DATABASE, ids[1], *secured.options)
        support.wait_for(lambda: answered() == {ids[0]}, "answers from the old edition")
        swapped = json.loads(openbook("db", "swap", DATABASE, ids[1], *both))
        support.wait_for(lambda: ids[1] in answered(), "answers from the new edition")
    assert swapped["live"] == ids[1]
    assert load.failures == []
    assert load.mixed({snapshot.id: snapshot for snapshot in map(Snapshot.open, secured.editions)}) == []
    assert ids[1] in openbook("db", "list", *secured.options)
    actors = {entry.actor.rpartition(" ")[2] for entry in open_registry(str(secured.registry)).audit(DATABASE)}
    assert actors == {"(both)"}, "who asked stands in the audit, by the token's name"


def test_an_answer_over_https_is_one_trace_through_all_services(secured: Secured) -> None:
    verify = secured.files.dial().context
    assert verify is not None
    assert secured.generator.startswith("https://")
    traced = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "question-9"}
    with (
        httpx.Client(verify=verify) as http,
        openai.OpenAI(
            api_key=secured.files.read, base_url=f"{secured.generator}/v1", http_client=http, max_retries=0
        ) as client,
    ):
        model = client.models.list().data[0].id
        messages = [{"role": "user", "content": "T7 coast"}]
        reply = client.chat.completions.create(model=model, messages=messages, max_tokens=4, extra_headers=traced)  # type: ignore[arg-type]
    retrieval = reply.model_extra["retrieval"]
    assert retrieval["passages"]
    outer = ["HTTP POST /v1/chat/completions", "Retriever/SearchText"]
    inner = ["Embedder/Embed", *["Retriever/Search"] * support.MEMBERS]  # one call for all shards of a process
    spans = secured.collector.wait_for(TRACE, [*outer, *inner])
    (root,), (router,) = ([span for span in spans if span.name == name] for name in outer)
    shards = [span for span in spans if span.name == "Retriever/Search"]
    assert (root.service, root.parent) == ("openbook-generator", "00f067aa0ba902b7")
    assert (router.service, router.parent) == ("openbook-router", root.id)
    assert {(span.service, span.parent) for span in shards} == {("openbook-shard", router.id)}
    assert len(shards) == support.MEMBERS
    embeds = [span for span in spans if span.name == "Embedder/Embed"]
    assert {(span.service, span.parent) for span in embeds} == {("openbook-embedder", router.id)}
    assert {span.attributes["openbook.request_id"] for span in spans} == {"question-9"}
    assert {span.attributes["openbook.snapshot"] for span in (root, router, *shards)} == {retrieval["snapshot"]}
    assert not any(span.error for span in spans)


def test_the_generators_api_asks_for_a_token_and_its_page_does_not(secured: Secured) -> None:
    verify = secured.files.dial().context
    assert verify is not None
    body = {"messages": [{"role": "user", "content": "T7 coast"}], "max_tokens": 2}
    with httpx.Client(base_url=secured.generator, verify=verify) as client:
        for path in ("/", "/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200, path
        for path in ("/v1/models", "/v1/weights"):
            assert client.get(path).status_code == 401, path
        refused = client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="openbook"')
        assert refused.json()["error"]["code"] == "UNAUTHENTICATED"
        assert 'status="401"' in client.get("/metrics").text
    arguments = ["ask", "T7 coast", "--generator", secured.generator, "--max-tokens", "2", *secured.options[2:]]
    assert "shown to the model" in openbook(*arguments, "--token-file", str(secured.files.path("read")))
    with pytest.raises(OpenbookError, match="HTTP 401"):
        openbook(*arguments)


def test_callers_and_services_without_a_right_token(secured: Secured, tmp_path: Path) -> None:
    address, files = secured.router.address, secured.files
    with RetrieverClient(address, files.dial("wrong")) as client, pytest.raises(AuthenticationError):
        client.describe(DATABASE)
    with AdminClient(address, files.dial(files.read)) as admin, pytest.raises(ForbiddenError):
        admin.rollback(DATABASE)
    unnamed = Dial(tls_ca=files.path("ca.pem"), token=files.read)
    with RetrieverClient(address, unnamed) as client, pytest.raises(UnavailableError, match="client's certificate"):
        client.describe(DATABASE, timeout_s=5)
    # A router whose own token the shards and the embedder do not know: its callers' is right, so it is not refused.
    own = tmp_path / "own"
    theirs = add_token(tmp_path / "theirs.jsonl", "theirs", ["read"])
    own.write_text(theirs)
    calls = ["--tls-ca", str(files.path("ca.pem")), "--token-file", str(own)]
    serves = [word for name, path in files.server_tls.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    stranger = support.start_process(secured.registry, tmp_path / "log", "--role", "router", *serves, *calls)
    try:
        refused = pytest.raises(UnavailableError, match="the token is not known here")
        with RetrieverClient(stranger.address, files.dial()) as client, refused:
            client.search(DATABASE, TinyEncoder().encode(["T3"]), 1)
    finally:
        stranger.stop()
