"""A blend: data sets with a path, a format and a weight, as a YAML file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from openbook_core.config import FrozenConfig, load_config
from openbook_trainer.sft.readers import READERS, Example


class DataSet(FrozenConfig):
    """`path` may name environment variables; `weight` is the fraction of examples that are drawn from here.

    `options` belong to the format, see `readers`. `database` is asked for passages instead of the run's.
    """

    path: str
    format: str
    weight: PositiveFloat
    options: dict[str, str] = Field(default_factory=dict)
    database: str = ""

    @field_validator("format")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in READERS:
            raise ValueError(f"unknown format {value!r}; known are {', '.join(sorted(READERS))}")
        return value


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
    """The examples of each data set. Raises InputError for a missing file, a bad row (with its line), or none."""
    return [READERS[each.format](each.path, each.options) for each in blend.datasets]
