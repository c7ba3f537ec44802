"""An encoder that hangs, and one that only a new process brings back: noticed by a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from openbook_core.errors import UnavailableError
from openbook_embedder.batching import Batcher
from openbook_embedder.metrics import EmbedderMetrics

WAIT_S = 30


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Encoder:
    """Holds every batch at `gate`, and raises `failure` where there is one."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.failure: Exception | None = None

    def __call__(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if self.failure is not None:
            raise self.failure
        return np.array([[row[0]] for row in ids], dtype=np.float32)


class Bench:
    def __init__(self, on_dead: Callable[[str], None] | None) -> None:
        self.clock, self.encoder = Clock(), Encoder()
        self.readiness: list[bool] = []
        self.changed = threading.Semaphore(0)
        self.batcher = Batcher(
            self.encoder,
            batch_tokens=64,
            max_queue_tokens=1000,
            metrics=EmbedderMetrics(CollectorRegistry()),
            on_ready=self.heard,
            timeout_s=20.0,
            restart_s=5.0,
            on_dead=on_dead,
            clock=self.clock,
        )

    def heard(self, ready: bool) -> None:
        self.readiness.append(ready)
        self.changed.release()

    def at(self, seconds: float) -> None:
        self.clock.now = 100.0 + seconds
        self.batcher.watch.look()


@pytest.fixture
def dead() -> list[str]:
    return []


@pytest.fixture(params=["cpu", "gpu"])
def bench(request: pytest.FixtureRequest, dead: list[str]) -> Iterator[Bench]:
    """On a GPU, `dead` hears the reason, where the service ends its process."""
    bench = Bench(dead.append if request.param == "gpu" else None)
    bench.dies = request.param == "gpu"  # type: ignore[attr-defined]
    yield bench
    bench.encoder.gate.set()
    bench.batcher.close()


def test_a_batch_that_does_not_come_back(bench: Bench, dead: list[str]) -> None:
    running = bench.batcher.submit([[1]])
    assert bench.encoder.entered.acquire(timeout=WAIT_S)
    waiting = bench.batcher.submit([[2]] * 3)
    bench.at(20)
    assert bench.batcher.ready and not dead
    bench.at(20.5)
    bench.at(21)
    assert not bench.batcher.ready and bench.readiness == [False]
    assert dead == (["hangs"] if bench.dies else [])  # type: ignore[attr-defined]
    for ticket in (running, waiting):
        with pytest.raises(UnavailableError, match="does not come back"):
            ticket.result()
    with pytest.raises(UnavailableError):
        bench.batcher.submit([[3]])
    bench.changed.acquire()
    bench.encoder.gate.set()
    assert bench.changed.acquire(timeout=WAIT_S)
    assert bench.readiness == [False, True]
    assert bench.batcher.submit([[4]]).result().tolist() == [[4]]


def test_an_encoder_that_fails_for_long(bench: Bench, dead: list[str]) -> None:
    bench.encoder.failure = RuntimeError("CUDA error: an illegal memory access was encountered")
    bench.encoder.gate.set()
    with pytest.raises(UnavailableError, match="illegal memory access"):
        bench.batcher.submit([[1]]).result()
    assert bench.changed.acquire(timeout=WAIT_S)
    bench.at(5)
    assert not dead and bench.readiness == [False]
    for _ in range(2):
        bench.at(6)
    assert dead == (["has failed for 6 s"] if bench.dies else [])  # type: ignore[attr-defined]
    bench.encoder.failure = None
    assert bench.changed.acquire(timeout=WAIT_S)
    bench.at(60)
    assert bench.batcher.ready and len(dead) <= 1


def test_a_slow_encoder_has_the_time_that_its_tokens_take(bench: Bench, dead: list[str]) -> None:
    """Four times what they took at the best rate, and never less than the limit."""
    watch = bench.batcher.watch
    for begin, tokens, seconds in ((0.0, 10, 10.0), (10.0, 100, 10.0), (20.0, 10, 20.0)):
        bench.at(begin)
        with watch.call(tokens):
            bench.at(begin + seconds)
    with pytest.raises(RuntimeError), watch.call(10**9):
        raise RuntimeError("a batch that raises is not measured")
    for begin, tokens, limit in ((100.0, 40, 20.0), (200.0, 200, 80.0)):  # 10 tokens a second at best
        bench.at(begin)
        with watch.call(tokens):
            bench.at(begin + limit)
            assert watch.ready
            bench.at(begin + limit + 0.5)
            assert not watch.ready
    assert watch.ready and dead == (["hangs"] if bench.dies else [])  # type: ignore[attr-defined]


def test_one_that_fails_shortly_counts_anew(bench: Bench, dead: list[str]) -> None:
    for begin in (0.0, 4.0):
        bench.at(begin)
        bench.batcher.watch.fails()
        bench.at(begin + 3)
        bench.batcher.watch.answers()
    bench.at(30)
    assert not dead and bench.readiness == [False, True] * 2


def test_closing_leaves_a_batch_that_hangs_behind() -> None:
    bench = Bench(None)
    bench.batcher.submit([[1]])
    assert bench.encoder.entered.acquire(timeout=WAIT_S)
    bench.at(21)
    bench.batcher.close()
    assert bench.batcher._worker.is_alive()
    bench.encoder.gate.set()
    bench.batcher._worker.join(WAIT_S)
    assert not bench.batcher._worker.is_alive()


def test_it_looks_by_itself(dead: list[str]) -> None:
    heard = threading.Event()
    encoder = Encoder()
    batcher = Batcher(
        encoder,
        batch_tokens=64,
        max_queue_tokens=1000,
        metrics=EmbedderMetrics(CollectorRegistry()),
        timeout_s=0.05,
        on_dead=lambda reason: heard.set(),
    )
    batcher.submit([[1]])
    assert heard.wait(WAIT_S)
    encoder.gate.set()
    batcher.close()
