"""`python -m openbook_core.health grpc://HOST:PORT` or an http:// address: what an image's health check runs.

grpcs:// and https:// are TLS as the environment says: OPENBOOK_TLS_CA and its like (`security.options.DialOptions`). No
token is sent, none is needed. Exit code 0: serving. 1: not, with the reason on standard error. 2: the address is none of
the forms, or the environment's files cannot be used. A gRPC server is healthy when the service named after a `/`, or the
whole server without one, answers SERVING to grpc.health.v1.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from openbook_core.rpc.channel import open_channel
from openbook_core.security.dial import Dial
from openbook_core.security.options import DialOptions

TIMEOUT_S = 3.0


def why_unhealthy(address: str) -> str:
    """ "" where the server at `address` is healthy, else the reason. Raises ValueError for another kind of address."""
    parts = urlsplit(address)
    dial = _tls() if parts.scheme in ("grpcs", "https") else Dial()
    if parts.scheme in ("grpc", "grpcs") and parts.port:
        return _grpc(parts.netloc, parts.path.strip("/"), dial)
    if parts.scheme in ("http", "https"):
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT_S, context=dial.context):
                return ""
        except (urllib.error.URLError, OSError) as error:
            return str(error)
    raise ValueError(f"{address}: give grpc[s]://HOST:PORT[/SERVICE] or http[s]://HOST:PORT/PATH")


def _tls() -> Dial:
    options = DialOptions.parse({}, source="environment")
    if options.tls_ca is None:
        raise ValueError("OPENBOOK_TLS_CA must name the CA's certificates for an address with TLS")
    return Dial(
        tls_ca=options.tls_ca,
        tls_certificate=options.tls_certificate,
        tls_key=options.tls_key,
        tls_server_name=options.tls_server_name,
    )


def _grpc(place: str, service: str, dial: Dial) -> str:
    with open_channel(place, dial) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            return f"{place}: {error.code().name}: {error.details()}"
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return "" if name == "SERVING" else f"{place}: {name}"


def main(arguments: list[str]) -> int:
    try:
        reason = why_unhealthy(" ".join(arguments))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if reason:
        print(reason, file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
