"""The file of tokens: who is let in, and what happens while it changes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest
from security_files import Files
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import ArgumentError, AuthenticationError, ConfigError, ForbiddenError
from openbook_core.security.tokens import TokenFile, add_token, scope_of
from openbook_proto.v1 import admin_pb2, embedder_pb2, retriever_pb2


def line(token: str, **fields: object) -> str:
    """A line as any other program would write it."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return json.dumps({"name": "n", "sha256": digest, "scopes": ["read"], **fields}) + "\n"


def write(path: Path, text: str) -> None:
    """Replace in one step, as those do who share a file with a running service."""
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


def test_a_token_opens_its_scopes_and_no_other(files: Files) -> None:
    tokens = TokenFile(files.path("tokens.jsonl"))
    assert tokens.admit(f"Bearer {files.read}", "read", "Search") == "read"
    assert tokens.admit(f"bearer  {files.admin} ", "admin", "Activate") == "admin"
    assert {tokens.admit(f"Bearer {files.both}", scope, "x") for scope in ("read", "admin")} == {"both"}
    with pytest.raises(ForbiddenError, match="'read' has the scope read; Activate needs admin"):
        tokens.admit(f"Bearer {files.read}", "admin", "Activate")
    with pytest.raises(ForbiddenError, match="Search needs read"):
        tokens.admit(f"Bearer {files.admin}", "read", "Search")


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {}x", "Bearer x{}", "Bearer é"]
)
def test_what_is_no_token_is_refused_and_not_repeated(files: Files, sent: str | None) -> None:
    with pytest.raises(AuthenticationError) as refused:
        TokenFile(files.path("tokens.jsonl")).admit(sent and sent.format(files.read), "read", "Search")
    assert files.read not in refused.value.message


def test_the_digest_is_no_token(files: Files) -> None:
    entry = json.loads(files.path("tokens.jsonl").read_text().splitlines()[0])
    with pytest.raises(AuthenticationError):
        TokenFile(files.path("tokens.jsonl")).admit(f"Bearer {entry['sha256']}", "read", "Search")


def test_an_ended_token_is_refused_with_its_end(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(
        line("old", name="a", expires="2020-01-31T00:00:00Z") + line("good", expires="2999-01-31T00:00:00Z")
    )
    tokens = TokenFile(path)
    assert tokens.admit("Bearer good", "read", "x") == "n"
    with pytest.raises(AuthenticationError, match="'a' ended at 2020-01-31"):
        tokens.admit("Bearer old", "read", "x")


def test_tokens_are_replaced_while_the_service_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "t"
    path.write_text(line("first"))
    tokens = TokenFile(path)
    write(path, line("second"))
    assert tokens.admit("Bearer second", "read", "x") == "n"
    with pytest.raises(AuthenticationError):
        tokens.admit("Bearer first", "read", "x")
    for broken in ("", "{}\n", line("third") + "{", line("third", scopes=["write"])):
        write(path, broken)
        assert tokens.admit("Bearer second", "read", "x") == "n"
        assert "stays in force" in caplog.records[-1].message
        with pytest.raises(AuthenticationError):
            tokens.admit("Bearer third", "read", "x")
    path.unlink()
    assert tokens.admit("Bearer second", "read", "x") == "n"
    errors = len(caplog.records)
    assert tokens.admit("Bearer second", "read", "x") == "n"
    assert len(caplog.records) == errors, "a broken file is logged once, not at every call"
    write(path, line("fourth"))
    assert tokens.admit("Bearer fourth", "read", "x") == "n"
    assert all(word not in caplog.text for word in ("first", "second", "third", "fourth"))


BAD_LINES = [
    "",
    "secret-token",
    '["secret-token"]',
    '{"name": "n", "sha256": "secret-token", "scopes": ["read"]}',
    '{"name": "n", "token": "secret-token", "scopes": ["read"]}',
    line("t", scopes=[]),
    line("t", scopes=["write"]),
    line("t", name="a b"),
    line("t", expires="2027-01-31T00:00:00"),
    line("t") + line("u"),
]


@pytest.mark.parametrize("text", BAD_LINES)
def test_a_wrong_file_is_refused_by_line_and_never_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        TokenFile(path)
    assert refused.value.field == "tokens"
    assert "secret-token" not in refused.value.message


def test_every_rpc_has_its_scope() -> None:
    services = [
        service
        for file in (admin_pb2, embedder_pb2, retriever_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    ]
    methods = [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
    admin = {method.rpartition("/")[2] for method in methods if scope_of(method) == "admin"}
    assert admin == {"Register", "Prepare", "Activate", "Rollback", "Abort", "Retire"}
    assert {scope_of(method) for method in methods} == {"admin", "read"}
    assert scope_of("/openbook_proto.v1.DatabaseAdmin/Watch") == "read"
    assert scope_of("/openbook_proto.v1.DatabaseAdmin/NotYetThere") == "admin"
    assert scope_of("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") == "read"
    assert {scope_of(f"/grpc.health.v1.Health/{name}") for name in ("Check", "Watch")} == {None}
    assert scope_of("grpc.health.v1.Health.other/Check") == "read"


def test_a_new_token_is_printed_once_and_kept_as_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text(line("old").strip())  # no newline at its end
    arguments = ["token", "new", "--name", "ci", "--scopes", "read, admin", "--file", str(path)]
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert len(token) > 40
    assert token not in path.read_text()
    tokens = TokenFile(path)
    assert tokens.admit(f"Bearer {token}", "admin", "x") == "ci"
    assert tokens.admit("Bearer old", "read", "x") == "n"
    assert isinstance(CliRunner().invoke(app, arguments).exception, ArgumentError), "the name is taken"
    before = path.read_text()
    for wrong in ({"name": "x", "scopes": ["write"]}, {"name": "x", "scopes": []}, {"name": "a b", "scopes": ["read"]}):
        with pytest.raises(ArgumentError):
            add_token(path, **wrong)  # type: ignore[arg-type]
    assert path.read_text() == before
    ended = add_token(path, "short", ["read"], days=-1)
    with pytest.raises(AuthenticationError, match="'short' ended"):
        tokens.admit(f"Bearer {ended}", "read", "x")
