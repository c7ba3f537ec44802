"""Client channels with the limits that both sides share."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from openbook_core.security.dial import Dial
from openbook_core.security.options import DialOptions
from openbook_core.tracing import outgoing

Metadata = list[tuple[str, str]]

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
    """Ask after `every_s` seconds of silence, with or without open calls; half as long is waited for the answer.

    Connections have no largest age: without retries a call fails now and then where one ends by age.
    """
    return [
        ("grpc.keepalive_time_ms", int(1000 * every_s)),
        ("grpc.keepalive_timeout_ms", int(500 * every_s)),
        # The ping that asks has a timeout of its own, 60 s unless it is set.
        ("grpc.http2.ping_timeout_ms", int(500 * every_s)),
        ("grpc.keepalive_permit_without_calls", int(idle)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(1000 * _LEAST_PING_S)),
    ]


_OPTIONS: list[tuple[str, int]] = [
    *LIMITS,
    *keepalive(_CLIENT_KEEPALIVE_S, idle=False),
    ("grpc.enable_retries", 0),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
]


def open_channel(address: str, dial: Dial | None = None) -> grpc.Channel:
    """A channel to HOST:PORT; without `dial` as the environment says (`security.options.DialOptions`).

    Each call carries the request id, the trace and the token. It never retries by itself: who retries decides it where
    it can be counted. Raises ConfigError for settings that cannot be used, or a token that would travel in plain text.
    """
    dial = dial or DialOptions.parse({}, source="environment").dial()
    return _Channel(dial.channel(address, _OPTIONS), lambda: [*outgoing(), *dial.metadata()])


def open_async_channel(address: str, dial: Dial | None = None) -> tuple[grpc.aio.Channel, Callable[[], Metadata]]:
    """As `open_channel`, for asyncio; and what gives the metadata that each call is to carry."""
    dial = dial or DialOptions.parse({}, source="environment").dial()
    return dial.async_channel(address, _OPTIONS), lambda: [*outgoing(), *dial.metadata()]


class _Channel(grpc.Channel):
    """Adds metadata to every call; gRPC's interceptors would cost each call a tenth of a millisecond."""

    def __init__(self, inner: grpc.Channel, metadata: Callable[[], Metadata]) -> None:
        self._inner, self._metadata = inner, metadata

    def unary_unary(self, *arguments: Any, **options: Any) -> _Callable:
        return _Callable(self._inner.unary_unary(*arguments, **options), self._metadata)

    def unary_stream(self, *arguments: Any, **options: Any) -> _Callable:
        return _Callable(self._inner.unary_stream(*arguments, **options), self._metadata)

    def stream_unary(self, *arguments: Any, **options: Any) -> _Callable:
        return _Callable(self._inner.stream_unary(*arguments, **options), self._metadata)

    def stream_stream(self, *arguments: Any, **options: Any) -> _Callable:
        return _Callable(self._inner.stream_stream(*arguments, **options), self._metadata)

    def subscribe(self, *arguments: Any, **options: Any) -> None:
        self._inner.subscribe(*arguments, **options)

    def unsubscribe(self, callback: Any) -> None:
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Callable:
    """One method of a stub. What a caller gives by itself is not added again."""

    def __init__(self, inner: Any, metadata: Callable[[], Metadata]) -> None:
        self._inner, self._metadata = inner, metadata

    def __call__(self, *arguments: Any, metadata: Any = None, **options: Any) -> Any:
        return self._inner(*arguments, metadata=self._with(metadata), **options)

    def with_call(self, *arguments: Any, metadata: Any = None, **options: Any) -> Any:
        return self._inner.with_call(*arguments, metadata=self._with(metadata), **options)

    def future(self, *arguments: Any, metadata: Any = None, **options: Any) -> Any:
        return self._inner.future(*arguments, metadata=self._with(metadata), **options)

    def _with(self, given: Any) -> Metadata:
        named = dict(given or ())
        return [*(given or ()), *(pair for pair in self._metadata() if pair[0] not in named)]
