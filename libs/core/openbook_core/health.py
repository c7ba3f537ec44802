"""`python -m openbook_core.health grpc://HOST:PORT` or an http:// address: what an image's health check runs.

Exit code 0: serving. 1: not, with the reason on standard error. 2: the address is neither form. A gRPC server is healthy
when the service named after a `/`, or the whole server without one, answers SERVING to grpc.health.v1.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def why_unhealthy(address: str) -> str:
    """ "" where the server at `address` is healthy, else the reason. Raises ValueError for another kind of address."""
    parts = urlsplit(address)
    if parts.scheme == "grpc" and parts.port:
        return _grpc(parts.netloc, parts.path.strip("/"))
    if parts.scheme == "http":
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT_S):
                return ""
        except (urllib.error.URLError, OSError) as error:
            return str(error)
    raise ValueError(f"{address}: give grpc://HOST:PORT[/SERVICE] or http://HOST:PORT/PATH")


def _grpc(place: str, service: str) -> str:
    with grpc.insecure_channel(place) as channel:
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
