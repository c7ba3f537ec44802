"""Masks of whole batches against one mask for each query."""

from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openbook_database.allowed import Allowed

MASKS = [np.arange(5) < count for count in (0, 3, 5)] + [np.arange(5) < 3]
Given = list[NDArray[np.bool_] | None]
BATCHES: st.SearchStrategy[Given] = st.lists(st.sampled_from([None, *MASKS]), max_size=7)


def as_list(allowed: Allowed) -> Given:
    return [allowed.mask(query) for query in range(len(allowed))]


def same(found: Given, expected: Given) -> bool:
    """Whether these are the same arrays, not equal ones."""
    return list(map(id, found)) == list(map(id, expected))


@settings(max_examples=60, deadline=None)
@given(st.lists(BATCHES, min_size=1, max_size=4), st.data())
def test_batches_are_held_joined_and_cut_as_lists_are(batches: list[Given], data: st.DataObject) -> None:
    joined = Allowed.join([Allowed.of(batch) for batch in batches])
    whole = list(chain.from_iterable(batches))
    assert same(as_list(joined), whole)
    assert len(joined) == len(whole)
    assert len(joined.masks) == len({id(mask) for mask in whole} - {id(None)})
    first, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    assert same(as_list(joined.part(first, end)), whole[first:end])
    some = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)) if whole else []
    assert same(as_list(joined.of_queries(np.asarray(some, np.int64))), [whole[query] for query in some])
    counts = [0 if mask is None else int(mask.sum()) for mask in whole]
    assert joined.sums(lambda mask: int(mask.sum())).tolist() == counts
    turned = as_list(joined.each(lambda mask: ~mask))
    assert [None if mask is None else mask.tolist() for mask in turned] == [
        None if mask is None else (~mask).tolist() for mask in whole
    ]
    assert as_list(Allowed.none(len(whole))) == [None] * len(whole)


def test_what_is_held_already_is_left_as_it_is() -> None:
    held = Allowed.of([None, MASKS[0]])
    assert Allowed.of(held) is held
