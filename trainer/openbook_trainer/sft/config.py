"""Every setting of an instruction-tuning run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from openbook_core.config import FrozenConfig
from openbook_core.weights import DEFAULT_MODEL
from openbook_prompt.settings import DEFAULT_PASSAGES, PromptSettings
from openbook_trainer.config import OptimiserConfig


class LoraSettings(FrozenConfig):
    """Rank and scale of the adapter on every projection of the decoder's own blocks."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32


class PassageSettings(FrozenConfig):
    """The running retriever; `k` passages per question from `database`, or from the one that a data set names."""

    address: str
    database: str
    k: PositiveInt = DEFAULT_PASSAGES
    deadline_s: PositiveFloat = 30.0


class SftConfig(FrozenConfig):
    """One run. `out` gets checkpoints, metrics.jsonl, and at the end `adapter` (or `model` where `lora` is null).

    `blend` is a YAML file, see `blend`. `examples` are drawn per step and packed into rows of up to `row_tokens`.
    Without `passages` a question that brings none of its own stands alone.
    An example that is `too_long` for a row stops the run before its first step, or is left out and counted in the log.
    With `only_answerable` an example whose answer is not in its shown passages is left out. `autocast` multiplies
    matrices in bfloat16 (null: where a short measurement finds it faster); weights and moments stay in float32. A
    checkpoint found in `out` is resumed; `stop_at` and `max_seconds` end this process early and leave the schedule
    alone.
    """

    task: Literal["sft"]
    out: Path
    model: str = DEFAULT_MODEL
    blend: Path
    steps: PositiveInt
    examples: PositiveInt = 8
    row_tokens: PositiveInt = 512
    too_long: Literal["stop", "leave out"] = "stop"
    only_answerable: bool = True
    autocast: bool | None = None
    seed: NonNegativeInt = 0
    threads: PositiveInt | None = None
    stop_at: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    checkpoint_every: NonNegativeInt = 0
    lora: LoraSettings | None = LoraSettings()
    prompt: PromptSettings = PromptSettings()
    passages: PassageSettings | None = None
    optimiser: OptimiserConfig = Field(
        default=OptimiserConfig(learning_rate=5e-4, final_fraction=0.0, beta2=0.999, weight_decay=0.0)
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.optimiser.require_use("sft", self.steps)
        return self
