"""Bodies that the embedder's HTTP refuses, over a real socket: the client sees the answer, not a reset connection."""

from __future__ import annotations

import json
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from openbook_core import http as core_http
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.http import MAX_BODY_BYTES

sys.path.insert(0, str(Path(__file__).parent))
from embedder_support import RunningEmbedder, running_embedder, write_tiny_encoder

MIB = 1024 * 1024
POST = b"POST /v1/embeddings HTTP/1.1\r\nhost: embedder\r\nconnection: close\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmbedder]:
    threads = torch.get_num_threads()
    folder = write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")
    engine = EncoderEngine.load(folder, dtype="float32", threads=1, options=EncoderOptions(pooling="mean"))
    with running_embedder(engine, max_calls=1) as embedder:
        yield embedder
    torch.set_num_threads(threads)


@contextmanager
def connected(running: RunningEmbedder) -> Iterator[socket.socket]:
    place = urlsplit(running.http)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of what the server sends until it closes."""
    data = b""
    while part := connection.recv(65536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body)


def require_too_large(given: tuple[int, dict[str, str], Any]) -> None:
    status, _, body = given
    assert status == 413
    assert body["error"] == {
        "message": f"the body has more than {MAX_BODY_BYTES} bytes; send less text",
        "type": "invalid_request_error",
        "param": None,
        "code": "BAD_ARGUMENT",
    }


def test_a_declared_length_over_the_limit(running: RunningEmbedder) -> None:
    with connected(running) as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % (20 * MIB))
        connection.sendall(b"x" * (20 * MIB))
        require_too_large(answer(connection))


def test_chunks_over_the_limit(running: RunningEmbedder) -> None:
    with connected(running) as connection:
        connection.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"%x\r\n" % MIB + b"x" * MIB + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        require_too_large(answer(connection))


def test_an_ordinary_client_sees_it(running: RunningEmbedder) -> None:
    request = urllib.request.Request(f"{running.http}/v1/embeddings", b"x" * (MAX_BODY_BYTES + 1))
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    require_too_large((refused.value.code, {}, json.load(refused.value)))


def test_the_largest_body_is_read(running: RunningEmbedder) -> None:
    body = json.dumps({"model": "tiny-query", "input": "land"}).encode()
    with connected(running) as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % MAX_BODY_BYTES)
        connection.sendall(body + b" " * (MAX_BODY_BYTES - len(body)))
        assert answer(connection)[0] == 200


def test_who_asks_first_is_told_before_sending(running: RunningEmbedder) -> None:
    with connected(running) as connection:
        connection.sendall(POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % (20 * MIB))
        require_too_large(answer(connection))


@pytest.mark.parametrize("sent", [2 * MIB, 10])
def test_no_more_than_the_bounds_is_read(running: RunningEmbedder, monkeypatch: pytest.MonkeyPatch, sent: int) -> None:
    """Of a body that is too long to be read to its end, and of one whose end does not come."""
    monkeypatch.setattr(core_http, "_DRAIN_BYTES", 2 * MIB)
    monkeypatch.setattr(core_http, "_DRAIN_S", 0.2 if sent < MIB else 1000.0)
    with connected(running) as connection:
        connection.sendall(POST.replace(b"connection: close\r\n", b"") + b"content-length: 10000000000\r\n\r\n")
        connection.sendall(b"x" * sent)
        given = answer(connection)
        require_too_large(given)
        assert given[1]["connection"] == "close"


@pytest.mark.parametrize(("path", "status"), [("/v1/embeddings", 429), ("/v1/nothing", 404)])
def test_what_is_refused_before_its_body_is_read(running: RunningEmbedder, path: str, status: int) -> None:
    with running.intake.slot(), connected(running) as connection:
        connection.sendall(POST.replace(b"/v1/embeddings", path.encode()) + b"content-length: %d\r\n\r\n" % (8 * MIB))
        connection.sendall(b"x" * (8 * MIB))
        given, _, body = answer(connection)
        assert given == status
        assert body["error"]["type"] == ("rate_limit_error" if status == 429 else "invalid_request_error")


def test_a_kept_connection_goes_on_after_a_refused_body(running: RunningEmbedder) -> None:
    with connected(running) as connection:
        kept = POST.replace(b"connection: close\r\n", b"")
        connection.sendall(kept + b"content-length: %d\r\n\r\n" % (17 * MIB) + b"x" * (17 * MIB))
        first = connection.recv(65536)
        assert re.match(rb"HTTP/1.1 413 ", first)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: embedder\r\nconnection: close\r\n\r\n")
        rest = b""
        while part := connection.recv(65536):
            rest += part
        assert b"HTTP/1.1 200 OK" in rest
