"""Every setting of a run that learns to answer from its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from openbook_core.config import FrozenConfig
from openbook_model.config import RetroConfig
from openbook_trainer.curriculum import CurriculumConfig
from openbook_trainer.recall.sources import SourceSettings

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class RecallOptimiser(FrozenConfig):
    """Muon for the matrices, AdamW for embeddings, norms and gates.

    Both rates warm up, stay, and fall in a straight line to `final_fraction` over the last `decay` of the steps.
    """

    matrices: PositiveFloat = 4e-3
    others: PositiveFloat = 2e-3
    momentum: Fraction = 0.95
    beta1: Fraction = 0.9
    beta2: Fraction = 0.98
    weight_decay: NonNegativeFloat = 0.01
    warmup_steps: NonNegativeInt = 50
    decay: float = Field(default=0.5, ge=0.0, le=1.0)
    final_fraction: float = Field(default=0.05, ge=0.0, le=1.0)
    clip_norm: PositiveFloat = 1.0

    def fraction(self, step: int, steps: int) -> float:
        """What of the rates step number `step` (from 0) of `steps` takes."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        left, falling = (steps - step) / steps, self.decay
        return 1.0 if left >= falling else self.final_fraction + (1 - self.final_fraction) * left / falling


class RecallEvaluation(FrozenConfig):
    """Held-out questions, `questions` of them every `every` steps (0: only at the end) and `final` at the end."""

    every: NonNegativeInt = 250
    questions: PositiveInt = 128
    final: PositiveInt = 512
    max_tokens: PositiveInt = 16


class RecallConfig(FrozenConfig):
    """One run. `out` gets checkpoint.pt, metrics.jsonl, and at the end `model` with the source's tokenizer.

    `batch` questions a step, with as many neighbours, as long, as the curriculum's level says. `autocast` multiplies
    matrices in bfloat16 (null: where a short measurement finds it faster). A checkpoint found in `out` is resumed;
    `stop_at` and `max_seconds` end this process early and leave the schedule over `steps` alone.
    """

    task: Literal["recall"]
    out: Path
    source: SourceSettings
    model: RetroConfig
    steps: PositiveInt
    batch: PositiveInt = 64
    curriculum: CurriculumConfig
    optimiser: RecallOptimiser = RecallOptimiser()
    evaluation: RecallEvaluation = RecallEvaluation()
    autocast: bool | None = None
    seed: NonNegativeInt = 0
    threads: PositiveInt | None = None
    stop_at: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    checkpoint_every: NonNegativeInt = 0
    log_every: PositiveInt = 10

    @model_validator(mode="after")
    def _possible(self) -> Self:
        last = self.curriculum.levels[-1]
        if last.tokens > self.model.neighbor_length:
            raise ValueError(
                f"curriculum.levels: neighbours of {last.tokens} tokens; model.neighbor_length is "
                f"{self.model.neighbor_length}"
            )
        if last.neighbors > self.model.num_neighbors:
            raise ValueError(
                f"curriculum.levels: {last.neighbors} neighbours; model.num_neighbors is {self.model.num_neighbors}"
            )
        if not self.model.cross_attention_layers or self.model.gate == 0.0:
            raise ValueError("model.cross_attention_layers: without cross attention nothing can be recalled")
        if self.optimiser.warmup_steps >= self.steps:
            raise ValueError(f"optimiser.warmup_steps: {self.optimiser.warmup_steps} leave nothing of {self.steps}")
        return self
