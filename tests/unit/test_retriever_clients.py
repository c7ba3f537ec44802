"""The retriever's clients, sync and async, against a server that refuses, waits and answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from openbook_core.clients import AsyncRetrieverClient, Retries, RetrieverClient, SearchResult
from openbook_core.errors import ArgumentError, DeadlineError, OpenbookError, OverloadedError, UnavailableError
from openbook_core.rpc.server import start_server
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc

QUERIES = np.ones((2, 3), np.float32)


class Stubborn(retriever_pb2_grpc.RetrieverServicer):
    """Raises its errors one after another, then answers with the first element of each query as id."""

    def __init__(self) -> None:
        self.errors: list[OpenbookError] = []
        self.asked: list[pb.SearchRequest] = []
        self.slow_s = 0.0

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        self.asked.append(request)
        time.sleep(self.slow_s)
        if self.errors:
            raise self.errors.pop(0)
        queries_QD = np.frombuffer(request.queries.data, "<f4").reshape(request.queries.rows, -1)
        if queries_QD[0, 0] == 13:
            raise ArgumentError("queries: unlucky", field="queries")
        ids_QK = np.repeat(queries_QD[:, :1].astype("<i8"), request.k, axis=1)
        return pb.SearchReply(
            snapshot=request.snapshot or "live", epoch=7, queries=len(ids_QK), k=request.k,
            ids=ids_QK.tobytes(), scores=ids_QK.astype("<f4").tobytes(),
        )  # fmt: skip


@pytest.fixture
def served() -> Iterator[tuple[Stubborn, str]]:
    servicer = Stubborn()
    running = start_server(
        lambda server: retriever_pb2_grpc.add_RetrieverServicer_to_server(servicer, server),
        host="127.0.0.1", port=0, services=["openbook_proto.v1.Retriever"],
    )  # fmt: skip
    yield servicer, running.address
    running.stop(0)


def search_sync(address: str, retries: Retries | None, **options: Any) -> SearchResult:
    with RetrieverClient(address, retries=retries) as client:
        return client.search("book", QUERIES, 2, **options)


def search_async(address: str, retries: Retries | None, **options: Any) -> SearchResult:
    async def search() -> SearchResult:
        async with AsyncRetrieverClient(address, retries=retries) as client:
            return await client.search("book", QUERIES, 2, **options)

    return asyncio.run(search())


Search = Callable[..., SearchResult]
both = pytest.mark.parametrize("search", [search_sync, search_async])


@both
def test_a_search_is_answered_with_the_pin_and_views_of_the_reply(served: tuple[Stubborn, str], search: Search) -> None:
    result = search(served[1], None, snapshot="pinned")
    assert result.snapshot == "pinned"
    assert result.ids.tolist() == [[1, 1], [1, 1]]
    assert not result.ids.flags.owndata
    assert not result.scores.flags.owndata


@both
def test_nothing_is_tried_again_unless_it_is_asked_for(served: tuple[Stubborn, str], search: Search) -> None:
    servicer, address = served
    servicer.errors = [UnavailableError("away")]
    with pytest.raises(UnavailableError, match="away"):
        search(address, None)
    assert len(servicer.asked) == 1


@both
def test_overload_and_absence_are_tried_again_and_mistakes_are_not(
    served: tuple[Stubborn, str], search: Search
) -> None:
    servicer, address = served
    servicer.errors = [UnavailableError("away"), OverloadedError("full", retry_after_s=0.02)]
    assert search(address, Retries(first_s=0.001)).ids[0, 0] == 1
    assert len(servicer.asked) == 3
    servicer.errors = [ArgumentError("k: is wrong", field="k")]
    with pytest.raises(ArgumentError) as refused:
        search(address, Retries(first_s=0.001))
    assert refused.value.field == "k"
    assert len(servicer.asked) == 4


@both
def test_a_delay_beyond_the_deadline_is_not_waited_for(served: tuple[Stubborn, str], search: Search) -> None:
    servicer, address = served
    servicer.errors = [OverloadedError("full", retry_after_s=60.0)]
    with pytest.raises(OverloadedError) as refused:
        search(address, Retries(), timeout_s=5.0)
    assert refused.value.retry_after_s == pytest.approx(60.0)
    servicer.slow_s = 0.5
    with pytest.raises(DeadlineError):
        search(address, Retries(), timeout_s=0.1)


def test_the_budget_ends_and_is_earned_again() -> None:
    retries = Retries(attempts=100, share=0.5, saved=2.0, first_s=0.001)
    error = UnavailableError("away")
    assert [retries.wait_s(error, 1, 10.0) is None for _ in range(3)] == [False, False, True]
    retries.earn()
    assert retries.wait_s(error, 1, 10.0) is None
    retries.earn()
    assert retries.wait_s(error, 1, 10.0) is not None
    assert Retries(attempts=2).wait_s(error, 2, 10.0) is None
    waits = [Retries(first_s=0.1, attempts=9).wait_s(error, tried, 100.0) for tried in (1, 2, 3)]
    assert all(wait is not None and 0.1 * 2**n <= wait <= 0.2 * 2**n for n, wait in enumerate(waits))


def test_many_searches_keep_their_order_and_an_error_its_place(served: tuple[Stubborn, str]) -> None:
    servicer, address = served
    given: list[int] = []

    async def batches() -> AsyncIterator[NDArray[np.float32]]:
        for number in (11, 12, 13, 14, 15, 16):
            given.append(number)
            yield np.full((1, 3), number, np.float32)

    async def run() -> list[SearchResult | OpenbookError]:
        found: list[SearchResult | OpenbookError] = []
        async with AsyncRetrieverClient(address) as client:
            async for result in client.search_many("book", batches(), 1, in_flight=2):
                assert len(given) <= len(found) + 2
                found.append(result)
        return found

    found = asyncio.run(run())
    assert isinstance(found.pop(2), ArgumentError)
    assert [each.ids[0, 0] for each in found if isinstance(each, SearchResult)] == [11, 12, 14, 15, 16]
    assert {request.min_epoch for request in servicer.asked[3:]} == {7}, "no older epoch than was seen"
