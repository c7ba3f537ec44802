"""The same contract when coordinators die between steps, processes race, and verbs come in any order."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from openbook_core.errors import (
    ConflictError,
    PreconditionError,
)
from openbook_database.registry.base import Registry
from openbook_database.registry.readiness import no_check
from openbook_database.registry.records import (
    Control,
    Phase,
    SwapTerms,
)

sys.path.insert(0, str(Path(__file__).parent))
from registry_support import BACKENDS, Books, Clock, make_live


class Crash(BaseException):
    pass


STORE_CALLS = ["_create_contract", "_put_snapshot", "_compare_and_set", "_append_audit"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 17))
def test_a_coordinator_that_dies_at_any_step_can_be_followed(
    registry: Registry, books: Books, call: int, after: bool
) -> None:
    """Dies before or after any of its writes; the state is readable, old or new, and the swap can be run again."""
    make_live(registry, books, "old")
    left = call
    originals = {name: getattr(registry, name) for name in STORE_CALLS}

    def dying(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Crash
            result = originals[name](*arguments)
            if left == 0:
                raise Crash
            return result

        return run

    def swap() -> None:
        registry.register("factbook", books.new)
        registry.prepare("factbook", books.id("new"))
        registry.activate("factbook", books.id("new"), ready_check=no_check)

    for name in STORE_CALLS:
        setattr(registry, name, dying(name))
    try:
        swap()
        crashed = False
    except Crash:
        crashed = True
    assert crashed == (call <= 10)
    for name in STORE_CALLS:
        setattr(registry, name, originals[name])
    state = registry.state("factbook")
    assert (state.control.epoch, state.control.live) in [(1, books.id("old")), (2, books.id("new"))]
    swap()
    assert (registry.control("factbook").epoch, registry.control("factbook").live) == (2, books.id("new"))
    assert registry.rollback("factbook", ready_check=no_check).live == books.id("old")


def _contend(backend: str, root: Path, snapshot: str, barrier: Any, results: Any) -> None:
    registry = BACKENDS[backend](root, Clock())
    barrier.wait()
    for _ in range(20):
        try:
            control = registry.control("factbook")
            registry.rollback("factbook", expected_epoch=control.epoch, ready_check=no_check)
        except ConflictError:
            continue
        results.put(control.epoch + 1)
    results.put(None)


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_processes_that_race_never_win_the_same_epoch(backend: str, books: Books, tmp_path: Path) -> None:
    registry = BACKENDS[backend](tmp_path, Clock())
    make_live(registry, books, "old", "new")
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=_contend, args=(backend, tmp_path, books.id("new"), barrier, results)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    epochs, ended = [], 0
    while ended < 3:
        epoch = results.get(timeout=60)
        if epoch is None:
            ended += 1
        else:
            epochs.append(epoch)
    for worker in workers:
        worker.join(timeout=60)
    assert registry.control("factbook").epoch == 2 + len(set(epochs))
    moved = [e for e in registry.audit("factbook") if e.verb == "rollback" and e.outcome == "done"]
    assert len(moved) == len(set(epochs))


TERMS = [
    SwapTerms(),
    SwapTerms(deadline_s=5),
    SwapTerms(standby_s=20),
    SwapTerms(deadline_s=50, quorum=2, canary_percent=10, standby_s=40, watch_s=30, max_error_share=0.1),
    SwapTerms(watch_s=5, max_p99_ms=9.0),
]


class SwapMachine(RuleBasedStateMachine):
    """Random verbs against a model of the record."""

    books: Books
    root: Path
    count = 0
    backend: str

    def __init__(self) -> None:
        super().__init__()
        type(self).count += 1
        self.clock = Clock()
        self.registry = BACKENDS[self.backend](self.root / f"{self.backend}-{self.count}", self.clock)
        self.names = {name: self.books.id(name) for name in ("old", "new", "third")}
        for name in self.names:
            self.registry.register("factbook", getattr(self.books, name))
        self.model = Control("factbook")

    @rule(name=st.sampled_from(["old", "new", "third"]), terms=st.sampled_from(TERMS))
    def prepare(self, name: str, terms: SwapTerms) -> None:
        wanted = self.names[name]
        if self.model.candidate not in (None, wanted):
            with pytest.raises(ConflictError):
                self.registry.prepare("factbook", wanted, terms=terms)
        else:
            self.registry.prepare("factbook", wanted, terms=terms)
            if self.model.live != wanted and self.model.candidate is None:
                self.model = replace(
                    self.model,
                    candidate=wanted,
                    phase=Phase.PREPARING,
                    terms=terms,
                    expires=self.clock.now + terms.deadline_s,
                    watched_until=0.0,
                )

    @rule(name=st.sampled_from(["old", "new", "third"]))
    def activate(self, name: str) -> None:
        wanted, model = self.names[name], self.model
        if model.candidate != wanted and model.live != wanted:
            with pytest.raises(PreconditionError):
                self.registry.activate("factbook", wanted, ready_check=no_check)
            return
        self.registry.activate("factbook", wanted, ready_check=no_check)
        if model.live != wanted:
            now, terms = self.clock.now, model.terms
            self.model = replace(
                model,
                epoch=model.epoch + 1,
                live=wanted,
                previous=model.live,
                candidate=None,
                phase=Phase.IDLE,
                expires=0.0,
                watched_until=now + terms.watch_s if terms.watch_s else 0.0,
                standby_until=now + terms.standby_s if terms.standby_s and model.live else 0.0,
            )

    @rule()
    def abort(self) -> None:
        self.registry.abort("factbook")
        self.model = replace(self.model, candidate=None, phase=Phase.IDLE, expires=0.0)

    @rule()
    def retire(self) -> None:
        self.registry.retire("factbook")
        if self.model.previous is not None:
            self.model = replace(self.model, previous=None, standby_until=0.0)

    @rule(seconds=st.sampled_from([1, 10, 100]), stale=st.booleans())
    def time_passes(self, seconds: int, stale: bool) -> None:
        """Somebody looks after a while; with `stale`, with a record in hand that was read before another's change."""
        read = self.registry.control("factbook")
        self.clock.now += seconds
        if stale:
            self.abort()
        self.registry.expire("factbook", read)
        self.registry.expire("factbook", self.registry.control("factbook"))
        model = self.model
        if model.candidate and 0 < model.expires <= self.clock.now:
            model = replace(model, candidate=None, phase=Phase.IDLE, expires=0.0)
        if model.previous and 0 < model.standby_until <= self.clock.now:
            model = replace(model, previous=None, standby_until=0.0)
        if 0 < model.watched_until <= self.clock.now:
            model = replace(model, watched_until=0.0)
        self.model = model

    @rule()
    def rollback(self) -> None:
        model = self.model
        if model.previous is None:
            with pytest.raises(PreconditionError):
                self.registry.rollback("factbook", ready_check=no_check)
            return
        self.registry.rollback("factbook", ready_check=no_check)
        kept = None if model.candidate == model.previous else model.candidate
        self.model = replace(
            model,
            epoch=model.epoch + 1,
            live=model.previous,
            previous=model.live,
            candidate=kept,
            phase=Phase.PREPARING if kept else Phase.IDLE,
            expires=model.expires if kept else 0.0,
            watched_until=0.0,
            standby_until=0.0,
        )

    @invariant()
    def the_record_is_the_models(self) -> None:
        found = self.registry.control("factbook")
        assert replace(found, fence=0, moved_by="") == replace(self.model, fence=0)


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_random_verbs_follow_the_model(backend: str, books: Books, tmp_path: Path) -> None:
    machine = type("Machine", (SwapMachine,), {"books": books, "root": tmp_path, "backend": backend, "count": 0})
    machine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
    machine.TestCase("runTest").runTest()
