"""The filters of a request, read from the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_database.allowed import Allowed
from openbook_database.filters import Condition, Filters, Range, Value
from openbook_proto.v1 import retriever_pb2 as pb

MAX_CONDITIONS = 64
MAX_VALUES = 4096


@dataclass(frozen=True)
class ReadFilters:
    """The conditions of each different filter, and for each query which of them it has. Axes: Q queries."""

    different: list[tuple[Condition, ...]]
    filter_Q: NDArray[np.int64]


def read_filters(filters: Sequence[pb.Filter], queries: int) -> ReadFilters | None:
    """None for no filter; one is for all queries, or there is one for each. ArgumentError naming what is wrong."""
    if not filters:
        return None
    if len(filters) not in (1, queries):
        raise ArgumentError(
            f"filters: give none, one for all queries or one for each of {queries}, given {len(filters)}",
            field="filters",
        )
    data = [message.SerializeToString() for message in filters]
    first_of = dict(zip(reversed(data), range(len(data) - 1, -1, -1), strict=True))
    firsts = sorted(first_of.values())
    different = [_read_filter(filters[place], f"filters[{place}]") for place in firsts]
    filter_Q = np.searchsorted(firsts, [first_of[each] for each in data])
    return ReadFilters(different, np.broadcast_to(filter_Q, queries))


def allowed_documents(filters: Filters, read: ReadFilters | None) -> Allowed | None:
    """The documents that each query's filter allows; None where no query has a filter."""
    if read is None or not any(read.different):
        return None
    masks = [filters.allowed(conditions) for conditions in read.different]
    return Allowed.of(masks).of_queries(read.filter_Q)


def _read_filter(message: pb.Filter, field: str) -> tuple[Condition, ...]:
    if len(message.all_of) > MAX_CONDITIONS:
        raise ArgumentError(f"{field}: at most {MAX_CONDITIONS} conditions, given {len(message.all_of)}", field=field)
    return tuple(_read_condition(each, f"{field}.all_of[{place}]") for place, each in enumerate(message.all_of))


def _read_condition(message: pb.FilterCondition, field: str) -> Condition:
    values = message.any_of.values
    if len(values) > MAX_VALUES:
        raise ArgumentError(f"{field}: at most {MAX_VALUES} values, given {len(values)}", field=field)
    bounds = {name.name: _read_value(value, field) for name, value in message.range.ListFields()}
    return Condition(
        column=message.column,
        any_of=tuple(_read_value(value, field) for value in values),
        range=Range(**bounds) if bounds else None,
        negate=message.negate,
        field=field,
    )


def _read_value(message: pb.FilterValue, field: str) -> Value:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise ArgumentError(f"{field}: a value is empty; set its text, number or flag", field=field)
    value: Value = getattr(message, kind)
    return value
