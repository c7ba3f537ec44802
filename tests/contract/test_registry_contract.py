"""What every registry backend promises: one table of tests, one line for each backend in `BACKENDS`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from openbook_core.errors import (
    ArgumentError,
    ConflictError,
    CorruptError,
    MismatchError,
    NotFoundError,
    PreconditionError,
)
from openbook_database.manifest import Manifest
from openbook_database.mapped import shards_of
from openbook_database.registry.base import Registry
from openbook_database.registry.memory_plan import MemoryMode, plan_load
from openbook_database.registry.readiness import no_check
from openbook_database.registry.records import (
    Control,
    LoadState,
    Phase,
    ReplicaReport,
    ReplicaSnapshot,
    RouterReport,
    SwapTerms,
)
from openbook_database.registry.rolling import first_group, stays_served

sys.path.insert(0, str(Path(__file__).parent))
from registry_support import BACKENDS, Books, Clock, make_live, report

# --- registering ---


def test_the_first_snapshot_fixes_the_contract(registry: Registry, books: Books) -> None:
    known = registry.register("factbook", books.old)
    manifest = Manifest.read(books.old)
    assert (known.snapshot, known.url, known.shards) == (manifest.snapshot_id, str(books.old), 2)
    assert (known.documents, known.chunks) == (manifest.documents, manifest.chunks)
    assert registry.contract("factbook") == manifest.contract
    assert registry.control("factbook") == Control("factbook")
    with pytest.raises(MismatchError) as caught:
        registry.register("factbook", books.other_contract)
    for field in ("chunk_length", "dimension", "embedder.dimension"):
        assert field in str(caught.value)
    assert "has 32" in str(caught.value)
    assert "database 'factbook' has 16" in str(caught.value)
    assert [known.snapshot for known in registry.state("factbook").snapshots] == [books.id("old")]


def test_registering_again_changes_nothing(registry: Registry, books: Books) -> None:
    first = registry.register("factbook", books.old)
    make_live(registry, books, "old")
    before = registry.control("factbook")
    assert registry.register("factbook", books.old) == first
    assert registry.control("factbook") == before
    assert len(registry.state("factbook").snapshots) == 1


def test_a_snapshot_of_another_name_or_none_is_refused(registry: Registry, books: Books, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="built for database 'cookbook'"):
        registry.register("factbook", books.other_name)
    with pytest.raises(NotFoundError, match="holds no snapshot"):
        registry.register("factbook", tmp_path)
    assert not registry.list()


BAD_NAMES = ["", ".", "..", ".hidden", "../up", "a/b", "a\\b", "a b", "a\n", "ä", "a\0", "x" * 129, "/etc", "~", "a*"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_leave_the_registry_are_refused(registry: Registry, books: Books, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: registry.register(name, books.old),
        lambda: registry.prepare(name, "0" * 64),
        lambda: registry.activate(name, "0" * 64),
        lambda: registry.abort(name),
        lambda: registry.rollback(name),
        lambda: registry.retire(name),
        lambda: registry.control(name),
        lambda: registry.state(name),
        lambda: registry.audit(name),
        lambda: registry.replicas(name),
        lambda: registry.report_replica(ReplicaReport(name, "r", "a", 0)),
        lambda: registry.withdraw(RouterReport(name, "r", "a", 0)),
    ]
    for call in calls:
        with pytest.raises(ArgumentError) as caught:
            call()
        assert caught.value.field == "database"


@pytest.mark.parametrize("name", ["", ".x", "../../control", "a/b", "a b", "x" * 201])
def test_names_of_processes_are_checked_too(registry: Registry, books: Books, name: str) -> None:
    registry.register("factbook", books.old)
    with pytest.raises(ArgumentError) as caught:
        registry.report_router(RouterReport("factbook", name, "a", 0))
    assert caught.value.field == "name"


def test_unknown_databases_and_snapshots_are_named(registry: Registry, books: Books) -> None:
    with pytest.raises(NotFoundError, match=r"no database 'factbook' \(registered: none\)"):
        registry.control("factbook")
    registry.register("factbook", books.old)
    with pytest.raises(NotFoundError, match=r"no database 'cookbook' \(registered: factbook\)"):
        registry.state("cookbook")
    with pytest.raises(NotFoundError, match=f"registered: {books.id('old')[:12]}"):
        registry.prepare("factbook", books.id("new"))
    with pytest.raises(NotFoundError):
        registry.report_replica(ReplicaReport("cookbook", "r", "a", 0))
    assert registry.snapshot("factbook", books.id("old")[:8]).snapshot == books.id("old")
    with pytest.raises(NotFoundError):
        registry.snapshot("factbook", books.id("old")[:7])


# --- the swap ---


def test_a_whole_swap_and_back(registry: Registry, books: Books) -> None:
    first = make_live(registry, books, "old")
    assert (first.epoch, first.live, first.previous, first.phase) == (1, books.id("old"), None, Phase.IDLE)
    registry.register("factbook", books.new)
    preparing = registry.prepare("factbook", books.id("new"))
    assert (preparing.epoch, preparing.live) == (1, books.id("old"))
    assert (preparing.candidate, preparing.phase) == (books.id("new"), Phase.PREPARING)
    report(registry, books.id("new"), 0, name="a")
    report(registry, books.id("new"), 1, name="b")
    swapped = registry.activate("factbook", books.id("new"), expected_epoch=1)
    assert swapped == registry.control("factbook")
    assert (swapped.epoch, swapped.live, swapped.previous) == (2, books.id("new"), books.id("old"))
    assert (swapped.candidate, swapped.phase) == (None, Phase.IDLE)
    report(registry, books.id("old"), 0, 1)
    back = registry.rollback("factbook")
    assert (back.epoch, back.live, back.previous) == (3, books.id("old"), books.id("new"))
    assert registry.state("factbook").control == back


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([], "shard 0, 1 of 2.*no replica reports it"),
        ([("a", (0,), LoadState.READY, "")], "shard 1 of 2"),
        ([("a", (0, 1), LoadState.LOADING, "")], "shard 0, 1.*a: loading"),
        ([("a", (0,), LoadState.READY, ""), ("b", (1,), LoadState.FAILED, "bad checksum")], "b: failed .bad checksum"),
    ],
)
def test_activation_needs_a_ready_replica_of_every_shard(
    registry: Registry, books: Books, reports: list[tuple[str, tuple[int, ...], LoadState, str]], message: str
) -> None:
    make_live(registry, books, "old")
    registry.register("factbook", books.new)
    registry.prepare("factbook", books.id("new"))
    before = registry.control("factbook")
    for name, shards, state, error in reports:
        report(registry, books.id("new"), *shards, name=name, state=state, error=error)
    report(registry, books.id("old"), 0, 1, name="only-the-old-one")
    with pytest.raises(PreconditionError, match=message):
        registry.activate("factbook", books.id("new"))
    assert registry.control("factbook") == before


def test_expired_reports_do_not_count(registry: Registry, books: Books, clock: Clock) -> None:
    registry.register("factbook", books.old)
    registry.prepare("factbook", books.id("old"))
    report(registry, books.id("old"), 0, 1)
    clock.now += 5.1
    with pytest.raises(PreconditionError):
        registry.activate("factbook", books.id("old"))
    report(registry, books.id("old"), 0, 1)
    assert registry.activate("factbook", books.id("old")).epoch == 1


def test_verbs_can_be_repeated(registry: Registry, books: Books) -> None:
    make_live(registry, books, "old")
    registry.register("factbook", books.new)
    prepared = registry.prepare("factbook", books.id("new"))
    assert registry.prepare("factbook", books.id("new")) == prepared
    live = registry.activate("factbook", books.id("new"), expected_epoch=1, ready_check=no_check)
    assert registry.activate("factbook", books.id("new"), expected_epoch=1, ready_check=no_check) == live
    assert registry.activate("factbook", books.id("new")) == live
    assert registry.prepare("factbook", books.id("new")) == live
    back = registry.rollback("factbook", expected_epoch=2, ready_check=no_check)
    assert registry.rollback("factbook", expected_epoch=2, ready_check=no_check) == back
    registry.prepare("factbook", books.id("new"))
    aborted = registry.abort("factbook")
    assert registry.abort("factbook") == aborted
    assert (aborted.live, aborted.candidate, aborted.phase) == (books.id("old"), None, Phase.IDLE)


def test_a_candidate_that_nobody_makes_live_is_given_up(registry: Registry, books: Books, clock: Clock) -> None:
    make_live(registry, books, "old")
    registry.register("factbook", books.new)
    prepared = registry.prepare("factbook", books.id("new"), terms=SwapTerms(deadline_s=30))
    assert registry.prepare("factbook", books.id("new"), terms=SwapTerms(deadline_s=90)) == prepared
    clock.now += 29
    assert registry.expire("factbook", prepared) == prepared
    clock.now += 1
    given_up = registry.expire("factbook", prepared, actor="router")
    assert (given_up.candidate, given_up.phase, given_up.live) == (None, Phase.IDLE, books.id("old"))
    assert given_up == registry.control("factbook") == registry.expire("factbook", prepared, actor="late")
    entries = [(e.verb, e.actor, e.snapshot) for e in registry.audit("factbook") if e.verb == "expire"]
    assert entries == [("expire", "router", books.id("new"))]
    with pytest.raises(PreconditionError, match="not prepared"):
        registry.activate("factbook", books.id("new"), ready_check=no_check)


def test_one_that_was_activated_in_time_stays_though_somebody_read_before(
    registry: Registry, books: Books, clock: Clock
) -> None:
    make_live(registry, books, "old")
    registry.register("factbook", books.new)
    prepared = registry.prepare("factbook", books.id("new"), terms=SwapTerms(deadline_s=30))
    live = registry.activate("factbook", books.id("new"), ready_check=no_check)
    clock.now += 60
    assert registry.expire("factbook", prepared) == live == registry.control("factbook")


def test_the_previous_one_is_retired_after_its_standby_or_when_asked(
    registry: Registry, books: Books, clock: Clock
) -> None:
    make_live(registry, books, "old")
    for name in ("new", "third"):
        registry.register("factbook", getattr(books, name))
    registry.prepare("factbook", books.id("new"), terms=SwapTerms(standby_s=40))
    live = registry.activate("factbook", books.id("new"), ready_check=no_check)
    clock.now += 39
    assert registry.expire("factbook", live).previous == books.id("old")
    clock.now += 1
    retired = registry.expire("factbook", live)
    assert (retired.live, retired.previous, retired.epoch) == (books.id("new"), None, 2)
    with pytest.raises(PreconditionError, match="no previous snapshot"):
        registry.rollback("factbook", ready_check=no_check)
    assert registry.retire("factbook") == retired
    make_live(registry, books, "third")
    assert registry.retire("factbook", actor="ann").previous is None
    assert [e.actor for e in registry.audit("factbook") if (e.verb, e.outcome) == ("retire", "done")] == ["", "ann"]


ROLLING = SwapTerms(standby_s=40, rolling=True)


def test_a_rolling_swap_says_who_holds_what_until_the_others_follow(
    registry: Registry, books: Books, clock: Clock
) -> None:
    old, new, third = (books.id(name) for name in ("old", "new", "third"))
    make_live(registry, books, "third", "old")
    registry.register("factbook", books.new)

    def wanted(ready: str = old) -> tuple[list[str], list[str]]:
        """By one of the first replicas and by another one."""
        control = registry.control("factbook")
        return control.wanted_by("r1", {old}, {ready}), control.wanted_by("r2", {old}, {ready})

    prepared = registry.prepare("factbook", new, terms=ROLLING, first=("r1",))
    assert prepared.first == ("r1",)
    assert prepared == registry.control("factbook") == Control.from_record(prepared.to_record())
    assert wanted() == wanted("") == ([new], [old, third])
    assert registry.abort("factbook").first == ()
    assert wanted() == ([old, third], [old, third])

    registry.prepare("factbook", new, terms=ROLLING, first=("r1",))
    registry.activate("factbook", new, ready_check=no_check)
    assert wanted() == ([new], [old])
    assert wanted(ready="")[1] == [new], "one that comes now takes the live one"
    with pytest.raises(ConflictError, match="only the replicas r1 hold the live snapshot yet"):
        registry.prepare("factbook", third)
    clock.now += 40
    followed = registry.expire("factbook", registry.control("factbook"))
    assert (followed.first, followed.previous) == ((), None)
    assert wanted() == ([new, old], [new, old]), "the lease is for all again"


def test_a_rolling_swap_is_given_up_or_taken_back(registry: Registry, books: Books, clock: Clock) -> None:
    old, new, third = (books.id(name) for name in ("old", "new", "third"))
    make_live(registry, books, "third", "old")
    registry.register("factbook", books.new)
    with pytest.raises(PreconditionError, match="roll back instead"):
        registry.prepare("factbook", third, terms=ROLLING, first=("r1",))
    prepared = registry.prepare("factbook", new, terms=ROLLING, first=("r1",))
    # What stood by for an earlier swap ends, and this one goes on.
    assert registry.retire("factbook").first == ("r1",)
    clock.now += prepared.terms.deadline_s
    late = registry.expire("factbook", registry.control("factbook"))
    assert (late.first, late.candidate, late.live) == ((), None, old)

    registry.prepare("factbook", new, terms=ROLLING, first=("r1",))
    registry.activate("factbook", new, ready_check=no_check)
    back = registry.rollback("factbook", ready_check=no_check)
    assert (back.live, back.previous, back.first, back.standby_until) == (old, None, (), 0)
    registry.prepare("factbook", new, terms=ROLLING, first=("r1",))
    registry.activate("factbook", new, ready_check=no_check)
    assert registry.retire("factbook").first == ()
    with pytest.raises(ArgumentError, match="standby_s: must be above 0 for a rolling swap"):
        SwapTerms(rolling=True)


def test_a_rollback_while_a_rolling_swap_is_prepared(registry: Registry, books: Books) -> None:
    old, new, third = (books.id(name) for name in ("old", "new", "third"))
    make_live(registry, books, "third", "old")
    registry.register("factbook", books.new)
    registry.prepare("factbook", new, terms=ROLLING, first=("r1",))
    back = registry.rollback("factbook", ready_check=no_check)
    assert (back.live, back.previous, back.candidate, back.first) == (third, old, new, ("r1",))
    assert (back.wanted_by("r1"), back.wanted_by("r2")) == ([new], [third, old])
    forward = registry.activate("factbook", new, ready_check=no_check)
    assert (forward.wanted_by("r1"), forward.wanted_by("r2", ready={third})) == ([new], [third])


def test_half_of_each_member_goes_first_where_both_halves_serve_every_shard(registry: Registry, books: Books) -> None:
    make_live(registry, books, "old")
    live, new = (
        registry.snapshot("factbook", registry.register("factbook", book).snapshot) for book in (books.old, books.new)
    )

    def reports(*members: tuple[str, int, int], state: LoadState = LoadState.READY) -> list[ReplicaReport]:
        return [
            ReplicaReport(
                "factbook", name, "h:1", 1, (ReplicaSnapshot(live.snapshot, state, shards_of(index, count, 2)),),
                member_index=index, member_count=count,
            )
            for name, index, count in members
        ]  # fmt: skip

    four = reports(("a", 0, 2), ("b", 1, 2), ("c", 0, 2), ("d", 1, 2))
    assert first_group(four, live, new) == ("a", "b")
    assert first_group(reports(("x", 0, 1), ("y", 0, 1), ("z", 0, 1)), live, new) == ("x",)
    assert first_group([*four, *reports(("e", 0, 1))], live, new) == ("a", "b")
    for replicas, quorum, why in (
        (four[:3], 1, "shard 1 of snapshot"),
        (four, 2, "go first fewer than 2 times"),
        ([], 1, "shard 0, 1"),
        ([*four[:2], *reports(("c", 0, 2), ("d", 1, 2), state=LoadState.FAILED)], 1, "that stay fewer than 1"),
    ):
        with pytest.raises(PreconditionError, match=why):
            first_group(replicas, live, new, quorum=quorum)
    assert stays_served(four, ("a", "b"), live.snapshot, (0, 1))
    assert not stays_served(four, ("a", "b", "c"), live.snapshot, (0, 1))
    assert not stays_served(four, ("a", "b"), new.snapshot, (0,))


def test_a_watch_ends_by_itself_and_what_stands_by_outlasts_it(registry: Registry, books: Books, clock: Clock) -> None:
    make_live(registry, books, "old")
    registry.register("factbook", books.new)
    terms = SwapTerms(watch_s=60, standby_s=60, max_error_share=0.1)
    registry.prepare("factbook", books.id("new"), terms=terms)
    live = registry.activate("factbook", books.id("new"), ready_check=no_check)
    clock.now += 59
    assert live.tries
    assert registry.expire("factbook", live) == live
    clock.now += 1
    ended = registry.expire("factbook", live)
    assert (ended.watched_until, ended.previous, ended.live) == (0, None, books.id("new"))
    assert not ended.tries
    assert not ended.timed
    assert ended == registry.control("factbook") == registry.expire("factbook", live)
    with pytest.raises(ArgumentError, match=r"standby_s: must be 0, or at least watch_s \(60\)") as caught:
        SwapTerms(watch_s=60, standby_s=30)
    assert caught.value.field == "standby_s"
    earlier = {**live.to_record(), "terms": {**terms.to_record(), "standby_s": 30}}
    assert Control.from_record(earlier) == live, "of an earlier release"


def test_a_held_snapshot_that_cannot_be_read_is_left_out_of_the_plan(
    registry: Registry, books: Books, tmp_path: Path
) -> None:
    copies = [Path(shutil.copytree(books.old, tmp_path / name)) for name in ("gone", "damaged")]
    for copy, broken in zip(copies, ("", "shard-00000"), strict=True):
        known = registry.register("factbook", copy)
        report(registry, known.snapshot, 0, 1)
        new = registry.register("factbook", books.new)
        (before,) = plan_load(registry, "factbook", new)
        shutil.rmtree(copy / broken)
        (plan,) = plan_load(registry, "factbook", new)
        assert (plan.mode, plan.bytes_new, plan.bytes_shared) == (MemoryMode.MAPPED, before.bytes_new, 0)
        with pytest.raises((NotFoundError, CorruptError)):
            plan_load(registry, "factbook", known)


def test_a_swap_can_ask_for_several_ready_replicas(registry: Registry, books: Books) -> None:
    registry.register("factbook", books.old)
    registry.prepare("factbook", books.id("old"), terms=SwapTerms(quorum=2))
    report(registry, books.id("old"), 0, 1, name="a")
    report(registry, books.id("old"), 1, name="b")
    with pytest.raises(PreconditionError, match=r"shard 0 of 2 has fewer than 2 ready"):
        registry.activate("factbook", books.id("old"))
    report(registry, books.id("old"), 0, 1, name="b")
    assert registry.activate("factbook", books.id("old")).epoch == 1


def test_what_a_swap_was_asked_with_is_kept_until_the_next(registry: Registry, books: Books, clock: Clock) -> None:
    make_live(registry, books, "old")
    registry.register("factbook", books.new)
    terms = SwapTerms(canary_percent=5, watch_s=60, max_error_share=0.01, max_p99_ms=50)
    assert registry.prepare("factbook", books.id("new"), terms=terms).watched_until == 0
    live = registry.activate("factbook", books.id("new"), ready_check=no_check)
    assert (live.terms, live.watched_until) == (terms, clock.now + 60)
    back = registry.rollback("factbook", ready_check=no_check, reason="error share 0.2")
    assert (back.watched_until, back.reason, back.moved_by) == (0, "error share 0.2", "rollback")
    assert registry.control("factbook") == back


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deadline_s", 0),
        ("deadline_s", float("nan")),
        ("quorum", 0),
        ("canary_percent", 101),
        ("standby_s", -1),
        ("max_error_share", 1.5),
        ("max_p99_ms", 0),
        ("watch_s", float("inf")),
    ],
)
def test_terms_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ArgumentError) as caught:
        SwapTerms(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_later_release_may_have_added_fields(registry: Registry, books: Books) -> None:
    control = make_live(registry, books, "old")
    record = {**control.to_record(), "new_field": 1, "terms": {"new_term": 2}}
    assert Control.from_record(record) == control
    assert Control.from_record({"database": "factbook", "epoch": 3}).terms == SwapTerms()


def test_a_swap_during_a_swap_is_refused(registry: Registry, books: Books) -> None:
    make_live(registry, books, "old")
    registry.register("factbook", books.new)
    registry.register("factbook", books.third)
    registry.prepare("factbook", books.id("new"))
    with pytest.raises(ConflictError, match="already being moved"):
        registry.prepare("factbook", books.id("third"))
    with pytest.raises(PreconditionError, match="not prepared"):
        registry.activate("factbook", books.id("third"), ready_check=no_check)
    registry.abort("factbook")
    with pytest.raises(PreconditionError, match="not prepared"):
        registry.activate("factbook", books.id("new"), ready_check=no_check)
    assert registry.prepare("factbook", books.id("third")).candidate == books.id("third")


def test_another_epoch_than_expected_is_a_conflict(registry: Registry, books: Books) -> None:
    make_live(registry, books, "old", "new")
    registry.register("factbook", books.third)
    registry.prepare("factbook", books.id("third"))
    for epoch in (0, 1, 3):
        with pytest.raises(ConflictError, match=f"is at epoch 2, not {epoch}"):
            registry.activate("factbook", books.id("third"), expected_epoch=epoch, ready_check=no_check)
    with pytest.raises(ConflictError, match="is at epoch 2, not 1"):
        registry.rollback("factbook", expected_epoch=1, ready_check=no_check)


def test_rollback_needs_somewhere_to_go(registry: Registry, books: Books) -> None:
    make_live(registry, books, "old")
    with pytest.raises(PreconditionError, match="no previous snapshot"):
        registry.rollback("factbook", ready_check=no_check)
    make_live(registry, books, "new")
    with pytest.raises(PreconditionError, match="is not ready"):
        registry.rollback("factbook")
    assert registry.control("factbook").live == books.id("new")


def test_a_rollback_while_another_snapshot_is_prepared(registry: Registry, books: Books) -> None:
    make_live(registry, books, "old", "new")
    registry.register("factbook", books.third)
    registry.prepare("factbook", books.id("third"))
    back = registry.rollback("factbook", ready_check=no_check)
    assert (back.live, back.candidate, back.phase) == (books.id("old"), books.id("third"), Phase.PREPARING)
    registry.abort("factbook")
    registry.prepare("factbook", books.id("new"))
    forward = registry.rollback("factbook", ready_check=no_check)
    assert (forward.live, forward.candidate, forward.phase) == (books.id("new"), None, Phase.IDLE)


def test_the_record_changed_between_reading_and_writing(registry: Registry, books: Books) -> None:
    """A slow coordinator is overtaken while it checks the replicas: its compare-and-set fails, nothing is lost."""
    make_live(registry, books, "old")
    registry.register("factbook", books.new)
    registry.prepare("factbook", books.id("new"))

    def overtaken(known: object, replicas: object) -> None:
        registry.abort("factbook")

    with pytest.raises(ConflictError, match="changed by somebody else"):
        registry.activate("factbook", books.id("new"), ready_check=overtaken)
    assert (registry.control("factbook").live, registry.control("factbook").epoch) == (books.id("old"), 1)


def test_every_change_has_a_higher_fence(registry: Registry, books: Books) -> None:
    seen = []
    original = registry._compare_and_set

    def spy(expected: Control, new: Control) -> bool:
        seen.append((expected.fence, new.fence, expected.epoch, new.epoch))
        return original(expected, new)

    registry._compare_and_set = spy  # type: ignore[method-assign]
    make_live(registry, books, "old", "new")
    registry.rollback("factbook", ready_check=no_check)
    assert [(old, new) for old, new, _, _ in seen] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert all(new_epoch - old_epoch in (0, 1) for _, _, old_epoch, new_epoch in seen)


# --- reports and audit ---


def test_reports_come_back_until_they_expire_or_are_withdrawn(registry: Registry, books: Books, clock: Clock) -> None:
    registry.register("factbook", books.old)
    replica = report(registry, books.id("old"), 0, 1, name="host-1:50051")
    router = RouterReport("factbook", "router", "127.0.0.1:2", 3)
    registry.report_router(router)
    assert list(registry.replicas("factbook")) == [replace(replica, heartbeat=clock.now)]
    assert registry.replicas("factbook")[0].serves(books.id("old")) == (0, 1)
    assert registry.replicas("factbook")[0].serves(books.id("new")) == ()
    clock.now += 4
    registry.report_router(router)
    clock.now += 4
    assert not registry.replicas("factbook")
    assert list(registry.routers("factbook")) == [replace(router, heartbeat=clock.now - 4)]
    registry.withdraw(router)
    registry.withdraw(router)
    assert not registry.state("factbook").routers


def test_what_was_asked_is_kept_with_who_and_when(registry: Registry, books: Books, clock: Clock) -> None:
    registry.register("factbook", books.old, actor="ann")
    clock.now += 10
    registry.prepare("factbook", books.id("old"), actor="bob")
    with pytest.raises(PreconditionError):
        registry.activate("factbook", books.id("old"), actor="eve")
    entries = [(e.at - 1_000_000, e.actor, e.verb, e.snapshot[:4], e.outcome[:7]) for e in registry.audit("factbook")]
    start = books.id("old")[:4]
    assert entries == [
        (0, "ann", "register", start, "asked"),
        (0, "ann", "register", start, "done"),
        (10, "bob", "prepare", start, "asked"),
        (10, "bob", "prepare", start, "done"),
        (10, "eve", "activate", start, "asked"),
        (10, "eve", "activate", start, "refused"),
    ]
    assert not registry.audit("nothing-yet")


def test_databases_are_listed_by_name(registry: Registry, books: Books) -> None:
    assert not registry.list()
    registry.register("factbook", books.old)
    registry.register("cookbook", books.other_name)
    assert [state.control.database for state in registry.list()] == ["cookbook", "factbook"]


# --- what a router writes back ---


def test_a_lost_record_is_raised_again_and_never_lowered(
    registry: Registry, books: Books, tmp_path: Path, clock: Clock
) -> None:
    seen = make_live(registry, books, "old", "new")
    contract = registry.contract("factbook")
    known = registry.state("factbook").snapshots
    assert not registry.restore(contract, seen, known)
    behind = replace(seen, epoch=1, fence=9, live=books.id("old"))
    assert not registry.restore(contract, behind, known)
    assert registry.control("factbook") == seen

    lost = BACKENDS["redis" if registry.comes_back_empty else "directory"](tmp_path / "lost", clock)
    assert lost.restore(contract, behind, known[:1], actor="behind") == lost.comes_back_empty
    if not lost.comes_back_empty:
        assert not lost.list()
        lost.register("factbook", books.old)
    assert lost.restore(contract, seen, known, actor="router")
    assert lost.control("factbook") == seen
    assert {known.snapshot for known in lost.state("factbook").snapshots} == {books.id("old"), books.id("new")}
    (*_, last) = lost.audit("factbook")
    assert (last.verb, last.actor, last.outcome, last.epoch) == ("restore", "router", "done", seen.epoch)
    assert lost.rollback("factbook", ready_check=no_check).epoch == seen.epoch + 1


def test_another_contract_under_the_name_is_left_alone(registry: Registry, books: Books) -> None:
    registry.register("factbook", books.other_contract)
    with pytest.raises(MismatchError, match="chunk_length"):
        registry.restore(Manifest.read(books.old).contract, Control("factbook", 7, 9, live=books.id("old")), [])
    assert registry.control("factbook") == Control("factbook")
