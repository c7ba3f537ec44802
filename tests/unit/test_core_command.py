"""Options made of a configuration, and the health check that images run."""

from __future__ import annotations

import http.server
import threading

import grpc
import pytest
from grpc_health.v1 import health

from openbook_core.command import parse_options
from openbook_core.config import FrozenConfig
from openbook_core.errors import ConfigError
from openbook_core.health import main, why_unhealthy
from openbook_core.rpc.server import start_server


class Group(FrozenConfig):
    size: int = 1


class Settings(FrozenConfig):
    """A service."""

    place: str
    port: int = 1
    wait_s: float | None = None
    names: tuple[str, ...] = ()
    guard: bool = True
    scaled: bool | None = None
    group: Group = Group()


def test_every_plain_setting_is_an_option() -> None:
    given = ["--place=here", "--port", "7", "--wait-s=0.5", "--names", "a", "b", "--no-guard", "--no-scaled"]
    parsed = parse_options(Settings, given, prog="service")
    assert parsed == Settings(place="here", port=7, wait_s=0.5, names=("a", "b"), guard=False, scaled=False)
    assert parse_options(Settings, ["--place=here"], prog="service") == Settings(place="here")


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="port"):
        parse_options(Settings, ["--place=here", "--port=many"], prog="service")
    for wrong in ([], ["--place=here", "--prt=1"], ["--place=here", "--por=1"], ["--place=here", "--group=1"]):
        with pytest.raises(SystemExit) as ended:
            parse_options(Settings, wrong, prog="service")
        assert ended.value.code == 2
    assert "unrecognized arguments: --group=1" in capsys.readouterr().err


def test_grpc_is_healthy_when_it_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    server = start_server(lambda _: None, host="127.0.0.1", port=0, services=[health.SERVICE_NAME])
    address = f"grpc://{server.address}/{health.SERVICE_NAME}"
    try:
        assert "NOT_SERVING" in why_unhealthy(address)
        assert "NOT_SERVING" in why_unhealthy(f"grpc://{server.address}")
        server.set_ready(True)
        assert main([address]) == 0
        assert why_unhealthy(f"grpc://{server.address}") == ""
        assert grpc.StatusCode.NOT_FOUND.name in why_unhealthy(f"grpc://{server.address}/another")
    finally:
        server.stop(0)
    assert main([address]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err
    assert main(["redis://127.0.0.1:1"]) == 2


def test_http_is_healthy_when_it_answers() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        assert why_unhealthy(f"{base}/healthz") == ""
        assert "503" in why_unhealthy(f"{base}/readyz")
        server.shutdown()
