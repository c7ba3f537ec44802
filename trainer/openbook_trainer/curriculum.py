"""A curriculum on what a model reads beside its input: few and short neighbours first, with replay of earlier levels.

A model that starts with k long neighbours finds no gradient that leads to reading them ("no retrieval yet" is a loss
that stays); from one short neighbour on it learns to copy, and each further level is a small step.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from openbook_core.config import FrozenConfig

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Level(FrozenConfig):
    """At most `neighbors` neighbours of at most `tokens` tokens."""

    neighbors: PositiveInt
    tokens: PositiveInt


class CurriculumConfig(FrozenConfig):
    """The levels, first to last, and when the next one begins.

    That is when the running loss (nats per token, a mean whose memory is `memory` of a batch's weight before it) is
    under `below` on at least `least` batches of the level, or after `at_most` batches of it. A share `replay` of the
    batches is drawn from the levels before.
    """

    levels: tuple[Level, ...] = Field(min_length=1)
    below: PositiveFloat = 0.6
    least: NonNegativeInt = 20
    at_most: PositiveInt | None = None
    replay: Share = 0.2
    memory: Share = 0.9

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for earlier, later in zip(self.levels, self.levels[1:], strict=False):
            if later.neighbors < earlier.neighbors or later.tokens < earlier.tokens:
                raise ValueError(
                    f"levels: neighbours and tokens may not fall; {later.neighbors} of {later.tokens} tokens comes after "
                    f"{earlier.neighbors} of {earlier.tokens}"
                )
        return self


@dataclass
class Curriculum:
    """Where a run stands. `draw` is a function of this and the given generator alone, so `record` is all to resume."""

    config: CurriculumConfig
    level: int = 0
    batches: int = 0
    loss: float | None = None

    @property
    def at_last(self) -> bool:
        return self.level == len(self.config.levels) - 1

    def draw(self, rng: Random) -> int:
        """Which level the next batch is of."""
        if self.level and rng.random() < self.config.replay:
            return rng.randrange(self.level)
        return self.level

    def observe(self, level: int, loss: float) -> bool:
        """Take note of a batch's loss; whether the next level begins. Batches of earlier levels do not count."""
        if level != self.level:
            return False
        config = self.config
        self.batches += 1
        self.loss = loss if self.loss is None else config.memory * self.loss + (1 - config.memory) * loss
        learnt = self.batches >= config.least and self.loss < config.below
        overdue = config.at_most is not None and self.batches >= config.at_most
        if self.at_last or not (learnt or overdue):
            return False
        self.level, self.batches, self.loss = self.level + 1, 0, None
        return True

    def record(self) -> dict[str, float | int | None]:
        return {"level": self.level, "batches": self.batches, "loss": self.loss}

    def restore(self, record: dict[str, float | int | None]) -> None:
        self.level, self.batches = int(record["level"] or 0), int(record["batches"] or 0)
        self.loss = record["loss"]
