"""The queue between callers and the encoder, with an encoder that can be held, counted and broken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from openbook_core.errors import (
    ConfigError,
    DeadlineError,
    OpenbookError,
    OverloadedError,
    UnavailableError,
)
from openbook_embedder.batching import Batcher
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.metrics import EmbedderMetrics
from openbook_embedder.queueing import BATCH_COST_TOKENS, Item, Lane, choose_batch
from openbook_embedder.ticket import Ticket


class FakeEncoder:
    """The vector of a text is (its first id, its length); a batch with id 666 fails; `gate` holds every batch."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.failure: BaseException | None = None

    def __call__(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.batches.append([list(row) for row in ids])
        self.entered.release()
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        if any(666 in row for row in ids):
            raise RuntimeError("broken on purpose")
        return np.array([[row[0], len(row)] for row in ids], dtype=np.float32)


class Bench:
    def __init__(self, batch_tokens: int = 64, max_queue_tokens: int = 1000) -> None:
        self.encoder = FakeEncoder()
        self.registry = CollectorRegistry()
        self.readiness: list[bool] = []
        self.batcher = Batcher(
            self.encoder,
            batch_tokens=batch_tokens,
            max_queue_tokens=max_queue_tokens,
            metrics=EmbedderMetrics(self.registry),
            on_ready=self.readiness.append,
        )

    def value(self, name: str) -> float | None:
        return self.registry.get_sample_value(name)

    def occupy(self) -> Ticket:
        """Hold the worker in a batch of one text."""
        ticket = self.batcher.submit([[1]])
        assert self.encoder.entered.acquire(timeout=10)
        return ticket

    def release(self) -> None:
        self.encoder.gate.set()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.release()
    bench.batcher.close()


def test_an_idle_worker_waits_for_no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its clock stands still and a timed wait never ends, an idle worker still takes what comes: it waits for
    nothing but work. Any added linger would hold the batch for ever."""
    forever, wait = threading.Event(), threading.Condition.wait

    def stand_still() -> None:
        forever.wait()

    def untimed(self: threading.Condition, timeout: float | None = None) -> bool:
        if timeout is not None and threading.current_thread().name == "embedder-batches":
            stand_still()
        return wait(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", untimed)
    still = SimpleNamespace(monotonic=lambda: 1.0, sleep=lambda _: stand_still())
    monkeypatch.setattr("openbook_embedder.batching.time", still)
    batches: list[int] = []

    def encode(ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        batches.append(len(ids))
        return np.zeros((len(ids), 1), dtype=np.float32)

    batcher = Batcher(encode, batch_tokens=64, max_queue_tokens=1000, metrics=EmbedderMetrics(CollectorRegistry()))
    gone = threading.Event()
    try:
        for tickets in (
            lambda: batcher.submit([[1]]),
            lambda: batcher.feed([[2]], None, batches=None, gone=gone),
            lambda: batcher.submit([[3]] * 3),
        ):
            assert tickets().vectors.result(30).shape[1] == 1
        assert sum(batches) == 5
    finally:
        forever.set()
        monkeypatch.undo()
        batcher.close()


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
    bench = Bench(max_queue_tokens=4)
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
def test_a_batch_holds_the_oldest_and_the_nearest_up_to_its_budget_and_its_share_of_padding(
    lengths: list[int], budget: int
) -> None:
    ticket = Ticket([[0] * length for length in lengths], None)
    queue = [Item(ticket, [place]) for place in range(len(lengths))]
    batch = choose_batch(queue, budget)
    assert batch[0] is queue[0]
    assert len({item.places[0] for item in batch}) == len(batch)
    width, read = max(item.width for item in batch), sum(item.width for item in batch)
    assert width * len(batch) <= budget
    assert width * len(batch) - read <= BATCH_COST_TOKENS
    left = [item for item in queue if item not in batch]
    distance = [abs(item.width - lengths[0]) for item in batch]
    assert all(abs(item.width - lengths[0]) >= max(distance) for item in left)
    if left:
        nearest = min(abs(item.width - lengths[0]) for item in left)
        candidates = [item.width for item in left if abs(item.width - lengths[0]) == nearest]
        padded = {length: max(width, length) * (len(batch) + 1) for length in candidates}
        assert any(size > budget or size - read - length > BATCH_COST_TOKENS for length, size in padded.items())


def _lane(*calls: int) -> Lane:
    """One call of so many texts of 10 tokens each after the other."""
    lane = Lane()
    for texts in calls:
        ticket = Ticket([[0] * 10] * texts, None)
        lane.add([Item(ticket, [place]) for place in range(texts)])
    return lane


def test_of_several_calls_half_of_what_waits_goes_unless_that_is_little() -> None:
    lane = _lane(*[1] * 16)
    assert [len(lane.take(1000, 40)) for _ in range(3)] == [8, 4, 4]
    assert len(_lane(*[1] * 16).take(1000, 120)) == 12
    assert len(_lane(*[1] * 16).take(30, 120)) == 3


def test_a_batch_is_divided_evenly_where_something_is_left_for_the_next() -> None:
    assert [len(_lane(*[1] * 16).take(budget, 0, cores)) for budget, cores in ((70, 2), (70, 3), (70, 8))] == [6, 6, 7]
    lane = _lane(*[1] * 7)
    assert [len(lane.take(50, 50, 2)) for _ in range(2)] == [4, 3]


def test_one_call_is_not_halved() -> None:
    assert len(_lane(16).take(1000, 40)) == 16


def test_callers_in_a_loop_go_in_equal_batches() -> None:
    """Sixteen who come again as soon as they are answered: no batch is the first one's alone, but for the very first."""
    lane, sizes = _lane(1), []
    running = lane.take(1000, 80)
    lane.add(_lane(*[1] * 15).items)
    for _ in range(6):
        done, running = running, lane.take(1000, 80)
        sizes.append(len(running))
        lane.add(_lane(*[1] * len(done)).items)
    assert sizes[2:] == [8] * 4


def test_a_queue_smaller_than_one_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_queue_tokens"):
        EmbedderConfig.parse({"batch_tokens": 10, "max_queue_tokens": 5})


def test_batch_tokens_left_open_take_no_more_than_the_queue() -> None:
    """`--max-queue-tokens 8192` alone starts on a GPU, too."""
    small = EmbedderConfig.parse({"max_queue_tokens": 8192})
    assert small.with_batch_tokens(16_384, 512).batch_tokens == 8192
    assert small.with_batch_tokens(4096, 512).batch_tokens == 4096
    assert EmbedderConfig().with_batch_tokens(4096, 8192).batch_tokens == 8192
    with pytest.raises(ConfigError, match="max_queue_tokens"):
        small.with_batch_tokens(4096, 10_000)
    given = EmbedderConfig.parse({"max_queue_tokens": 8192, "batch_tokens": 100})
    assert given.with_batch_tokens(16_384, 64).batch_tokens == 100


def test_a_call_is_admitted_whole_or_not_at_all(bench: Bench) -> None:
    bench.occupy()
    bench.batcher.submit([[2] * 40] * 20)
    with pytest.raises(OverloadedError, match="800 tokens wait and 240 more"):
        bench.batcher.submit([[3] * 40] * 6)
    assert bench.value("openbook_embedder_queue_tokens") == 800
    assert len(bench.batcher.submit([[4] * 40] * 5).ids) == 5


def test_the_retry_delay_follows_from_what_waits_and_the_measured_rate(bench: Bench) -> None:
    bench.release()
    for _ in range(60):
        bench.batcher.submit([[1] * 50]).result()
        assert bench.encoder.entered.acquire(timeout=10)
    bench.encoder.gate.clear()
    rate = bench.batcher._admission.per_s
    bench.occupy()
    bench.batcher.submit([[2] * 10] * 100)
    with pytest.raises(OverloadedError) as caught:
        bench.batcher.submit([[3] * 50] * 20)
    assert caught.value.retry_after_s == pytest.approx(max(0.05, 1000 / rate))


def test_one_poison_text_does_not_fail_its_mates(bench: Bench) -> None:
    bench.occupy()
    good = [bench.batcher.submit([[n] * 3]) for n in range(10, 17)]
    bad = bench.batcher.submit([[666] * 3])
    bench.release()
    assert [ticket.result().tolist() for ticket in good] == [[[n, 3]] for n in range(10, 17)]
    with pytest.raises(OpenbookError, match="broken on purpose"):
        bad.result()
    assert bench.batcher.ready
    assert bench.readiness == []


def test_a_message_with_batches_of_its_own_shares_none_and_is_not_split(bench: Bench) -> None:
    bench.occupy()
    gone = threading.Event()
    shared = [bench.batcher.feed([[n] * 3], None, batches=None, gone=gone) for n in (7, 8)]
    alone = bench.batcher.feed([[2] * 3, [3] * 3, [4] * 3], None, batches=[[2, 0], [1]], gone=gone)
    poison = bench.batcher.feed([[5] * 3, [666] * 3], None, batches=[[0, 1]], gone=gone)
    bench.release()
    assert alone.result().tolist() == [[2, 3], [3, 3], [4, 3]]
    assert [ticket.result().tolist() for ticket in shared] == [[[7, 3]], [[8, 3]]]
    with pytest.raises(OpenbookError, match="broken on purpose"):
        poison.result()
    assert bench.encoder.batches[1:4] == [[[7] * 3, [8] * 3], [[4] * 3, [2] * 3], [[3] * 3]]
    assert [[5] * 3, [666] * 3] in bench.encoder.batches
    assert [[5] * 3] not in bench.encoder.batches


def test_calls_and_streams_take_turns(bench: Bench) -> None:
    bench.occupy()
    gone = threading.Event()
    for n in range(3):
        bench.batcher.feed([[20 + n] * 30] * 2, None, batches=[[0, 1]], gone=gone)
    last = [bench.batcher.submit([[10 + n] * 60]) for n in range(2)][-1]
    bench.release()
    last.result()
    bench.batcher.close()
    assert [batch[0][0] for batch in bench.encoder.batches] == [1, 20, 10, 21, 11, 22]


def test_a_stream_waits_for_room_and_stops_waiting_when_its_caller_is_gone(bench: Bench) -> None:
    bench.occupy()
    gone = threading.Event()
    bench.batcher.feed([[2] * 50] * 20, None, batches=None, gone=gone)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(bench.batcher.feed, [[3] * 50], None, batches=None, gone=threading.Event())
        left = pool.submit(bench.batcher.feed, [[4] * 50], None, batches=None, gone=gone)
        gone.set()
        assert left.result(10).closed
        assert not waiting.done()
        bench.release()
        assert waiting.result(10).result().tolist() == [[3, 50]]


def test_a_dead_worker_turns_readiness_off_and_is_replaced(bench: Bench) -> None:
    broken = bench.occupy()
    bench.encoder.failure = SystemExit("the thread ends")
    waiting = bench.batcher.submit([[5]])
    bench.release()
    with pytest.raises(OpenbookError, match="the encoding thread ended"):
        broken.result()
    wait_for(lambda: bench.readiness == [False])
    bench.encoder.failure = None
    wait_for(lambda: bench.readiness == [False, True])
    assert waiting.result().tolist() == [[5, 1]]
    assert bench.batcher.submit([[6]]).result().tolist() == [[6, 1]]
    assert bench.value("openbook_embedder_worker_restarts_total") == 1


def test_an_encoder_that_fails_on_everything_is_not_ready_until_it_answers(bench: Bench) -> None:
    broken = bench.occupy()
    bench.encoder.failure = RuntimeError("the device is lost")
    bench.release()
    with pytest.raises(UnavailableError, match="fails on every text: the device is lost"):
        broken.result()
    with pytest.raises(UnavailableError, match="being restarted"):
        bench.batcher.submit([[6]])
    assert bench.readiness == [False]
    bench.encoder.failure = None
    wait_for(lambda: bench.batcher.ready)
    assert bench.batcher.submit([[6]]).result().tolist() == [[6, 1]]
    assert bench.value("openbook_embedder_worker_restarts_total") == 0


def test_closing_while_the_encoder_fails_does_not_hang(bench: Bench) -> None:
    bench.occupy()
    bench.encoder.failure = RuntimeError("the device is lost")
    waiting = bench.batcher.submit([[6] * 60])
    bench.release()
    wait_for(lambda: bench.readiness == [False])
    bench.batcher.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        waiting.result()
