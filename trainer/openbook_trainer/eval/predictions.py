"""A predictions file, JSON Lines of `id`, `prediction` and `answers`, to its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, StrictInt, StrictStr

from openbook_core.config import FrozenConfig
from openbook_core.errors import ConfigError, InputError
from openbook_database.streams import read_lines
from openbook_trainer.eval import metrics
from openbook_trainer.eval.intervals import BOOTSTRAP, figure


def _answers(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of one or more strings")
    return value


class Prediction(FrozenConfig):
    """One row. An answer may be the empty string; there must be one."""

    id: StrictStr | StrictInt
    prediction: StrictStr
    answers: Annotated[tuple[StrictStr, ...], BeforeValidator(_answers)]


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of a file (plain, .gz or .zst); blank lines are passed over.

    Raises InputError with file and line for what is no row, an id that comes twice, or a file without rows.
    """
    rows: list[Prediction] = []
    seen: dict[str | int, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        row = _parse(line, f"{path}, line {number}")
        if row.id in seen:
            raise InputError(
                f"{path}, line {number}: the id {row.id!r} was on line {seen[row.id]} already; give each question one "
                "prediction",
                field="id",
            )
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise InputError(
            f"{path} holds no predictions; expected JSON Lines with the keys {', '.join(Prediction.model_fields)}",
            field="predictions",
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


def _parse(line: bytes, place: str) -> Prediction:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: is not JSON: {error}", field="predictions") from None
    if not isinstance(data, dict):
        raise InputError(f"{place}: holds a JSON {type(data).__name__}, expected an object", field="predictions")
    try:
        return Prediction.parse(data, source=place)
    except ConfigError as error:
        raise InputError(error.message, field=error.field) from None
