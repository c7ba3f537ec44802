"""What the clients share: one channel, a deadline on every call, errors with their details."""

from __future__ import annotations

import operator
from types import TracebackType
from typing import Any, Self

import grpc

from openbook_core.errors import ArgumentError
from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.status import error_from_rpc
from openbook_core.security.dial import Dial


class Client:
    """Owns a channel to one address; use as a context manager or call `close`.

    `dial`: TLS and token; without it what the environment says (`rpc.channel.open_channel`).
    """

    def __init__(self, address: str, dial: Dial | None = None) -> None:
        self.address = address
        self._channel = open_channel(address, dial)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from error


def require_text(field: str, value: str) -> str:
    """`value`, which must be a string that UTF-8 can hold; raises ArgumentError naming `field`."""
    if not isinstance(value, str):
        raise ArgumentError(f"{field}: must be a string, given {type(value).__name__}", field=field)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{field}: half of a surrogate pair at character {error.start} is not text; replace it or leave it out",
            field=field,
        ) from None
    return value


def require_count(field: str, value: int, *, bits: int, least: int = 0) -> int:
    """`value` as an int from `least` to the largest of `bits` bits; raises ArgumentError naming `field`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{field}: must be a whole number, given {value!r}", field=field) from None
    if not least <= number < 2**bits:
        raise ArgumentError(f"{field}: must be from {least} to {2**bits - 1}, given {number}", field=field)
    return number
