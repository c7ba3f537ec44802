"""EmbedStream when gRPC reports the end of a call in either order: to the reading first, or to the callback first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import Mock

import grpc
import pytest

from openbook_embedder.stream import Stream
from openbook_proto.v1 import embedder_pb2


class _Context:
    """What a stream asks of a call's context."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return True

    def time_remaining(self) -> float | None:
        return None


def _ending(error: Exception) -> Iterator[embedder_pb2.EmbedStreamRequest]:
    raise error
    yield


def test_a_caller_who_vanished_ends_the_stream_even_where_the_reading_hears_it_first() -> None:
    assert list(Stream(Mock(), _ending(grpc.RpcError()), _Context()).replies()) == []  # type: ignore[arg-type]


def test_any_other_error_of_the_reading_is_raised() -> None:
    with pytest.raises(ValueError, match="broken"):
        list(Stream(Mock(), _ending(ValueError("broken")), _Context()).replies())  # type: ignore[arg-type]
