"""The training loop: prefetched batches in, optimiser steps, metrics, evaluation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from openbook_core.errors import OpenbookError
from openbook_model import RetroModel
from openbook_trainer import checkpoint
from openbook_trainer.config import TrainConfig
from openbook_trainer.data import IGNORED, Batch, SequenceOrder
from openbook_trainer.distributed import World, whole
from openbook_trainer.evaluation import Evaluator, HeldOutLoss, summed_loss
from openbook_trainer.measures import Meter
from openbook_trainer.metrics import Metrics
from openbook_trainer.neighbours import Neighbors, NeighborSource
from openbook_trainer.optimiser import Optimisers, begin_step, learning_rate
from openbook_trainer.prefetch import Prefetch
from openbook_trainer.saver import Saver
from openbook_trainer.stopping import StopRequest, TerminatedError

MicroBatch = tuple[Batch, Neighbors]


@dataclass(frozen=True)
class Finished:
    """How a run, or this part of it, ended."""

    step: int
    stopped_by: str
    held_out: HeldOutLoss
    checkpoint: Path
    tokens: int
    seconds: float
    wait_share: float
    mfu: float | None
    masked_batches: int
    skipped_steps: int


class Loop:
    """One run's state between steps. `state.step` counts the steps that are done."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        model: RetroModel,
        optimisers: Optimisers,
        order: SequenceOrder,
        source: NeighborSource,
        evaluator: Evaluator,
        metrics: Metrics,
        state: checkpoint.RunState,
        saver: Saver,
        asked_to_stop: StopRequest,
    ) -> None:
        self.config, self.world, self.model, self.optimisers = config, world, model, optimisers
        self.order, self.source, self.evaluator, self.metrics = order, source, evaluator, metrics
        self.state, self.saver, self.asked_to_stop = state, saver, asked_to_stop
        self.first_step = state.step
        self.saved: Path | None = None
        self.meter = Meter(config, world, model)
        self.tokens = self.masked = self.skipped = self.bad_in_a_row = 0
        self._waited_before = 0.0

    def run(self) -> Finished:
        """Train up to `steps`, `stop_at` or `max_seconds`; then evaluate and save."""
        config = self.config
        end = min(config.steps, config.stop_at or config.steps)
        stopped_by = "steps" if end == config.steps else "stop_at"
        start, first = time.perf_counter(), self.first_step
        step = first
        held_out = None
        depth = config.retrieval.prefetch if config.retrieval else 2
        batches = Prefetch(self._batches(step, end), depth, lambda: bool(self.asked_to_stop))
        try:
            ready = iter(batches)
            while (micro_batches := self._next(ready, step)) is not None:
                self._step(step, micro_batches, batches)
                step += 1
                held_out = None
                if self.bad_in_a_row == config.optimiser.max_bad_steps:
                    raise self._diverged(step)
                if config.evaluation.every and step % config.evaluation.every == 0:
                    held_out = self._evaluate(step)
                if config.checkpoint.every and step % config.checkpoint.every == 0:
                    self._save(step)
                if config.max_seconds and step < end and self._late(start):
                    stopped_by = "max_seconds"
                    break
        finally:
            batches.close()
        seconds = time.perf_counter() - start
        held_out = held_out or self._evaluate(step)
        path = self._save_now(step)
        wait_share = batches.waited_s / seconds
        mfu = self.meter.mfu(seconds) if step > first else None
        counts = self.masked, self.skipped
        return Finished(step, stopped_by, held_out, path, self.tokens, seconds, wait_share, mfu, *counts)

    def _next(self, ready: Iterator[list[MicroBatch]], step: int) -> list[MicroBatch] | None:
        """The next step's micro-batches. Raises the error of neighbours or of a save, or TerminatedError; all three
        leave a checkpoint."""

        def take() -> list[MicroBatch] | None:
            self.saver.poll()
            return next(ready, None)

        try:
            taken = self.world.together(take)
        except OpenbookError as error:
            if error.field == "out" or step == self.first_step:
                raise  # nothing can be written, or nothing is new
            error.message += f". {self._save_now(step)} is the checkpoint of step {step}: run the same command to go on"
            error.args = (error.message,)
            raise
        if self.world.total(float(bool(self.asked_to_stop))):
            raise TerminatedError(
                f"stopped by SIGTERM after step {step}; {self._save_now(step)} is whole, run the same command to go on"
            )
        return taken

    def _save_now(self, step: int) -> Path:
        path = self._save(step)
        self.saver.finish()
        return path

    def _batches(self, start: int, end: int) -> Iterator[list[MicroBatch]]:
        """This process's micro-batches of each step; the global batch does not depend on the number of processes."""
        settings, levels, world = self.config.batch, self.config.neighbor_levels, self.world
        for step in range(start, end):
            found = []
            level = levels.at(step, self.config.seed) if levels is not None else None
            for first in range(world.rank * settings.micro, settings.sequences, world.size * settings.micro):
                batch = self.order.samples(step * settings.sequences + first, settings.micro)
                neighbors = self.source.fetch(batch)
                if level is not None:
                    neighbors = neighbors.narrowed(level.neighbors, level.tokens)
                found.append((batch, neighbors))
            yield found

    def _step(self, step: int, micro_batches: list[MicroBatch], batches: Prefetch[list[MicroBatch]]) -> None:
        begin = time.perf_counter()
        rate = learning_rate(self.config.optimiser, step, self.config.steps)
        begin_step(self.optimisers, rate)
        labels = sum(int((batch.labels_BT != IGNORED).sum()) for batch, _ in micro_batches)
        tokens = int(self.world.total(labels))
        loss = 0.0
        for batch, neighbors in micro_batches:
            summed = summed_loss(self.model, batch, neighbors, self.world.device)
            torch.autograd.backward(summed * (self.world.size / tokens))  # FSDP averages over processes
            loss += float(summed.detach())
        loss = self.world.total(loss) / tokens
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimiser.clip_norm)
        norm_value = float(whole(norm))
        good = math.isfinite(loss) and math.isfinite(norm_value)
        if good:
            for optimiser in self.optimisers:
                optimiser.step()
        self.skipped += not good
        self.bad_in_a_row = 0 if good else self.bad_in_a_row + 1
        flops = self.meter.count(micro_batches[0][1])
        masked = int(self.world.total(sum(neighbors.masked for _, neighbors in micro_batches)))
        self.masked += masked
        self.tokens += tokens
        seconds = time.perf_counter() - begin
        waited = batches.waited_s - self._waited_before
        self._waited_before = batches.waited_s
        if (step + 1) % self.config.log_every == 0 or not good:
            self.metrics.write(
                {
                    "step": step + 1,
                    "loss": loss if math.isfinite(loss) else None,
                    "gradient_norm": norm_value if math.isfinite(norm_value) else None,
                    "learning_rate": rate,
                    **self.meter.figures(flops, tokens, seconds, waited),
                    "masked_batches": self.masked,
                    "skipped_steps": self.skipped,
                }
            )

    def _diverged(self, step: int) -> OpenbookError:
        path = self._save_now(step)
        return OpenbookError(
            f"step {step}: loss or gradient was not finite {self.bad_in_a_row} steps in a row, so the run stops. "
            f"None of these steps changed a weight, {path} is a checkpoint from before them: the same command goes on from "
            "it with the next batches. If that does not help, begin anew with a lower optimiser.learning_rate or more "
            "optimiser.warmup_steps",
            field="optimiser.learning_rate",
        )

    def _evaluate(self, step: int) -> HeldOutLoss:
        held_out = self.evaluator.measure(self.model, self.world.device)
        self.metrics.write({"step": step, **asdict(held_out)})
        return held_out

    def _save(self, step: int) -> Path:
        """Begin to save this step's state, if that is not done."""
        if self.saved is None or self.state.step != step:
            self.state = replace(self.state, step=step)
            self.saved = self.saver.start(self.model, self.optimisers, self.state)
        return self.saved

    def _late(self, start: float) -> bool:
        limit = self.config.max_seconds
        assert limit is not None
        return self.world.from_first(lambda: time.perf_counter() - start >= limit)
