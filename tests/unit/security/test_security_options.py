"""Settings of TLS and tokens that cannot be used, by field; and where a token may travel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
from security_files import Files

from openbook_cli.security_options import DIALS, SERVES, SERVES_AND_DIALS
from openbook_core.clients import RetrieverClient
from openbook_core.errors import ConfigError
from openbook_core.security.options import DialingServerOptions, DialOptions, ServerOptions

SERVER: list[tuple[Callable[[Files], dict[str, object]], str]] = [
    (lambda f: {"tls_certificate": f.path("server.pem")}, "tls_key"),
    (lambda f: {"tls_key": f.path("server.key")}, "tls_certificate"),
    (lambda f: {"tls_client_ca": f.path("ca.pem")}, "tls_certificate"),
    (lambda f: {**f.server_tls, "tls_certificate": f.path("absent")}, "tls_certificate"),
    (lambda f: {**f.server_tls, "tls_certificate": f.path("tokens.jsonl")}, "tls_certificate"),
    (lambda f: {**f.server_tls, "tls_key": f.path("absent")}, "tls_key"),
    (lambda f: {**f.server_tls, "tls_key": f.path("tokens.jsonl")}, "tls_key"),
    (lambda f: {**f.server_tls, "tls_key": f.path("client.key")}, "tls_key"),
    (lambda f: {**f.server_tls, "tls_client_ca": f.folder}, "tls_client_ca"),
    (lambda f: {**f.server_tls, "tls_client_ca": f.path("server.key")}, "tls_client_ca"),
    (lambda f: {"tokens": f.path("absent")}, "tokens"),
    (lambda f: {"tokens": f.path("ca.pem")}, "tokens"),
]


@pytest.mark.parametrize(("settings", "field"), SERVER)
def test_a_server_refuses_files_by_field(
    files: Files, settings: Callable[[Files], dict[str, object]], field: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        ServerOptions.parse(settings(files)).protection("127.0.0.1")
    assert refused.value.field == field
    assert str(files.folder) in refused.value.message or "missing" in refused.value.message


CLIENT: list[tuple[Callable[[Files], dict[str, object]], str]] = [
    (lambda f: {"tls_ca": f.path("absent")}, "tls_ca"),
    (lambda f: {"tls_ca": f.path("server.key")}, "tls_ca"),
    (lambda f: {**f.client_tls, "tls_key": None}, "tls_key"),
    (lambda f: {**f.client_tls, "tls_certificate": None}, "tls_certificate"),
    (lambda f: {**f.client_tls, "tls_ca": None}, "tls_ca"),
    (lambda f: {**f.client_tls, "tls_key": f.path("server.key")}, "tls_key"),
    (lambda f: {"tls_server_name": "retriever"}, "tls_ca"),
    (lambda f: {"token_file": f.path("absent")}, "token_file"),
    (lambda f: {"token_file": f.path("tokens.jsonl")}, "token_file"),
]


@pytest.mark.parametrize(("settings", "field"), CLIENT)
def test_a_client_refuses_files_by_field(
    files: Files, settings: Callable[[Files], dict[str, object]], field: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        DialOptions.parse(settings(files)).dial()
    assert refused.value.field == field


def test_the_environment_is_taken_where_no_option_is_given(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBOOK_TOKEN", "from-the-environment")
    assert DialOptions().dial().token() == "from-the-environment"
    monkeypatch.setenv("OPENBOOK_TOKEN_FILE", str(files.path("read")))
    assert DialOptions().dial().token() == files.read
    assert DialOptions.parse({"token_file": files.path("both")}).dial().token() == files.both
    monkeypatch.setenv("OPENBOOK_TLS_CA", str(files.path("ca.pem")))
    assert DialOptions().dial().context is not None
    monkeypatch.setenv("OPENBOOK_SERVER_TOKENS", str(files.path("tokens.jsonl")))
    assert ServerOptions().protection("127.0.0.1").tokens is not None
    monkeypatch.setenv("OPENBOOK_PLAINTEXT_TOKEN", "perhaps")
    with pytest.raises(ConfigError, match="plaintext_token"):
        DialOptions.parse({})


def test_a_client_reads_its_token_again_when_the_file_changes(files: Files) -> None:
    dial = DialOptions.parse({"token_file": files.path("read")}).dial()
    files.path("read").write_text(files.both)
    assert dial.token() == files.both


@pytest.mark.parametrize("address", ["10.0.0.7:7000", "retriever:7000", "[2001:db8::1]:7000", "dns:///retriever:7000"])
def test_no_token_leaves_the_host_in_plain_text(files: Files, address: str) -> None:
    given: dict[str, Any] = {"token_file": files.path("read")}
    with pytest.raises(ConfigError) as refused:
        RetrieverClient(address, DialOptions.parse(given).dial())
    assert refused.value.field == "plaintext_token"
    with pytest.raises(ConfigError):
        DialOptions.parse(given).dial().http(f"http://{address.removeprefix('dns:///')}")
    for allowed in (given | {"plaintext_token": True}, given | {"tls_ca": files.path("ca.pem")}, {}):
        RetrieverClient(address, DialOptions.parse(allowed).dial()).close()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.8.8.8:1"])
def test_on_this_host_a_token_travels_in_plain_text(files: Files, address: str) -> None:
    dial = DialOptions.parse({"token_file": files.path("read")}).dial()
    RetrieverClient(address, dial).close()
    assert dial.http(f"http://{address}")["headers"] == {"authorization": f"Bearer {files.read}"}


@pytest.mark.parametrize(
    ("host", "tls", "warned"), [("0.0.0.0", False, True), ("0.0.0.0", True, False), ("127.0.0.1", False, False)]
)
def test_tokens_without_tls_on_a_network_are_warned_of(
    files: Files, caplog: pytest.LogCaptureFixture, host: str, tls: bool, warned: bool
) -> None:
    given = {"tokens": files.path("tokens.jsonl"), **(files.server_tls if tls else {})}
    ServerOptions.parse(given).protection(host)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warned


def test_the_commands_options_are_the_settings() -> None:
    for options, kind in ((DIALS, DialOptions), (SERVES, ServerOptions), (SERVES_AND_DIALS, DialingServerOptions)):
        fields = kind.model_fields
        assert set(options) == set(fields)
        for name, (given, _) in options.items():
            wanted = fields[name].annotation
            assert given is (get_args(wanted)[0] if isinstance(wanted, UnionType) else wanted), name


def test_a_service_shows_its_own_certificate_unless_another_is_named(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = DialingServerOptions.parse({**files.server_tls, "tls_ca": files.path("ca.pem")})
    shown: list[Path | None] = []
    monkeypatch.setattr(DialOptions, "dial", lambda self: shown.append(self.tls_certificate))
    options.dial()
    monkeypatch.setenv("OPENBOOK_TLS_CERTIFICATE", str(files.path("client.pem")))
    options.dial()
    DialingServerOptions.parse(files.server_tls).dial()
    assert [path and path.name for path in shown] == ["server.pem", "client.pem", "client.pem"]
