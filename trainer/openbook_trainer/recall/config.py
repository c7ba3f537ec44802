"""Every setting of a run that learns to answer from its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from openbook_core.config import FrozenConfig
from openbook_model.config import RetroConfig
from openbook_trainer.config import OptimiserConfig
from openbook_trainer.curriculum import CurriculumConfig
from openbook_trainer.recall.sources import SourceSettings


class RecallEvaluation(FrozenConfig):
    """On names that are not trained on: `questions` for validation every `every` steps (0: never), and `final` held-out ones
    at the end."""

    every: NonNegativeInt = 250
    questions: PositiveInt = 128
    final: PositiveInt = 512
    max_tokens: PositiveInt = 16


class RecallConfig(FrozenConfig):
    """One run. `out` gets checkpoint.pt, metrics.jsonl, and at the end `model` with the source's tokenizer.

    `batch` questions a step (a source may add further ones on the same passages), with as many neighbours, as long, as
    the curriculum's level says. `copying`: cross attention starts as one that adds what it attends to
    (`initialisation.start_copying`). `autocast` multiplies
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
    optimiser: OptimiserConfig = OptimiserConfig()
    evaluation: RecallEvaluation = RecallEvaluation()
    copying: bool = False
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
        if self.model.encoder.conditioned and self.source.questions > 1:
            raise ValueError(
                f"source.questions: {self.source.questions} questions share their passages' encoding, and a conditioned encoder "
                "has one for each; take 1, or model.encoder.conditioned false"
            )
        self.optimiser.require_use("recall", self.steps)
        return self
