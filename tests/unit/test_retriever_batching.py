"""Batches across callers in a shard: who joins whom, who is refused, and that mates change nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from openbook_core.admission import Admission
from openbook_core.errors import ArgumentError, DeadlineError, OpenbookError, OverloadedError, UnavailableError
from openbook_core.vectors import encode_vectors
from openbook_database.scoring import Hits
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_retriever.batching import SearchBatcher, Ticket
from openbook_retriever.holdings import Holdings
from openbook_retriever.shard_engine import ShardEngine


class GatedShard:
    """Answers each query with its own first element, once the gate is open; keeps the size of each batch.

    `bad`: a query that begins with it fails its whole batch.
    """

    dimension = 2

    def __init__(self, bad: float | None = None) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.bad = bad

    def search_checked(
        self,
        queries_QD: NDArray[np.float32],
        k: int,
        exclude: Sequence[Collection[int]] | None = None,
        min_score: Any = None,
        allowed: Any = None,
    ) -> Hits:
        self.threads.add(threading.get_ident())
        self.batches.append(queries_QD[:, 0].astype(int).tolist())
        self.entered.release()
        assert self.gate.wait(10)
        if self.bad is not None and (queries_QD[:, 0] == self.bad).any():
            raise ZeroDivisionError("a bug")
        ids_QK = np.repeat(queries_QD[:, :1].astype(np.int64), k, axis=1)
        return Hits(ids_QK, ids_QK.astype(np.float32))


@contextmanager
def batching(shard: GatedShard, **options: Any) -> Iterator[SearchBatcher]:
    batcher = SearchBatcher(**options)
    try:
        yield batcher
    finally:
        shard.gate.set()
        batcher.close()


def ticket(shard: Any, *numbers: int, k: int = 2, **options: Any) -> Ticket:
    return Ticket(shard, np.asarray([[number, 0] for number in numbers], np.float32), k, **options)


def test_an_idle_worker_waits_for_nobody_and_a_busy_one_gathers() -> None:
    shard = GatedShard()
    with batching(shard) as batcher:
        first = batcher.submit(ticket(shard, 1))
        assert shard.entered.acquire(timeout=10), "searched alone, at once"
        others = [batcher.submit(ticket(shard, number, number)) for number in range(2, 6)]
        shard.gate.set()
        assert first.result().ids_QK.tolist() == [[1, 1]]
        for number, other in enumerate(others, 2):
            assert other.result().ids_QK.tolist() == [[number] * 2] * 2
            assert other.queued_s >= 0
        assert shard.batches == [[1], [2, 2, 3, 3, 4, 4, 5, 5]]
        assert len(shard.threads) == 1


def test_another_shard_or_k_makes_another_batch_and_the_oldest_goes_first() -> None:
    shard, other = GatedShard(), GatedShard()
    other.gate.set()
    with batching(shard, batch_queries=3) as batcher:
        batcher.submit(ticket(shard, 0))
        assert shard.entered.acquire(timeout=10)
        tickets = [
            batcher.submit(each)
            for each in (
                ticket(shard, 1, 1, 1, 1, 1),
                ticket(shard, 2, k=3),
                ticket(other, 9),
                ticket(shard, 3),
                ticket(shard, 4),
                ticket(shard, 5, 5),
            )
        ]
        shard.gate.set()
        for each in tickets:
            each.result()
        assert shard.batches == [[0], [1] * 3, [2], [3, 4], [5, 5], [1] * 2], "five queries in two slices"
        assert other.batches == [[9]]


def test_a_full_queue_refuses_with_a_delay_and_lets_a_large_call_in_when_empty() -> None:
    shard = GatedShard()
    with batching(shard, max_queue_queries=4) as batcher:
        batcher.submit(ticket(shard, 0))
        assert shard.entered.acquire(timeout=10)
        waiting = [batcher.submit(ticket(shard, 1, 1, 1)), batcher.submit(ticket(shard, 2))]
        with pytest.raises(
            OverloadedError, match="4 queries wait and 1 more do not fit into the queue of 4"
        ) as refused:
            batcher.submit(ticket(shard, 3))
        assert refused.value.retry_after_s == pytest.approx(0.05)
        waiting[0].cancel()
        again = batcher.submit(ticket(shard, 3))
        shard.gate.set()
        assert again.result().ids_QK.tolist() == [[3, 3]]
        assert waiting[1].result().ids_QK.tolist() == [[2, 2]]
        large = batcher.submit(ticket(shard, *range(10)))
        assert len(large.result().ids_QK) == 10
        assert shard.batches == [[0], [2, 3], [*range(10)]], "the cancelled call cost nothing"


def test_a_call_to_several_shards_is_let_in_or_refused_as_one() -> None:
    shard, other = GatedShard(), GatedShard()
    other.gate.set()
    with batching(shard, max_queue_queries=4) as batcher, ThreadPoolExecutor(1) as pool:
        large = pool.submit(batcher.search, [ticket(shard, 1, 2, 3), ticket(other, 1, 2, 3)])
        assert shard.entered.acquire(timeout=10), "more than the queue has room for, but nothing waited"
        with pytest.raises(OverloadedError, match="3 queries wait and 2 more do not fit into the queue of 4"):
            batcher.search([ticket(shard, 4), ticket(other, 4)])
        shard.gate.set()
        assert [hits.ids_QK[:, 0].tolist() for hits in large.result()] == [[1, 2, 3]] * 2
    assert (shard.batches, other.batches) == ([[1, 2, 3]], [[1, 2, 3]])


def test_deadlines_hold_in_the_queue() -> None:
    shard = GatedShard()
    with batching(shard) as batcher:
        batcher.submit(ticket(shard, 0))
        assert shard.entered.acquire(timeout=10)
        late = batcher.submit(ticket(shard, 1, deadline=time.monotonic() + 0.02))
        with pytest.raises(DeadlineError, match="before its queries were searched"):
            late.result()
        with pytest.raises(DeadlineError):
            batcher.submit(ticket(shard, 2, deadline=time.monotonic() - 1))
        gone = batcher.submit(ticket(shard, 3))
        gone.cancel()
        kept = batcher.submit(ticket(shard, 4, deadline=time.monotonic() + 60))
        shard.gate.set()
        assert kept.result().ids_QK.tolist() == [[4, 4]]
        assert shard.batches == [[0], [4]]


def test_a_call_that_fails_does_not_fail_its_mates() -> None:
    shard = GatedShard(bad=7)
    with batching(shard) as batcher:
        batcher.submit(ticket(shard, 0))
        assert shard.entered.acquire(timeout=10)
        good, bad, fine = (batcher.submit(ticket(shard, number)) for number in (1, 7, 2))
        shard.gate.set()
        assert good.result().ids_QK.tolist() == [[1, 1]]
        assert fine.result().ids_QK.tolist() == [[2, 2]]
        with pytest.raises(OpenbookError, match="ZeroDivisionError: a bug"):
            bad.result()
        assert batcher.submit(ticket(shard, 3)).result().ids_QK.tolist() == [[3, 3]]


def test_wrong_queries_never_reach_the_queue() -> None:
    for numbers in ([[1.0, 2.0, 3.0]], [[np.nan, 0.0]]):
        with pytest.raises(ArgumentError) as refused:
            Ticket(GatedShard(), np.asarray(numbers, np.float32), 1)  # type: ignore[arg-type]
        assert refused.value.field == "queries"


def test_what_waits_is_answered_before_the_end() -> None:
    shard = GatedShard()
    with batching(shard) as batcher:
        batcher.submit(ticket(shard, 0))
        assert shard.entered.acquire(timeout=10)
        waiting = batcher.submit(ticket(shard, 1))
    assert waiting.result().ids_QK.tolist() == [[1, 1]]
    with pytest.raises(UnavailableError, match="shutting down"):
        batcher.submit(ticket(shard, 2))


def test_the_delay_is_the_excess_over_the_measured_rate() -> None:
    admission = Admission("queries", 100, 10.0)
    assert admission.delay(100, 20) == pytest.approx(2.0)
    assert admission.delay(100, 20, besides=5) == pytest.approx(2.5)
    assert admission.delay(100, 20, besides=500) == pytest.approx(4.0)
    assert admission.delay(0, 20) == pytest.approx(0.05)
    admission.measured(60, 1.0)
    assert admission.delay(100, 20) == pytest.approx(1.0)
    assert (admission.has_room(80, 20), admission.has_room(80, 21)) == (True, False)


@pytest.mark.parametrize("index", ["Flat", "IVF4,SQ8"])
def test_an_answer_does_not_depend_on_its_mates(tmp_path: Path, index: str) -> None:
    """Many callers at once, each with its own exclusions, filter, score and k, against each alone."""
    rows = 40
    snapshot = Snapshot.open(build_tiny_snapshot(tmp_path / "snapshot", documents=rows, index=index).path)
    (shard,) = snapshot.shards
    random = np.random.default_rng(8)
    masks = [None, random.random(rows) < 0.5, random.random(rows) < 0.1]
    calls = []
    for number in range(48):
        queries_QD = random.normal(size=(1 + number % 3, 16)).astype(np.float32)
        exclude = None if number % 4 else [set(random.integers(0, rows, 5).tolist())] * len(queries_QD)
        allowed = None if number % 5 == 0 else [masks[number % 3]] * len(queries_QD)
        min_score = None if number % 3 else float(random.normal()) / 2
        calls.append((queries_QD, 2 + number % 2, exclude, min_score, allowed))
    expected = [shard.search(*call) for call in calls]
    blocker = GatedShard()
    with batching(blocker) as batcher:
        batcher.submit(ticket(blocker, 0))
        assert blocker.entered.acquire(timeout=10)
        tickets = [batcher.submit(Ticket(shard, *call)) for call in calls]
        blocker.gate.set()
        found = [each.result() for each in tickets]
    assert len({each.started for each in tickets}) == 2, "two batches, one for each k"
    for hits, alone in zip(found, expected, strict=True):
        np.testing.assert_array_equal(hits.ids_QK, alone.ids_QK)
        np.testing.assert_array_equal(hits.scores_QK, alone.scores_QK)


def test_a_single_query_that_finds_nothing_under_way_is_searched_on_its_callers_thread() -> None:
    shard = GatedShard()
    shard.gate.set()
    with batching(shard) as batcher:
        (hits,) = batcher.search([ticket(shard, 5)])
        assert hits.ids_QK.tolist() == [[5, 5]]
        assert shard.threads == {threading.get_ident()}
        (hits,) = batcher.search([ticket(shard, 5, 6)])
        assert hits.ids_QK.tolist() == [[5, 5], [6, 6]]
        assert len(shard.threads) == 2, "several queries are the worker's, whose threads are counted"
        with pytest.raises(DeadlineError):
            batcher.search([ticket(shard, 5, deadline=time.monotonic() - 1)])


def test_there_is_one_search_at_a_time() -> None:
    shard, other = GatedShard(), GatedShard()
    with batching(shard) as batcher, ThreadPoolExecutor(3) as pool:
        alone = pool.submit(batcher.search, [ticket(shard, 1)])
        assert shard.entered.acquire(timeout=10)
        later = [pool.submit(batcher.search, [ticket(other, number)]) for number in (2, 3)]
        time.sleep(0.05)
        assert other.batches == []
        shard.gate.set()
        other.gate.set()
        assert alone.result()[0].ids_QK.tolist() == [[1, 1]]
        assert [each.result()[0].ids_QK.tolist() for each in later] == [[[2, 2]], [[3, 3]]]
        assert shard.threads.isdisjoint(other.threads)


def test_a_large_call_ends_between_two_slices_and_others_have_their_turn_there() -> None:
    shard = GatedShard()
    with batching(shard, batch_queries=2) as batcher:
        large = batcher.submit(ticket(shard, *range(8)))
        assert shard.entered.acquire(timeout=10)
        small = batcher.submit(ticket(shard, 9, k=3))
        late = batcher.submit(ticket(shard, *range(10, 16), deadline=time.monotonic() + 0.05))
        time.sleep(0.1)
        shard.gate.set()
        assert small.result().ids_QK.tolist() == [[9] * 3]
        assert large.result().ids_QK[:, 0].tolist() == [*range(8)]
        with pytest.raises(DeadlineError):
            late.result()
        gone = batcher.submit(ticket(shard, *range(20, 26)))
        gone.cancel()
        batcher.submit(ticket(shard, 30)).result()
    assert shard.batches[:2] == [[0, 1], [9]]
    assert sum(len(batch) for batch in shard.batches if batch[0] >= 20) <= 3, "at most one slice of a call that is gone"


def test_a_call_that_fails_does_so_once_for_all_its_shards() -> None:
    good, bad = GatedShard(), GatedShard(bad=7)
    good.gate.set()
    bad.gate.set()
    with batching(good) as batcher:
        for numbers in ((7,), (7, 8)):
            with pytest.raises(OpenbookError, match="ZeroDivisionError"):
                batcher.search([ticket(good, *numbers), ticket(bad, *numbers)])
        first, second = batcher.search([ticket(good, 1, 2), ticket(bad, 1, 2)])
    np.testing.assert_array_equal(first.ids_QK, second.ids_QK)


def test_several_shards_of_one_process_answer_as_the_snapshot_does(tmp_path: Path) -> None:
    snapshot = Snapshot.open(build_tiny_snapshot(tmp_path / "snapshot", documents=40, shards=3, index="IVF4,SQ8").path)
    holdings = Holdings()
    holdings.begin("tiny", snapshot.id, (0, 1, 2))
    holdings.loaded("tiny", snapshot)
    engine = ShardEngine(holdings)
    many_QD = np.random.default_rng(3).normal(size=(5, 16)).astype(np.float32)
    fields = pb.Fields(tokens=True, text=True, document=True)
    for queries_QD in (many_QD[:1], many_QD):
        queries = len(queries_QD)
        request = pb.SearchRequest(
            database="tiny",
            snapshot=snapshot.id,
            queries=encode_vectors(queries_QD),
            k=4,
            fields=fields,
            shards=[2, 0, 1],
        )
        reply = engine.search(request)
        expected = snapshot.search(queries_QD, 4)
        ids_QK = np.frombuffer(reply.ids, "<i8").reshape(queries, 4)
        np.testing.assert_array_equal(ids_QK, expected.ids_QK)
        np.testing.assert_array_equal(np.frombuffer(reply.scores, "<f4").reshape(queries, 4), expected.scores_QK)
        one_by_one = [snapshot.shard_of(chunk).text(np.asarray([chunk]))[0] for chunk in ids_QK.ravel().tolist()]
        assert list(reply.chunks.texts) == one_by_one
    for wrong in ({"shards": [0, 0]}, {"shards": [0], "shard": 1}):
        del request.shards[:]
        request.MergeFrom(pb.SearchRequest(**wrong))  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="shards"):
            engine.search(request)
