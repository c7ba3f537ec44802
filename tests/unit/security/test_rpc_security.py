"""TLS and tokens over real sockets: who gets an answer from a gRPC server, and who an error that says why."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from security_files import Files, make_files

from openbook_core.clients import AdminClient, EmbedderClient, RetrieverClient
from openbook_core.errors import AuthenticationError, ForbiddenError, OpenbookError, UnavailableError
from openbook_core.health import main as health_main
from openbook_core.health import why_unhealthy
from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.server import RunningServer, start_server
from openbook_core.security.dial import Dial
from openbook_core.security.options import Protection
from openbook_core.security.tokens import TokenFile, caller
from openbook_proto.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    embedder_pb2,
    embedder_pb2_grpc,
    retriever_pb2,
    retriever_pb2_grpc,
)

RETRIEVER = "openbook_proto.v1.Retriever"


class _Services(
    retriever_pb2_grpc.RetrieverServicer, admin_pb2_grpc.DatabaseAdminServicer, embedder_pb2_grpc.EmbedderServicer
):
    """Answers with who asked; `read` counts messages of streams."""

    def __init__(self) -> None:
        self.read = 0

    def Describe(self, request: Any, context: Any) -> Any:
        return retriever_pb2.DescribeReply(database=caller())

    def Rollback(self, request: Any, context: Any) -> Any:
        return admin_pb2.RollbackReply(state=admin_pb2.DatabaseState(database=caller()))

    def List(self, request: Any, context: Any) -> Any:
        return admin_pb2.ListReply(databases=[admin_pb2.DatabaseState(database=caller())])

    def EmbedStream(self, requests: Any, context: Any) -> Any:
        for each in requests:
            self.read += 1
            yield embedder_pb2.EmbedStreamReply(sequence=each.sequence)


@contextmanager
def serving(
    protection: Protection, services: _Services | None = None, *, reflects: bool = True
) -> Iterator[RunningServer]:
    each = services or _Services()

    def register(server: grpc.Server) -> None:
        retriever_pb2_grpc.add_RetrieverServicer_to_server(each, server)
        admin_pb2_grpc.add_DatabaseAdminServicer_to_server(each, server)
        embedder_pb2_grpc.add_EmbedderServicer_to_server(each, server)

    server = start_server(
        register, host="127.0.0.1", port=0, services=[RETRIEVER], protection=protection, reflects=reflects
    )
    server.set_ready(True)
    try:
        yield server
    finally:
        server.stop(0)


def describe(address: str, dial: Dial) -> str:
    with RetrieverClient(address, dial) as client:
        return client.describe("book", timeout_s=5).database


def test_tls_answers_those_who_trust_it(files: Files, tmp_path: Any) -> None:
    stranger = trustme.CA()
    (tmp_path / "stranger.pem").write_bytes(stranger.cert_pem.bytes())
    with serving(files.protection()) as server:
        assert describe(server.address, Dial(tls_ca=files.path("ca.pem"))) == ""
        with pytest.raises(UnavailableError, match="does it ask for TLS"):
            describe(server.address, Dial())
        with pytest.raises(UnavailableError, match="no TLS connection .* is --tls-ca the CA"):
            describe(server.address, Dial(tls_ca=tmp_path / "stranger.pem"))
    with serving(Protection()) as plain, pytest.raises(UnavailableError, match="does it serve TLS"):
        describe(plain.address, Dial(tls_ca=files.path("ca.pem")))


def test_the_name_in_the_certificate_counts(tmp_path: Any) -> None:
    files = make_files(tmp_path / "named", "shard.openbook")
    with serving(files.protection()) as server:
        with pytest.raises(UnavailableError, match="--tls-server-name"):
            describe(server.address, Dial(tls_ca=files.path("ca.pem")))
        describe(server.address, Dial(tls_ca=files.path("ca.pem"), tls_server_name="shard.openbook"))


def test_mutual_tls_wants_a_certificate_of_its_ca(files: Files, tmp_path: Any) -> None:
    other = make_files(tmp_path / "other")
    with serving(files.protection(mutual=True)) as server:
        assert describe(server.address, files.dial()) == ""
        theirs = Dial(
            tls_ca=files.path("ca.pem"), tls_certificate=other.path("client.pem"), tls_key=other.path("client.key")
        )
        for refused in (Dial(tls_ca=files.path("ca.pem")), theirs, Dial()):
            with pytest.raises(UnavailableError):
                describe(server.address, refused)


def test_a_new_certificate_is_served_without_a_restart(files: Files, tmp_path: Any) -> None:
    old, new = Dial(tls_ca=files.path("ca.pem")), make_files(tmp_path / "new")
    with serving(files.protection()) as server, RetrieverClient(server.address, old) as open_before:
        open_before.describe("book")
        files.path("server.pem").write_text("not a certificate")
        assert describe(server.address, old) == "", "what cannot be used is not taken"
        for name in ("server.key", "server.pem"):
            files.path(name).write_bytes(new.path(name).read_bytes())
        assert describe(server.address, Dial(tls_ca=new.path("ca.pem"))) == ""
        with pytest.raises(UnavailableError):
            describe(server.address, old)
        open_before.describe("book")  # a connection that is there lives on


def test_tokens_and_their_scopes(files: Files) -> None:
    with serving(files.protection(tokens=True)) as server:

        def asked(call: Any, token: str) -> str:
            with AdminClient(server.address, files.dial(token)) as client:
                return call(client)

        def roll_back(client: AdminClient) -> str:
            return client.rollback("book", timeout_s=5).database

        assert describe(server.address, files.dial(files.read)) == "read"
        assert asked(lambda client: client.list()[0].database, files.read) == "read"
        assert asked(roll_back, files.admin) == "admin"
        assert asked(roll_back, files.both) == "both"
        with pytest.raises(ForbiddenError, match=r"'read' has the scope read; .*DatabaseAdmin/Rollback needs admin"):
            asked(roll_back, files.read)
        with pytest.raises(ForbiddenError, match="needs read"):
            describe(server.address, files.dial(files.admin))
        for token in ("", "wrong", f"{files.read}x"):
            with pytest.raises(AuthenticationError):
                describe(server.address, files.dial(token))
            with pytest.raises(AuthenticationError):
                asked(roll_back, token)


def test_a_token_that_was_taken_back_ends_an_open_channel(files: Files) -> None:
    path = files.path("tokens.jsonl")
    with (
        serving(Protection(tokens=TokenFile(path))) as server,
        RetrieverClient(server.address, Dial(token=files.read)) as client,
    ):
        client.describe("book")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
        with pytest.raises(AuthenticationError, match="taken back"):
            client.describe("book")


def test_a_client_with_a_new_token_in_its_file_goes_on(files: Files) -> None:
    tokens = files.path("tokens.jsonl")
    with (
        serving(Protection(tokens=TokenFile(tokens))) as server,
        RetrieverClient(server.address, Dial(token_file=files.path("read"))) as client,
    ):
        client.describe("book")
        tokens.write_text(tokens.read_text().splitlines(keepends=True)[2])
        files.path("read").write_text(files.both)
        assert client.describe("book").database == "both"


def test_health_needs_no_token_and_reflection_does(files: Files, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with serving(files.protection(mutual=True, tokens=True)) as server:
        with open_channel(server.address, files.dial()) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest(service=RETRIEVER)
            assert stub.Check(asked, timeout=5).status == health_pb2.HealthCheckResponse.SERVING
            watch = stub.Watch(asked, timeout=5)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            with pytest.raises(grpc.RpcError) as refused:
                ProtoReflectionDescriptorDatabase(channel).get_services()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with open_channel(server.address, files.dial(files.read)) as channel:
            assert RETRIEVER in ProtoReflectionDescriptorDatabase(channel).get_services()
        address = f"grpcs://{server.address}/{RETRIEVER}"
        assert health_main([address]) == 2
        assert "OPENBOOK_TLS_CA" in capsys.readouterr().err
        for name, path in files.client_tls.items():
            monkeypatch.setenv(f"OPENBOOK_{name.upper()}", str(path))
        monkeypatch.setenv("OPENBOOK_TOKEN", "wrong")
        assert why_unhealthy(address) == ""
        assert "UNAVAILABLE" in why_unhealthy(f"grpc://{server.address}")


def test_reflection_can_be_switched_off(files: Files) -> None:
    with serving(files.protection(), reflects=False) as server, open_channel(server.address, files.dial()) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status


def test_a_stream_without_a_token_is_refused_before_a_message_is_read(files: Files) -> None:
    services = _Services()
    with serving(files.protection(tokens=True), services) as server:
        with EmbedderClient(server.address, files.dial()) as client, pytest.raises(AuthenticationError):
            next(client.embed_stream([["text"]], "passage"))
        assert services.read == 0
        with open_channel(server.address, files.dial(files.read)) as channel:
            stub = embedder_pb2_grpc.EmbedderStub(channel)
            call = stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest(sequence=7)]), timeout=5)
            assert [reply.sequence for reply in call] == [7]


def test_futures_and_threads_carry_the_token(files: Files) -> None:
    with serving(files.protection(tokens=True)) as server:
        with open_channel(server.address, files.dial(files.read)) as channel:
            stub = retriever_pb2_grpc.RetrieverStub(channel)
            calls = [stub.Describe.future(retriever_pb2.DescribeRequest(), timeout=5) for _ in range(8)]
            assert {call.result().database for call in calls} == {"read"}
        with RetrieverClient(server.address, files.dial("wrong")) as client:
            seen: list[OpenbookError] = []

            def ask() -> None:
                try:
                    client.search("book", np.ones((1, 2), np.float32), 1, timeout_s=5)
                except OpenbookError as error:
                    seen.append(error)

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [type(error) for error in seen] == [AuthenticationError] * 4


def test_a_token_is_not_written_to_the_log(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with serving(files.protection(tokens=True)) as server:
        describe(server.address, files.dial(files.read))
        with pytest.raises(ForbiddenError):
            describe(server.address, files.dial(files.admin))
        with pytest.raises(AuthenticationError):
            describe(server.address, files.dial("a-wrong-token"))
    assert not any(token in caplog.text for token in (files.read, files.admin, "a-wrong-token"))
