"""Filters for searches, from Python values."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from openbook_core.clients.base import require_text
from openbook_core.errors import ArgumentError
from openbook_proto.v1 import retriever_pb2 as pb

BOUNDS = ("at_least", "above", "at_most", "below")


def where(**columns: Any) -> pb.Filter:
    """One condition on each named metadata column: a value to be equal to, a collection of such values, or a dict with
    bounds (at_least, above, at_most, below) or with the values that are `not_in`.

    `where(language="de", source=["web", "book"], date={"at_least": "2024-01-01"}, tenant={"not_in": ["a"]})`.
    Raises ArgumentError naming the column.
    """
    return pb.Filter(all_of=[_condition(column, given) for column, given in columns.items()])


def _condition(column: str, given: Any) -> pb.FilterCondition:
    if not isinstance(given, dict):
        return pb.FilterCondition(column=require_text("column", column), any_of=_values(column, given))
    if given.keys() == {"not_in"}:
        return pb.FilterCondition(column=column, any_of=_values(column, given["not_in"]), negate=True)
    if not given or given.keys() - set(BOUNDS):
        raise ArgumentError(
            f"{column}: bounds are {', '.join(BOUNDS)}, or not_in alone, given {sorted(given)}", field=column
        )
    bounds = {name: _value(column, value) for name, value in given.items()}
    return pb.FilterCondition(column=column, range=pb.FilterRange(**bounds))


def _values(column: str, given: Any) -> pb.FilterValues:
    several = given if isinstance(given, Collection) and not isinstance(given, str | bytes) else [given]
    return pb.FilterValues(values=[_value(column, value) for value in several])


def _value(column: str, value: Any) -> pb.FilterValue:
    if isinstance(value, bool):
        return pb.FilterValue(flag=value)
    if isinstance(value, int | float):
        if abs(value) > 2**53 or value != value:
            raise ArgumentError(f"{column}: numbers are from -2**53 to 2**53, given {value}", field=column)
        return pb.FilterValue(number=value)
    if isinstance(value, str):
        return pb.FilterValue(text=require_text(column, value))
    raise ArgumentError(f"{column}: a value is text, a number or a flag, given {type(value).__name__}", field=column)
