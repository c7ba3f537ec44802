"""The retriever's client for asyncio: as `RetrieverClient`, and many searches in flight for training's prefetch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from openbook_core.clients.base import require_text
from openbook_core.clients.retries import Retries
from openbook_core.clients.retriever import ChunkTable, Epochs, SearchResult, chunks_request, search_request
from openbook_core.errors import OpenbookError
from openbook_core.rpc.channel import open_async_channel
from openbook_core.rpc.status import error_from_rpc
from openbook_core.security.dial import Dial
from openbook_proto.v1 import retriever_pb2, retriever_pb2_grpc


class AsyncRetrieverClient:
    """Calls one router or shard at HOST:PORT from one event loop; use as a context manager or await `close`.

    Never retries unless it is given `retries`.
    """

    def __init__(self, address: str, dial: Dial | None = None, retries: Retries | None = None) -> None:
        self.address = address
        self._channel, self._metadata = open_async_channel(address, dial)
        self._stub: Any = retriever_pb2_grpc.RetrieverStub(self._channel)
        self._retries = retries or Retries(attempts=1)
        self._epochs = Epochs()

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def search(
        self, database: str, queries: NDArray[Any], k: int, *, timeout_s: float = 30.0, **options: Any
    ) -> SearchResult:
        """As `RetrieverClient.search`."""
        request = search_request(database, k, queries=queries, **options)
        self._epochs.ask_for_seen(request)
        reply = await self._call(self._stub.Search, request, timeout_s)
        return self._epochs.result(request, reply)

    async def search_text(
        self, database: str, texts: Sequence[str], k: int, *, timeout_s: float = 30.0, **options: Any
    ) -> SearchResult:
        """As `RetrieverClient.search_text`."""
        whole = [require_text(f"texts[{place}]", text) for place, text in enumerate(texts)]
        request = retriever_pb2.SearchTextRequest(texts=whole, search=search_request(database, k, **options))
        self._epochs.ask_for_seen(request.search)
        reply = await self._call(self._stub.SearchText, request, timeout_s)
        return self._epochs.result(request.search, reply.result)

    async def get_chunks(
        self, database: str, snapshot: str, ids: NDArray[np.int64], *, timeout_s: float = 30.0, **options: Any
    ) -> ChunkTable:
        """As `RetrieverClient.get_chunks`."""
        request = chunks_request(database, snapshot, ids, **options)
        reply = await self._call(self._stub.GetChunks, request, timeout_s)
        return ChunkTable.from_proto(reply.chunks, tokens_asked=request.fields.tokens)

    async def search_many(
        self,
        database: str,
        batches: AsyncIterable[NDArray[Any]],
        k: int,
        *,
        in_flight: int = 4,
        timeout_s: float = 30.0,
        **options: Any,
    ) -> AsyncIterator[SearchResult | OpenbookError]:
        """The results of many batches of queries in their order, at most `in_flight` asked at a time.

        A batch that fails gives its error in its place; the others go on. Batches are read no faster than results are
        taken.
        """
        pending: list[asyncio.Task[SearchResult]] = []
        try:
            async for queries in batches:
                search = self.search(database, queries, k, timeout_s=timeout_s, **options)
                pending.append(asyncio.ensure_future(search))
                if len(pending) == in_flight:
                    yield await _outcome(pending.pop(0))
            while pending:
                yield await _outcome(pending.pop(0))
        finally:
            for task in pending:
                task.cancel()

    async def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        self._retries.earn()
        tried = 0
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            try:
                return await method(request, timeout=left_s, metadata=self._metadata())
            except grpc.aio.AioRpcError as failure:
                tried += 1
                error = error_from_rpc(failure, self.address)
                wait_s = self._retries.wait_s(error, tried, deadline - time.monotonic())
                if wait_s is None:
                    raise error from failure
            await asyncio.sleep(wait_s)


async def _outcome(task: asyncio.Task[SearchResult]) -> SearchResult | OpenbookError:
    try:
        return await task
    except OpenbookError as error:
        return error
