"""A predictions file, JSON Lines of `id`, `prediction` and `answers`, to its figures; the answers may lie in another file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, StrictInt, StrictStr

from openbook_core.config import FrozenConfig
from openbook_core.errors import ConfigError, InputError
from openbook_trainer.eval import metrics
from openbook_trainer.eval.intervals import BOOTSTRAP, figure
from openbook_trainer.rows import read_rows


def _answers(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of one or more strings")
    return value


_Answers = Annotated[tuple[StrictStr, ...], BeforeValidator(_answers)]


class _Row(FrozenConfig):
    id: StrictStr | StrictInt


class _Reply(_Row):
    prediction: StrictStr


class Prediction(_Reply):
    """One row. An answer may be the empty string; there must be one."""

    answers: _Answers


class _Key(_Row):
    answers: _Answers


_RowKind = TypeVar("_RowKind", bound=_Row)
_NAMED = 3  # ids that an error names


def read_predictions(path: Path, answers: Path | None = None) -> list[Prediction]:
    """The rows of a file (plain, .gz or .zst); blank lines are passed over.

    With `answers` its rows have `id` and `prediction` only, and those of `answers` have `id` and `answers`: they are
    matched by id and returned in the order of `answers`. Raises InputError with file and line for what is no row, an id
    that comes twice, or a file without rows; and where the two files are not about the same ids.
    """
    if answers is None:
        return list(_read(path, Prediction, "predictions").values())
    replies, keys = _read(path, _Reply, "predictions"), _read(answers, _Key, "answers")
    missing, unknown = [id_ for id_ in keys if id_ not in replies], [id_ for id_ in replies if id_ not in keys]
    if missing or unknown:
        raise InputError(
            f"{path} holds {len(replies)} predictions and {answers} the answers of {len(keys)} questions; "
            f"without a prediction: {_named(missing)}; without answers: {_named(unknown)}. Give each id one row in both",
            field="answers",
        )
    return [Prediction(id=id_, prediction=replies[id_].prediction, answers=key.answers) for id_, key in keys.items()]


def _named(ids: Sequence[str | int]) -> str:
    if not ids:
        return "none"
    more = ", ..." if len(ids) > _NAMED else ""
    return f"{len(ids)} ({', '.join(repr(each) for each in ids[:_NAMED])}{more})"


def _read(path: Path, kind: type[_RowKind], field: str) -> dict[str | int, _RowKind]:
    rows: dict[str | int, _RowKind] = {}
    places: dict[str | int, str] = {}
    for place, data in read_rows(path, field):
        try:
            row = kind.parse(data, source=place)
        except ConfigError as error:
            raise InputError(error.message, field=error.field) from None
        if row.id in places:
            raise InputError(
                f"{place}: the id {row.id!r} was in {places[row.id]} already; give each question one row", field="id"
            )
        places[row.id], rows[row.id] = place, row
    if not rows:
        raise InputError(
            f"{path} holds no rows; expected JSON Lines with the keys {', '.join(kind.model_fields)}",
            field=field,
        )
    return rows


def score(rows: Sequence[Prediction]) -> dict[str, Any]:
    """`exact_match` and `f1` as fractions with their intervals, and NVIDIA's variants under `nvidia`.

    A figure without a value (NVIDIA's F1 where every first answer is empty) is None, as is its interval.
    """
    overlaps = [metrics.nvidia_overlap(row.prediction, row.answers[0]) for row in rows]
    counted = [overlap for overlap in overlaps if overlap is not None]
    matches = [metrics.exact_match(row.prediction, row.answers) for row in rows]
    cleaned = [metrics.exact_match(metrics.nvidia_clean(row.prediction), row.answers) for row in rows]
    return {
        "count": len(rows),
        **figure("exact_match", matches),
        **figure("f1", [metrics.f1(row.prediction, row.answers) for row in rows]),
        "nvidia": {
            **figure("exact_match", matches),
            **figure("exact_match_cleaned", cleaned),
            "f1_count": len(counted),
            **figure("precision", [overlap.precision for overlap in counted]),
            **figure("recall", [overlap.recall for overlap in counted]),
            **figure("f1", [overlap.f1 for overlap in counted]),
        },
        "intervals": BOOTSTRAP,
    }
