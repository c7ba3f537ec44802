"""Client channels with the limits that both sides share."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import grpc

from openbook_core.security.dial import Dial
from openbook_core.security.options import DialOptions
from openbook_core.tracing import outgoing

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
LIMITS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
# A server asks a silent connection whether it lives, so that a peer that vanished holds nothing for longer than this.
KEEPALIVE_S = 20.0
# What a server lets a client ask at most, and how often clients ask while calls are open.
_LEAST_PING_S, _CLIENT_KEEPALIVE_S = 5.0, 20.0


def keepalive(every_s: float, *, idle: bool) -> list[tuple[str, int]]:
    """Ask after `every_s` seconds of silence, with or without open calls; half as long is waited for the answer."""
    return [
        ("grpc.keepalive_time_ms", int(1000 * every_s)),
        ("grpc.keepalive_timeout_ms", int(500 * every_s)),
        # The ping that asks has a timeout of its own, 60 s unless it is set.
        ("grpc.http2.ping_timeout_ms", int(500 * every_s)),
        ("grpc.keepalive_permit_without_calls", int(idle)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(1000 * _LEAST_PING_S)),
    ]


def open_channel(address: str, dial: Dial | None = None) -> grpc.Channel:
    """A channel to HOST:PORT; without `dial` as the environment says (`security.options.DialOptions`).

    Each call carries the request id, the trace and the token. It never retries by itself: who retries decides it where
    it can be counted. Raises ConfigError for settings that cannot be used, or a token that would travel in plain text.
    """
    dial = dial or DialOptions.parse({}, source="environment").dial()
    options = [
        *LIMITS,
        *keepalive(_CLIENT_KEEPALIVE_S, idle=False),
        ("grpc.enable_retries", 0),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.initial_reconnect_backoff_ms", 100),
    ]
    return grpc.intercept_channel(dial.channel(address, options), _Outgoing(dial.token))


class _Details(
    namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    pass


class _Outgoing(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds what every call carries."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def _call(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), *outgoing()]
        if token := self._token():
            metadata.append(("authorization", f"Bearer {token}"))
        return continuation(
            _Details(
                details.method,
                details.timeout,
                metadata,
                details.credentials,
                details.wait_for_ready,
                details.compression,
            ),
            request,
        )

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _call
