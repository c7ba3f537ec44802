"""What the clients share: one channel, a deadline on every call, errors with their details."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import grpc

from openbook_core.rpc.channel import open_channel
from openbook_core.rpc.status import error_from_rpc
from openbook_core.telemetry import request_id


class Client:
    """Owns a channel to one address; use as a context manager or call `close`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = open_channel(address)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        current = request_id()
        try:
            return method(request, timeout=timeout_s, metadata=[("x-request-id", current)] if current else None)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from error
