"""A curriculum on what a model reads beside its input: few and short neighbours first, with replay of earlier levels.

A model that starts with k long neighbours finds no gradient that leads to reading them ("no retrieval yet" is a loss
that stays); from one short neighbour on it learns to copy, and each further level is a small step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from openbook_core.config import FrozenConfig

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Level(FrozenConfig):
    """At most `neighbors` neighbours of at most `tokens` tokens."""

    neighbors: PositiveInt
    tokens: PositiveInt


def check_rising(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Raise ValueError where a level has fewer or shorter neighbours than the one before."""
    for earlier, later in pairwise(levels):
        if later.neighbors < earlier.neighbors or later.tokens < earlier.tokens:
            raise ValueError(
                f"neighbours and tokens may not fall; {later.neighbors} of {later.tokens} tokens comes after "
                f"{earlier.neighbors} of {earlier.tokens}"
            )
    return levels


Levels = Annotated[tuple[Level, ...], Field(min_length=1), AfterValidator(check_rising)]


class LevelSchedule(FrozenConfig):
    """Levels by the step alone: each lasts `steps`, the last to the end.

    A share `replay` of the steps after the first level is of earlier ones. What a step's level is depends on nothing
    else, so a run needs no state of it to be resumed, and all its processes agree.
    """

    levels: Levels
    steps: PositiveInt
    replay: Share = 0.2

    def at(self, step: int, seed: int) -> Level:
        """The level of step number `step`, from 0."""
        newest, rng = min(step // self.steps, len(self.levels) - 1), Random(f"{seed} level {step}")
        return self.levels[_with_replay(rng, newest, self.replay)]


class CurriculumConfig(FrozenConfig):
    """The levels, first to last, and when the next one begins.

    That is when the running loss (nats per token, a mean whose memory is `memory` of a batch's weight before it) is
    under `below` on at least `least` batches of the level, or after `at_most` batches of it. A share `replay` of the
    batches is drawn from the levels before.
    """

    levels: Levels
    below: PositiveFloat = 0.6
    least: NonNegativeInt = 20
    at_most: PositiveInt | None = None
    replay: Share = 0.2
    memory: Share = 0.9


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
        return _with_replay(rng, self.level, self.config.replay)

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


def _with_replay(rng: Random, newest: int, share: float) -> int:
    return rng.randrange(newest) if newest and rng.random() < share else newest
