"""Small calls that leave the router together: each gets what it would have got alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from openbook_core.errors import ArgumentError, DeadlineError, OpenbookError, UnavailableError
from openbook_core.vectors import encode_vectors
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.coalescing import Coalescer, key_of

SNAPSHOT = "a" * 64


def request(*numbers: int, **fields: Any) -> pb.SearchRequest:
    queries_QD = np.asarray([[number, 1] for number in numbers], np.float32)
    return pb.SearchRequest(**{"database": "book", "k": 2, "queries": encode_vectors(queries_QD), **fields})


class Shards:
    """Answers a query n with chunk n, and a second one where n is even; `gate` holds answers back."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.asked: list[list[int]] = []
        self.error: OpenbookError | None = None

    def search(self, whole: pb.SearchRequest, timeout_s: float) -> pb.SearchReply:
        numbers = np.frombuffer(whole.queries.data, "<f4").reshape(whole.queries.rows, 2)[:, 0].astype(int).tolist()
        self.asked.append(numbers)
        self.entered.release()
        assert self.gate.wait(min(10, timeout_s))
        if self.error is not None:
            raise self.error
        if len(numbers) > 1 and 13 in numbers:
            raise ArgumentError("queries: hold a 13", field="queries")
        ids = [[number, number + 100 if number % 2 == 0 else -1] for number in numbers]
        found = [i for row in ids for i in row if i != -1]
        documents = sorted(set(found))
        return pb.SearchReply(
            snapshot=SNAPSHOT,
            queries=len(numbers),
            k=2,
            ids=np.asarray(ids, "<i8").tobytes(),
            scores=np.asarray(ids, "<f4").tobytes(),
            chunks=pb.Chunks(
                chunk_length=1,
                token_type="ELEMENT_TYPE_UINT16",
                tokens=np.asarray([[i, i + 1] for i in found], "<u2").tobytes(),
                lengths=np.ones((len(found), 2), "<u2").tobytes(),
                texts=[f"t{i}" for i in found],
                continuation_texts=[f"c{i}" for i in found],
                documents=[pb.Document(number=i) for i in documents],
                document_index=[documents.index(i) for i in found],
            ),
        )


class Callers:
    """Threads that ask one coalescer; the first call is under way and the others wait when `together` returns."""

    def __init__(self, shards: Shards, pool: ThreadPoolExecutor) -> None:
        self.shards, self.pool, self.coalescer = shards, pool, Coalescer()

    def ask(self, asked: pb.SearchRequest, timeout_s: float = 10.0) -> Future[pb.SearchReply]:
        key = key_of(asked, SNAPSHOT)
        assert key is not None
        return self.pool.submit(self.coalescer.search, key, asked, timeout_s, 1, self.shards.search)

    def together(self, *asked: pb.SearchRequest) -> list[Future[pb.SearchReply]]:
        first = self.ask(asked[0])
        assert self.shards.entered.acquire(timeout=10)
        others = [self.ask(each) for each in asked[1:]]
        end = time.monotonic() + 10
        while sum(map(len, self.coalescer._waiting.values())) < len(others):
            assert time.monotonic() < end
            time.sleep(0.005)
        return [first, *others]


FIELDS = pb.Fields(tokens=True, text=True, document=True)


@pytest.mark.parametrize("fields", [FIELDS, pb.Fields(tokens=True)])
def test_calls_that_gather_leave_as_one_and_get_their_own_answers(fields: pb.Fields) -> None:
    shards = Shards()
    calls = [request(n, *range(n + 1, n + 1 + n % 3), fields=fields) for n in (1, 20, 31, 42, 53)]
    with ThreadPoolExecutor(8) as pool:
        found = Callers(shards, pool).together(*calls)
        shards.gate.set()
        replies = [each.result(10) for each in found]
    assert sorted(map(len, shards.asked)) == [2, sum(call.queries.rows for call in calls[1:])]
    for call, reply in zip(calls, replies, strict=True):
        alone = shards.search(call, 1.0)
        assert (reply.ids, reply.scores, reply.queries, reply.k) == (alone.ids, alone.scores, alone.queries, 2)
        assert reply.chunks.tokens == alone.chunks.tokens
        if fields.text:
            assert reply.chunks.texts == alone.chunks.texts
            numbers = [reply.chunks.documents[place].number for place in reply.chunks.document_index]
            assert numbers == [alone.chunks.documents[place].number for place in alone.chunks.document_index]


def test_what_a_shard_refuses_in_one_does_not_fail_the_others() -> None:
    shards = Shards()
    with ThreadPoolExecutor(8) as pool:
        found = Callers(shards, pool).together(request(1), request(2), request(13), request(4))
        shards.gate.set()
        replies = [each.result(10) for each in found]
    assert [np.frombuffer(reply.ids, "<i8")[0] for reply in replies] == [1, 2, 13, 4]
    assert sorted(shards.asked) == [[1], [2], [2, 13, 4], [4], [13]]


def test_where_no_shard_answers_each_caller_is_told() -> None:
    shards = Shards()
    with ThreadPoolExecutor(8) as pool:
        found = Callers(shards, pool).together(*(request(number) for number in range(4)))
        shards.error = UnavailableError("gone")
        shards.gate.set()
        assert [str(each.exception(10)) for each in found] == ["gone"] * 4
    assert len(shards.asked) == 2


def test_one_that_is_late_costs_nothing_and_the_next_goes_out() -> None:
    shards = Shards()
    with ThreadPoolExecutor(8) as pool:
        callers = Callers(shards, pool)
        (first,) = callers.together(request(1))
        late = callers.ask(request(2), 0.05)
        with pytest.raises(DeadlineError):
            late.result(10)
        shards.gate.set()
        first.result(10)
        callers.ask(request(3)).result(10)
    assert shards.asked == [[1], [3]]
    assert callers.coalescer._under_way == {}


def test_what_asks_for_something_else_goes_alone() -> None:
    same = key_of(request(1), SNAPSHOT)
    assert same == key_of(request(2, 3, min_epoch=5), SNAPSHOT)
    others = (
        request(1, k=3),
        request(1, database="other"),
        request(1, min_score=0.0),
        request(1, allow_partial=True),
        request(1, fields=FIELDS),
        request(1, queries=encode_vectors(np.ones((1, 2), np.float16))),
    )
    keys = [key_of(other, SNAPSHOT) for other in others] + [key_of(request(1), "b" * 64), same]
    assert len(set(keys)) == len(keys)
    alone = request(1, exclusions=[pb.Exclusion()]), request(1, filters=[pb.Filter()]), request(*range(17))
    assert [key_of(each, SNAPSHOT) for each in alone] == [None] * 3
