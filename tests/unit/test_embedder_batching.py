"""The queue between callers and the encoder, with an encoder that can be held, counted and broken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from openbook_core.errors import ConfigError, DeadlineError, OpenbookError, OverloadedError, UnavailableError
from openbook_embedder.batching import Batcher, Ticket, _Item, choose_batch
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.metrics import EmbedderMetrics


class FakeEncoder:
    """The vector of a text is (its first id, its length); a batch with id 666 fails; `gate` holds every batch."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.batches.append([list(row) for row in ids])
        self.entered.release()
        assert self.gate.wait(10)
        if any(666 in row for row in ids):
            raise RuntimeError("broken on purpose")
        return np.array([[row[0], len(row)] for row in ids], dtype=np.float32)


class Bench:
    def __init__(self, batch_tokens: int = 64, max_queue_texts: int = 100) -> None:
        self.encoder = FakeEncoder()
        self.registry = CollectorRegistry()
        self.batcher = Batcher(
            self.encoder,
            batch_tokens=batch_tokens,
            max_queue_texts=max_queue_texts,
            metrics=EmbedderMetrics(self.registry),
        )

    def occupy(self) -> Ticket:
        """Hold the worker in a batch of one text."""
        ticket = self.batcher.submit([[1]])
        assert self.encoder.entered.acquire(timeout=10)
        return ticket

    def release(self) -> None:
        self.encoder.gate.set()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.release()
    bench.batcher.close()


def test_callers_share_a_batch_and_get_their_own_rows(bench: Bench) -> None:
    bench.occupy()
    tickets = [bench.batcher.submit([[10 * n] * 4, [10 * n + 1] * 4]) for n in range(1, 5)]
    bench.release()
    for n, ticket in enumerate(tickets, start=1):
        assert ticket.result().tolist() == [[10 * n, 4], [10 * n + 1, 4]]
    assert [len(batch) for batch in bench.encoder.batches] == [1, 8]


def test_a_call_larger_than_a_batch_is_put_together_in_order(bench: Bench) -> None:
    bench.release()
    ids = [[n] * (1 + n % 7) for n in range(60)]
    assert bench.batcher.submit(ids).result().tolist() == [[n, 1 + n % 7] for n in range(60)]
    assert all(len(batch) * max(map(len, batch)) <= 64 for batch in bench.encoder.batches)


def test_a_failing_batch_fails_only_its_callers(bench: Bench) -> None:
    bench.occupy()
    bad = bench.batcher.submit([[666] * 60])
    good = bench.batcher.submit([[5] * 3])
    bench.release()
    with pytest.raises(OpenbookError, match="broken on purpose"):
        bad.result()
    assert good.result().tolist() == [[5, 3]]
    assert bench.batcher.submit([[6]]).result().tolist() == [[6, 1]]
    assert bench.registry.get_sample_value("openbook_embedder_batch_failures_total") == 1


def test_a_full_queue_refuses_with_a_delay_and_keeps_what_it_has() -> None:
    bench = Bench(max_queue_texts=4)
    bench.occupy()
    kept = bench.batcher.submit([[2]] * 4)
    with pytest.raises(OverloadedError) as caught:
        bench.batcher.submit([[3]])
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0
    assert bench.registry.get_sample_value("openbook_embedder_queue_texts") == 4
    bench.release()
    assert len(kept.result()) == 4
    bench.batcher.close()


def test_a_deadline_passes_in_the_queue_and_nothing_is_encoded_for_it(bench: Bench) -> None:
    first = bench.occupy()
    late = bench.batcher.submit([[7]], deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineError):
        late.result()
    with pytest.raises(DeadlineError):
        bench.batcher.submit([[8]], deadline=time.monotonic() - 1)
    bench.release()
    first.result()
    assert bench.batcher.submit([[9]]).result().tolist() == [[9, 1]]
    assert [batch[0][0] for batch in bench.encoder.batches] == [1, 9]


def test_a_cancelled_call_costs_nothing(bench: Bench) -> None:
    bench.occupy()
    gone = bench.batcher.submit([[7]] * 50)
    gone.cancel()
    after = bench.batcher.submit([[9]] * 60)
    bench.release()
    assert len(after.result()) == 60
    assert not any([7] in batch for batch in bench.encoder.batches)


def test_closing_finishes_what_waits_and_refuses_what_comes() -> None:
    bench = Bench()
    bench.occupy()
    waiting = bench.batcher.submit([[4]])
    bench.release()
    bench.batcher.close()
    assert waiting.result().tolist() == [[4, 1]]
    with pytest.raises(UnavailableError):
        bench.batcher.submit([[5]])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(40, 200))
def test_a_batch_holds_the_oldest_fits_the_budget_and_leaves_no_room_for_the_nearest(
    lengths: list[int], budget: int
) -> None:
    ticket = Ticket([[0] * length for length in lengths], None)
    queue = [_Item(ticket, place) for place in range(len(lengths))]
    batch = choose_batch(queue, budget)
    assert batch[0] is queue[0]
    assert len({item.place for item in batch}) == len(batch)
    width = max(len(item.ids) for item in batch)
    assert width * len(batch) <= budget
    left = [item for item in queue if item not in batch]
    distance = [abs(len(item.ids) - lengths[0]) for item in batch]
    assert all(abs(len(item.ids) - lengths[0]) >= max(distance) for item in left)
    if left:
        nearest = min(abs(len(item.ids) - lengths[0]) for item in left)
        candidates = [len(item.ids) for item in left if abs(len(item.ids) - lengths[0]) == nearest]
        assert any(max(width, length) * (len(batch) + 1) > budget for length in candidates)


def test_a_queue_smaller_than_one_call_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_queue_texts"):
        EmbedderConfig.parse({"max_texts": 10, "max_queue_texts": 5})
