"""The live source and the prefetch thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from trainer_fakes import SNAPSHOT, FakeRetriever, M

from openbook_core.clients import SearchResult
from openbook_core.errors import ConfigError, OpenbookError, PreconditionError, UnavailableError
from openbook_proto.v1 import retriever_pb2
from openbook_trainer.config import RetrievalConfig
from openbook_trainer.data import Batch, Query
from openbook_trainer.neighbours import LiveSource
from openbook_trainer.prefetch import Prefetch

NOTHING = np.zeros((2, 1), np.int64)
BATCH = Batch(NOTHING, NOTHING, None, (8, 8), ((Query("one", "d0"), None), (Query("two", "d1"), Query("three", "d1"))))


def source(client: FakeRetriever, **changes: Any) -> LiveSource:
    config = RetrievalConfig.parse({"address": "here", "database": "book", **changes})
    return LiveSource(client, config, SNAPSHOT, 2, M)


def test_one_call_with_each_chunks_own_document_excluded() -> None:
    client = FakeRetriever()
    found = source(client).fetch(BATCH)
    assert client.calls == [(["one", "two", "three"], [["d0"], ["d1"], ["d1"]], 2)]
    assert found.lengths_BLK[0, 1].tolist() == [0, 0]
    reply = FakeRetriever().search_text("book", ["one", "two", "three"], 2)
    assert reply.chunks.tokens is not None
    assert reply.chunks.lengths is not None
    for place, query in (((0, 0), 0), ((1, 0), 1), ((1, 1), 2)):
        np.testing.assert_array_equal(found.ids_BLKR[place], reply.chunks.tokens[2 * query : 2 * query + 2])
        assert found.lengths_BLK[place].tolist() == [
            int(a) + int(b) for a, b in reply.chunks.lengths[2 * query : 2 * query + 2]
        ]


def test_nothing_found_is_no_neighbours() -> None:
    class Empty(FakeRetriever):
        def search_text(self, database: str, texts: Sequence[str], k: int, **options: Any) -> SearchResult:
            reply = retriever_pb2.SearchReply(
                snapshot=SNAPSHOT,
                queries=len(texts),
                k=k,
                ids=np.full(len(texts) * k, -1, "<i8").tobytes(),
                scores=np.zeros(len(texts) * k, "<f4").tobytes(),
                chunks=retriever_pb2.Chunks(chunk_length=M),
            )
            return SearchResult.from_proto(reply, tokens_asked=True)

    found = source(Empty()).fetch(BATCH)
    assert not found.masked
    assert not found.lengths_BLK.any()
    assert not found.ids_BLKR.any()


def test_own_document_in_the_reply_is_an_error() -> None:
    client = FakeRetriever()
    client.answer_from = "d1"
    with pytest.raises(OpenbookError, match="'d1' to itself"):
        source(client).fetch(BATCH)


def test_one_document_that_the_database_holds_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it stands: a corpus of several files may begin with one that the database has not."""
    others = [f"x{n}" for n in range(300)]
    with caplog.at_level("WARNING"):
        source(FakeRetriever()).check_exclusions([*others, "d1", "x0"])
    assert "300 of 301 documents of the corpus are not in the database" in caplog.text
    client = FakeRetriever()
    source(client).check_exclusions(["d1", *others])
    assert len(client.calls) == 1, "the rest need not be asked for"
    with pytest.raises(ConfigError, match=r"none of 300 documents of the corpus \(first 'x0'\)"):
        source(FakeRetriever()).check_exclusions(others)
    source(client, exclude_own_document=False).check_exclusions(others)
    assert len(client.calls) == 1


def test_another_snapshot_in_the_reply_is_an_error() -> None:
    client = FakeRetriever()
    client.snapshot = "other"
    with pytest.raises(OpenbookError, match="pinned"):
        source(client).fetch(BATCH)


def test_retry_budget_then_stop_or_mask() -> None:
    down = [UnavailableError("down", retry_after_s=0.001) for _ in range(9)]
    client = FakeRetriever(failures=down[:2])
    assert source(client, retry_budget=2).fetch(BATCH).lengths_BLK.any()
    assert len(client.calls) == 3
    client = FakeRetriever(failures=down)
    with pytest.raises(UnavailableError, match="start it"):
        source(client, retry_budget=2).fetch(BATCH)
    assert len(client.calls) == 3
    masked = source(FakeRetriever(failures=down), retry_budget=0, on_failure="mask").fetch(BATCH)
    assert masked.masked
    assert not masked.lengths_BLK.any()


def test_a_retired_snapshot_is_never_masked() -> None:
    client = FakeRetriever(failures=[PreconditionError("retired")])
    with pytest.raises(PreconditionError):
        source(client, on_failure="mask").fetch(BATCH)
    assert len(client.calls) == 1


def test_prefetch_is_bounded_ordered_and_hands_errors_over() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            if number == 3:
                third.set()
            yield number
        raise ValueError("after the last")

    prefetch = Prefetch(items(), depth=2)
    taken = iter(prefetch)
    assert next(taken) == 0
    assert third.wait(5)
    assert made == [0, 1, 2, 3]
    assert [next(taken) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="after the last"):
        next(taken)
    prefetch.close()


def test_prefetch_closes_while_items_wait() -> None:
    prefetch = Prefetch(iter(range(100)), depth=1)
    assert next(iter(prefetch)) == 0
    prefetch.close()
