"""Exclusions of whole batches against sets of each query; ids found all at once against a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbook_database.documents import DocumentTable
from openbook_database.exclusions import Exclusions, RowRanges
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot

Numbers = list[list[int]]
BATCHES: st.SearchStrategy[Numbers] = st.lists(st.lists(st.integers(-1, 30), max_size=9), max_size=7)


def as_lists(exclusions: Exclusions) -> Numbers:
    bounds = exclusions.starts_Q.tolist()
    return [exclusions.numbers_E[a:b].tolist() for a, b in pairwise(bounds)]


def plain(batch: Numbers) -> Numbers:
    return [sorted(set(numbers) - {-1}) for numbers in batch]


@settings(max_examples=60, deadline=None)
@given(st.lists(BATCHES, min_size=1, max_size=4), st.data())
def test_batches_are_held_joined_and_cut_as_lists_are(batches: list[Numbers], data: st.DataObject) -> None:
    joined = Exclusions.join([Exclusions.of(batch) for batch in batches])
    whole = list(chain.from_iterable(batches))
    assert as_lists(joined) == plain(whole)
    assert len(joined) == len(whole)
    assert joined.queries_E.tolist() == [query for query, numbers in enumerate(plain(whole)) for _ in numbers]
    first, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    assert as_lists(joined.part(first, end)) == plain(whole[first:end])
    assert as_lists(Exclusions.none(len(whole))) == [[]] * len(whole)


def test_what_is_held_already_is_left_as_it_is() -> None:
    held = Exclusions.of([[3, 1], []])
    assert Exclusions.of(held) is held


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), max_size=6, unique=True).map(sorted), max_size=6), st.data())
def test_ranges_hold_what_lists_of_them_hold(bounds: list[list[int]], data: st.DataObject) -> None:
    rows = 20
    lists = [list(zip(each[::2], each[1::2], strict=False)) for each in bounds]
    ranges = RowRanges.of(lists)
    held = [{row for first, end in each for row in range(first, end)} for each in lists]
    assert ranges.sizes_Q.tolist() == [len(each) for each in held]
    for query, each in enumerate(held):
        assert np.flatnonzero(ranges.mask(query, rows)).tolist() == sorted(each)
        assert [ranges.key(query) == ranges.key(other) for other in range(len(lists))] == [
            lists[query] == other for other in lists
        ]
    some = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=5)) if lists else []
    rows_QF = np.tile(np.arange(-1, rows), (len(some), 1))
    found_QF = ranges.table(rows).holds(np.asarray(some, dtype=np.intp), rows_QF)
    assert [set((np.flatnonzero(each) - 1).tolist()) for each in found_QF] == [held[query] for query in some]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> DocumentTable:
    names = [*(f"doc/{number:03d}" for number in range(0, 120, 2)), "", " ", "Ä", "doc", "doc/", "\U0001f469", "zzz"]
    rows = [{"id": name or "a", "text": f"text of {name}"} for name in names]
    out = tmp_path_factory.mktemp("ids") / "book"
    build_tiny_snapshot(out, rows=rows)
    return Snapshot.open(out, "sizes").documents


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ids_are_found_at_once_and_one_by_one(documents: DocumentTable, data: st.DataObject) -> None:
    numbers = {documents.record(number).external_id: number for number in range(len(documents))}
    known = st.sampled_from(sorted(numbers))
    near = known.map(lambda name: name + "x") | known.map(lambda name: name[:-1])
    asked: Sequence[str] = data.draw(st.lists(known | near | st.text() | st.just("half \ud83d"), max_size=60))
    asked = [*asked, *data.draw(st.sampled_from([[], [*numbers]]))]
    expected = [numbers.get(name, -1) for name in asked]
    assert documents.find(asked).tolist() == expected
    assert documents.numbers(asked) == ({number for number in expected if number >= 0}, expected.count(-1))
