"""The retriever's client against a server in this process: epochs, empty results, values that no message can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from openbook_core.clients import RetrieverClient
from openbook_core.errors import ArgumentError, UnavailableError
from openbook_core.rpc.server import start_server
from openbook_proto.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc

M = 4
QUERIES = np.ones((2, 3), np.float32)


class _Retriever(retriever_pb2_grpc.RetrieverServicer):
    """Finds nothing, in epoch `epoch`; keeps the requests."""

    def __init__(self) -> None:
        self.epoch = 1
        self.asked: list[retriever_pb2.SearchRequest] = []

    def Search(self, request: retriever_pb2.SearchRequest, context: grpc.ServicerContext) -> retriever_pb2.SearchReply:
        return self._nothing(request, request.queries.rows)

    def SearchText(
        self, request: retriever_pb2.SearchTextRequest, context: grpc.ServicerContext
    ) -> retriever_pb2.SearchTextReply:
        return retriever_pb2.SearchTextReply(result=self._nothing(request.search, len(request.texts)))

    def GetChunks(
        self, request: retriever_pb2.GetChunksRequest, context: grpc.ServicerContext
    ) -> retriever_pb2.GetChunksReply:
        return retriever_pb2.GetChunksReply(chunks=retriever_pb2.Chunks(chunk_length=M))

    def Describe(
        self, request: retriever_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> retriever_pb2.DescribeReply:
        return retriever_pb2.DescribeReply(database=request.database, epoch=self.epoch)

    def _nothing(self, request: retriever_pb2.SearchRequest, queries: int) -> retriever_pb2.SearchReply:
        self.asked.append(request)
        return retriever_pb2.SearchReply(
            snapshot="s",
            epoch=self.epoch,
            queries=queries,
            k=request.k,
            ids=np.full(queries * request.k, -1, "<i8").tobytes(),
            scores=np.zeros(queries * request.k, "<f4").tobytes(),
            chunks=retriever_pb2.Chunks(chunk_length=M, token_type=common_pb2.ELEMENT_TYPE_UINT16),
        )


@pytest.fixture
def retriever() -> _Retriever:
    return _Retriever()


@pytest.fixture
def client(retriever: _Retriever) -> Iterator[RetrieverClient]:
    server = start_server(
        lambda s: retriever_pb2_grpc.add_RetrieverServicer_to_server(retriever, s),
        host="127.0.0.1",
        port=0,
        services=["openbook_proto.v1.Retriever"],
    )
    with RetrieverClient(server.address) as client:
        yield client
    server.stop(0)


def test_unpinned_calls_ask_for_no_older_epoch_than_was_seen(retriever: _Retriever, client: RetrieverClient) -> None:
    def asked(**options: Any) -> int:
        client.search(options.pop("database", "book"), QUERIES, 1, **options)
        return retriever.asked[-1].min_epoch

    assert asked() == 0
    retriever.epoch = 5
    assert asked() == 1
    retriever.epoch = 3  # a replica that lags and does not honour min_epoch
    assert asked() == 5
    assert asked() == 5
    assert asked(min_epoch=9) == 9
    assert asked(snapshot="pinned") == 0
    assert asked(database="atlas") == 0
    retriever.epoch = 7
    client.describe("book")
    client.search_text("book", ["a"], 1)
    assert retriever.asked[-1].min_epoch == 7


def test_epochs_are_kept_across_threads(retriever: _Retriever, client: RetrieverClient) -> None:
    retriever.epoch = 4
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.search("book", QUERIES, 1), range(40)))
    client.search("book", QUERIES, 1)
    assert retriever.asked[-1].min_epoch == 4


def test_nothing_found_is_an_empty_table_where_tokens_were_asked_for(client: RetrieverClient) -> None:
    tables = [
        client.search("book", QUERIES, 2, tokens=True).chunks,
        client.search_text("book", ["a"], 2, tokens=True).chunks,
        client.get_chunks("book", "s", np.empty(0, np.int64), tokens=True),
    ]
    for table in tables:
        assert table.tokens is not None
        assert table.lengths is not None
        assert (table.tokens.shape, table.tokens.dtype) == ((0, 2 * M), np.uint32)
        assert (table.lengths.shape, table.lengths.dtype) == ((0, 2), np.uint16)
    unasked = client.search("book", QUERIES, 2).chunks
    assert (unasked.tokens, unasked.lengths) == (None, None)


BAD: list[tuple[Callable[[RetrieverClient], object], str]] = [
    (lambda c: c.search("book", QUERIES, -1), "k"),
    (lambda c: c.search("book", QUERIES, 2**32), "k"),
    (lambda c: c.search("book", QUERIES, 1.5), "k"),  # type: ignore[arg-type]
    (lambda c: c.search("book", QUERIES, 1, min_epoch=-1), "min_epoch"),
    (lambda c: c.search("book", QUERIES, 1, shard=-1), "shard"),
    (lambda c: c.search("bo\ud800ok", QUERIES, 1), "database"),
    (lambda c: c.search("book", QUERIES, 1, snapshot="\udfff"), "snapshot"),
    (lambda c: c.search("book", QUERIES, 1, exclude=[[], ["\ud800"]]), "exclude[1]"),
    (lambda c: c.search("book", QUERIES, 1, exclude=["d1", "d2"]), "exclude"),
    (lambda c: c.search("book", QUERIES[0], 1), "queries"),
    (lambda c: c.search("book", QUERIES.astype(int), 1), "queries"),
    (lambda c: c.search_text("book", ["fine", "\ud800"], 1), "texts[1]"),
    (lambda c: c.search_text("book", ["fine", None], 1), "texts[1]"),  # type: ignore[list-item]
    (lambda c: c.describe("\ud800"), "database"),
    (lambda c: c.get_chunks("book", "\ud800", np.empty(0, np.int64)), "snapshot"),
]


@pytest.mark.parametrize(("call", "field"), BAD)
def test_values_that_no_message_holds_are_refused_by_field(
    client: RetrieverClient, retriever: _Retriever, call: Callable[[RetrieverClient], object], field: str
) -> None:
    with pytest.raises(ArgumentError) as refused:
        call(client)
    assert refused.value.field == field
    assert retriever.asked == []


def test_numpy_counts_are_counts(client: RetrieverClient, retriever: _Retriever) -> None:
    client.search("book", QUERIES, np.int64(3))  # type: ignore[arg-type]
    assert retriever.asked[-1].k == 3


def test_nobody_at_the_address_is_said_in_words() -> None:
    with (
        RetrieverClient("127.0.0.1:1") as client,
        pytest.raises(UnavailableError, match="nothing answers at 127.0.0.1:1"),
    ):
        client.search("book", QUERIES, 1, timeout_s=5.0)
