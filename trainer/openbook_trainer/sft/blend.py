"""A blend: data sets with a path, a format and a weight, as a YAML file."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from openbook_core.config import FrozenConfig, load_config
from openbook_core.errors import InputError
from openbook_trainer.sft.readers import READERS, Example

logger = logging.getLogger(__name__)


class DataSet(FrozenConfig):
    """`path` may name environment variables; `weight` is the fraction of examples that are drawn from here.

    `options` belong to the format, see `readers`; `licence` is for whoever reads the file. Left out are examples with
    more than `max_characters` (of earlier turns, question and answer) or an answer whose length is not within
    `answer_characters`. Passages come from `database`, by default the run's; without `retrieve` a question with no
    passage of its own stands alone.
    """

    path: str
    format: str
    weight: PositiveFloat
    licence: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    database: str = ""
    max_characters: PositiveInt | None = None
    answer_characters: tuple[PositiveInt, PositiveInt] | None = None
    retrieve: bool = True

    @field_validator("format")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in READERS:
            raise ValueError(f"unknown format {value!r}; known are {', '.join(sorted(READERS))}")
        return value

    @model_validator(mode="after")
    def _options(self) -> Self:
        READERS[self.format].resolve(self.options)
        return self


class Blend(FrozenConfig):
    """Weights sum to 1."""

    datasets: Annotated[tuple[DataSet, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sum(self) -> Self:
        total = math.fsum(each.weight for each in self.datasets)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"datasets: the weights sum to {total:g}, not to 1")
        return self


def load_blend(path: Path) -> Blend:
    """The blend of a YAML file. Raises ConfigError."""
    return load_config(Blend, path)[0]


def read_examples(blend: Blend) -> list[list[Example]]:
    """The examples of each data set. Raises NotFoundError, or InputError for a bad row (with its line) or none."""
    return [_read(each) for each in blend.datasets]


def _read(data: DataSet) -> list[Example]:
    found = READERS[data.format](data.path, data.options)
    kept = [each for each in found if _has_length(each, data)]
    if not kept:
        raise InputError(f"{data.path}: none of its {len(found)} examples has the lengths asked for", field="blend")
    if len(kept) < len(found):
        logger.info("%s: %d of %d examples left out by their length", data.path, len(found) - len(kept), len(found))
    if data.retrieve:
        return kept
    return [each if each.passages else replace(each, passages=()) for each in kept]


def _has_length(example: Example, data: DataSet) -> bool:
    whole = sum(len(text) for text in (*(text for _, text in example.turns), example.question, example.answer))
    least, most = data.answer_characters or (1, len(example.answer))
    return whole <= (data.max_characters or whole) and least <= len(example.answer) <= most
