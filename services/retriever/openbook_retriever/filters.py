"""The filters of a request, read from the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_database.filters import Condition, Filters, Range, Value
from openbook_proto.v1 import retriever_pb2 as pb

MAX_CONDITIONS = 64
MAX_VALUES = 4096


def read_filters(filters: Sequence[pb.Filter], queries: int) -> list[tuple[Condition, ...]]:
    """The conditions of no filter, of one for all queries, or of one for each; ArgumentError naming what is wrong."""
    if filters and len(filters) not in (1, queries):
        raise ArgumentError(
            f"filters: give none, one for all queries or one for each of {queries}, given {len(filters)}",
            field="filters",
        )
    return [_read_filter(message, f"filters[{place}]") for place, message in enumerate(filters)]


def allowed_documents(
    filters: Filters, read: Sequence[tuple[Condition, ...]], queries: int
) -> list[NDArray[np.bool_] | None] | None:
    """For each query the documents that its filter allows, None where it allows all; None where no query has a filter."""
    if not any(read):
        return None
    masks = [filters.allowed(conditions) for conditions in read]
    return masks * queries if len(masks) == 1 else masks


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
