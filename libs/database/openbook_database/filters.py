"""Filters on metadata: which documents of a snapshot meet conditions on their values.

A column's different values are sorted once, when it is first asked for, and each document keeps its value's rank. What
a condition accepts is then a few ranges of ranks, found by bisection and compared for all documents at once.

Axes: N documents.
"""

from __future__ import annotations

import dataclasses
import json
import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_database.documents import METADATA_PREFIX, DocumentTable

Value = str | float | bool
Kind = Literal["text", "number", "flag"]
_KEPT = 64


@dataclass(frozen=True)
class Range:
    """Values between bounds, which are of one kind: text or numbers."""

    at_least: Value | None = None
    above: Value | None = None
    at_most: Value | None = None
    below: Value | None = None

    @property
    def bounds(self) -> list[Value]:
        return [bound for bound in (self.at_least, self.above, self.at_most, self.below) if bound is not None]


@dataclass(frozen=True)
class Condition:
    """A document meets it whose value in `column` equals one of `any_of`, or is in `range`; with `negate`, every other.

    Text equals text alone, numbers numbers and flags flags. No value, a list or an object is equal to nothing and in
    no range. Text is ordered by code points. `field`: the name that errors give.
    """

    column: str
    any_of: tuple[Value, ...] = ()
    range: Range | None = None
    negate: bool = False
    field: str = dataclasses.field(default="filter", compare=False)

    @property
    def values(self) -> list[Value]:
        """What the document's value is compared with."""
        return [*self.any_of, *(self.range.bounds if self.range else ())]

    @property
    def kinds(self) -> tuple[Kind | None, ...]:
        """Kind of each of `values`; True and 1 are equal in Python and not here."""
        return tuple(kind_of(value) for value in self.values)

    def __post_init__(self) -> None:
        values = self.values
        if not values or (self.any_of and self.range):
            raise ArgumentError(
                f"{self.field}: needs values to be equal to or bounds of a range, not both", field=self.field
            )
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise ArgumentError(f"{self.field}: numbers must be finite", field=self.field)
        if self.range is not None and set(self.kinds) not in ({"text"}, {"number"}):
            raise ArgumentError(
                f"{self.field}: the bounds of a range are texts alone or numbers alone", field=self.field
            )


_Key = tuple[tuple[Condition, tuple[Kind | None, ...]], ...]


def kind_of(value: object) -> Kind | None:
    """None for what is neither text, number nor flag."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int | float):
        return None if math.isnan(value) else "number"
    return "text" if isinstance(value, str) else None


class Column:
    """The values of one column, sorted by kind, and each document's rank among them (-1: none)."""

    def __init__(self, texts_N: pa.Array) -> None:
        """`texts_N`: JSON text of each document's value, null where there is none."""
        encoded = texts_N.dictionary_encode()
        values = [json.loads(text) for text in encoded.dictionary.to_pylist()]
        by_kind: dict[Kind, list[int]] = {}
        for place, value in enumerate(values):
            kind = kind_of(value)
            if kind is not None:
                by_kind.setdefault(kind, []).append(place)
        self._sorted: dict[Kind, tuple[int, list[Value]]] = {}
        ranks = np.full(len(values) + 1, -1, dtype=np.int32)
        first = 0
        for kind, places in by_kind.items():
            places.sort(key=values.__getitem__)
            self._sorted[kind] = first, [values[place] for place in places]
            ranks[places] = np.arange(first, first + len(places))
            first += len(places)
        codes_N = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
        self.ranks_N: NDArray[np.int32] = ranks[codes_N]

    @property
    def kinds(self) -> list[Kind]:
        return sorted(self._sorted)

    def ranks(self, condition: Condition) -> list[tuple[int, int]]:
        """The ranges [first, end) of ranks that `condition` accepts, before `negate`."""
        if condition.range is None:
            found = []
            for value in condition.any_of:
                first, values = self._of(value)
                found.append((first + bisect_left(values, value), first + bisect_right(values, value)))
            return found
        given = condition.range
        first, values = self._of(given.bounds[0])
        low, high = 0, len(values)
        if given.at_least is not None:
            low = max(low, bisect_left(values, given.at_least))
        if given.above is not None:
            low = max(low, bisect_right(values, given.above))
        if given.at_most is not None:
            high = min(high, bisect_right(values, given.at_most))
        if given.below is not None:
            high = min(high, bisect_left(values, given.below))
        return [(first + low, first + high)]

    def _of(self, value: Value) -> tuple[int, list[Value]]:
        kind = kind_of(value)
        assert kind is not None
        return self._sorted.get(kind, (0, []))


class Filters:
    """Filters of one snapshot's documents, the latest kept; safe to use from several threads."""

    def __init__(self, documents: DocumentTable) -> None:
        self._documents = documents
        self._lock = Lock()
        self._columns: dict[str, Column] = {}
        self._masks: OrderedDict[_Key, NDArray[np.bool_]] = OrderedDict()

    def allowed(self, conditions: Sequence[Condition]) -> NDArray[np.bool_] | None:
        """Which documents [n] meet all conditions; None where there are no conditions.

        Equal conditions give the same array, so that queries which share it can be searched together. Raises
        ArgumentError for a column that the snapshot has not, and for values of a kind that the column has not.
        """
        key = tuple((condition, condition.kinds) for condition in conditions)
        if not key:
            return None
        with self._lock:
            mask_N = self._masks.get(key)
            if mask_N is None:
                mask_N = np.ones(len(self._documents), dtype=np.bool_)
                for condition in conditions:
                    mask_N &= self._meet(condition)
                mask_N.flags.writeable = False
                self._masks[key] = mask_N
                if len(self._masks) > _KEPT:
                    self._masks.popitem(last=False)
            self._masks.move_to_end(key)
            return mask_N

    def _meet(self, condition: Condition) -> NDArray[np.bool_]:
        column = self._column(condition)
        for value, kind in zip(condition.values, condition.kinds, strict=True):
            if column.kinds and kind not in column.kinds:
                raise ArgumentError(
                    f"{condition.field}: column {condition.column!r} holds {' and '.join(column.kinds)}, "
                    f"given {kind} {value!r}",
                    field=condition.field,
                )
        met_N = np.zeros(len(self._documents), dtype=np.bool_)
        for first, end in column.ranks(condition):
            met_N |= (column.ranks_N >= first) & (column.ranks_N < end)
        return ~met_N if condition.negate else met_N

    def _column(self, condition: Condition) -> Column:
        name = condition.column
        if name not in self._documents.metadata_columns:
            known = ", ".join(self._documents.metadata_columns) or "none"
            raise ArgumentError(
                f"{condition.field}: the snapshot has no metadata column {name!r}; it has: {known}",
                field=condition.field,
            )
        if name not in self._columns:
            self._columns[name] = Column(self._documents.table.column(METADATA_PREFIX + name).chunk(0))
        return self._columns[name]
