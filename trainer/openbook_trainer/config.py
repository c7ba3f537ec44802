"""Every setting of a training run, typed and frozen. YAML is data that loads into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from openbook_core.config import FrozenConfig, load_config
from openbook_core.weights import DEFAULT_MODEL
from openbook_database.reader import FieldNames, Source
from openbook_model.config import RetroConfig
from openbook_trainer.curriculum import LevelSchedule
from openbook_trainer.initial import InitialConfig, with_base

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class CorpusConfig(FrozenConfig):
    """JSON Lines files (plain, .gz, .zst) and how they become tokens.

    `held_out` is the fraction of documents, chosen by a hash of their ids, that is never trained on (at least one).
    """

    sources: tuple[Source, ...] = Field(min_length=1)
    fields: FieldNames = FieldNames()
    tokenizer: str = DEFAULT_MODEL
    held_out: float = Field(default=0.05, gt=0.0, lt=1.0)
    skip_bad_lines: bool = False
    max_documents: PositiveInt | None = None


class BatchConfig(FrozenConfig):
    """`sequences` per optimiser step over all processes, in micro-batches of `micro` on each.

    A sequence is `chunks` whole chunks of the corpus grid; with `vary_phase` its first 0 to m - 1 tokens are dropped.
    All neighbours of a chunk are dropped with probability `neighbor_drop`.
    """

    sequences: PositiveInt = 8
    micro: PositiveInt = 4
    chunks: PositiveInt = 8
    vary_phase: bool = True
    neighbor_drop: Fraction = 0.1

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.sequences % self.micro:
            raise ValueError(f"batch.micro: {self.micro} does not divide batch.sequences {self.sequences}")
        return self


class RetrievalConfig(FrozenConfig):
    """Where neighbours come from: the retriever at `address`, or a `cache` of `openbook db neighbours` with the `folder`
    of its snapshot (then nobody is asked at `address`). `snapshot` "" pins the one that is live when the run starts.

    A failed call may be repeated while `retry_budget` lasts: each retry costs 1, each success returns 0.1. Then
    `on_failure` decides: "stop" ends the run, "mask" trains that batch without neighbours and counts it.
    `exclude_own_document=False` is right only for a corpus that shares no document with the database.
    """

    address: str = ""
    database: str = ""
    cache: Path | None = None
    folder: Path | None = None
    snapshot: str = ""
    prefetch: PositiveInt = 2
    deadline_s: PositiveFloat = 30.0
    retry_budget: NonNegativeFloat = 5.0
    on_failure: Literal["stop", "mask"] = "stop"
    exclude_own_document: bool = True

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.cache is None) != (self.folder is None):
            raise ValueError(
                "retrieval.cache: a cache holds ids; name it and the folder of its snapshot (retrieval.folder)"
            )
        if self.cache is None and not (self.address and self.database):
            raise ValueError("retrieval.address: name a retriever's address and the database, or a cache and a folder")
        return self


class OptimiserConfig(FrozenConfig):
    """AdamW, or Muon for the hidden matrices beside AdamW for the rest; clipping by the global norm.

    The schedules are those of `optimiser.learning_rate`: linear warm-up, then cosine over all steps, or wsd with a
    straight fall over the last `decay_fraction` of them, to `final_fraction` of the peak. `muon_learning_rate` None is
    `learning_rate`. `average_decay` d keeps an average of the weights (EMA), a := d a + (1 - d) w after every step; it
    is written as `out/model-average`. A step whose loss or gradient is not finite changes nothing and is counted; after
    `max_bad_steps` in a row the run stops. `clip_norm` may be .inf: gradients are left as they are.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 3e-4
    muon_learning_rate: PositiveFloat | None = None
    muon_momentum: Fraction = 0.95
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_fraction: float = Field(default=0.2, gt=0.0, le=1.0)
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    warmup_steps: NonNegativeInt = 0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: float = Field(default=1.0, gt=0.0, allow_inf_nan=True)
    average_decay: Fraction | None = None
    max_bad_steps: PositiveInt = 5

    def require_warmup(self, steps: int) -> None:
        """Raise ValueError where the warm-up leaves nothing of a run of `steps`."""
        if self.warmup_steps >= steps:
            raise ValueError(f"optimiser.warmup_steps: {self.warmup_steps} leave nothing of {steps}")

    def require_use(self, task: str, steps: int) -> None:
        """Also where the loop of another task than pretraining does not do what is asked for."""
        self.require_warmup(steps)
        for name in ("average_decay", "max_bad_steps"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"optimiser.{name}: task {task} has no such thing; leave it out")


class ComputeConfig(FrozenConfig):
    """How the arithmetic is done; master weights, moments and sums over processes are float32 always.

    `dtype`: of the blocks' arithmetic; "auto" takes bfloat16 where a short measurement finds it faster, and a resumed
    run what it began with. `checkpointing` computes each block's inner states anew in the backward pass instead of
    keeping them. `compile` translates the blocks with torch.compile. `peak_tflops`: what MFU is a fraction of, per
    process; None measures a large matrix product at the start.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpointing: bool = False
    compile: bool = False
    peak_tflops: PositiveFloat | None = None


class EvaluationConfig(FrozenConfig):
    """Held-out loss every `every` steps (0: only at the end) on up to `sequences` sequences."""

    every: NonNegativeInt = 0
    sequences: PositiveInt = 16


class CheckpointConfig(FrozenConfig):
    """Every `every` steps (0: only at the end); the newest `keep` stay."""

    every: NonNegativeInt = 0
    keep: PositiveInt = 2


class TrainConfig(FrozenConfig):
    """One run. `out` gets checkpoints, metrics.jsonl and the finished model; a checkpoint found there is resumed.
    `tensorboard` writes the same figures as event files to `out/tensorboard`.

    `stop_at` and `max_seconds` end this process early (with a checkpoint) and leave the schedule over `steps` alone.
    `init` starts from a finished decoder. A model without cross attention trains as a plain GPT, without `retrieval`, on
    the same sequences in the same order: the twin to compare a RETRO with.
    `neighbor_levels`: begin with few and short neighbours; evaluation always has them all.
    """

    out: Path
    steps: PositiveInt
    seed: NonNegativeInt = 0
    stop_at: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    threads: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: PositiveInt = 1
    tensorboard: bool = False
    init: InitialConfig | None = None
    model: RetroConfig
    corpus: CorpusConfig
    batch: BatchConfig = BatchConfig()
    neighbor_levels: LevelSchedule | None = None
    retrieval: RetrievalConfig | None = None
    optimiser: OptimiserConfig = OptimiserConfig()
    compute: ComputeConfig = ComputeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="before")
    @classmethod
    def _complete_from_base(cls, data: Any) -> Any:
        return with_base(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        length = self.batch.chunks * self.model.chunk_length
        if length > self.model.max_positions:
            raise ValueError(
                f"batch.chunks: {self.batch.chunks} chunks are {length} tokens; "
                f"the model has {self.model.max_positions} positions"
            )
        layers = self.model.cross_attention_layers
        if self.retrieval and not layers:
            raise ValueError(
                "model.cross_attention_layers: none, so neighbours could not be used; name a layer, or set retrieval=null"
            )
        if layers and not self.retrieval:
            raise ValueError(
                f"retrieval: layers {layers} read neighbours; say where they come from, or set "
                "model.cross_attention_layers=[] to train without retrieval"
            )
        if self.init and self.init.base_learning_rate is None and not layers:
            raise ValueError(
                "init.base_learning_rate: the base is frozen and nothing is added to it, so nothing would be trained; "
                "give a rate, or name a layer in model.cross_attention_layers"
            )
        if self.model.gate == 0.0:
            raise ValueError('model.gate: 0 switches retrieval off for good; use "learned" or another constant')
        if self.model.neighbor_length != 2 * self.model.chunk_length:
            raise ValueError(
                f"model.neighbor_length: a neighbour is a chunk and its continuation, {2 * self.model.chunk_length} "
                f"tokens; given {self.model.neighbor_length}"
            )
        self.optimiser.require_warmup(self.steps)
        if self.neighbor_levels is not None:
            last, most = self.neighbor_levels.levels[-1], (self.model.num_neighbors, self.model.neighbor_length)
            if (last.neighbors, last.tokens) != most:
                raise ValueError(
                    f"neighbor_levels.levels: the last must be all that the model reads, {most[0]} neighbours of "
                    f"{most[1]} tokens; given {last.neighbors} of {last.tokens}"
                )
        return self


def load_train_config(path: Path | None, overrides: Iterable[str] = ()) -> tuple[TrainConfig, dict[str, str]]:
    """The configuration of a YAML file with `a.b=c` overrides, and where each value came from. Raises ConfigError."""
    return load_config(TrainConfig, path, overrides)


def task_of(path: Path) -> str:
    """The `task` that a configuration file names: "pretrain" where it names none. It reads nothing else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return "pretrain"  # the loader says what is wrong with the file
    return str(content.get("task", "pretrain")) if isinstance(content, dict) else "pretrain"
