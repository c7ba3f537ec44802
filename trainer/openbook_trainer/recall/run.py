"""The training loop of `task: recall`."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn import functional as F

from openbook_core.errors import ConfigError, OpenbookError
from openbook_database.files import write_bytes_atomically
from openbook_model import RetroModel, initialise, save, start_copying, weights_hash
from openbook_model.precision import probe_precision
from openbook_trainer.curriculum import Curriculum
from openbook_trainer.distributed import be_deterministic
from openbook_trainer.metrics import Metrics
from openbook_trainer.muon import Muon
from openbook_trainer.one_file import load_state, save_state
from openbook_trainer.optimiser import begin_step, learning_rate, make_optimisers
from openbook_trainer.recall.answers import grade, grade_seen
from openbook_trainer.recall.batches import IGNORED, RecallBatch, to_batch
from openbook_trainer.recall.config import RecallConfig
from openbook_trainer.recall.source import RecallSource
from openbook_trainer.recall.sources import make_source

_FREE = {"out", "threads", "stop_at", "max_seconds", "checkpoint_every", "log_every", "evaluation"}


def run_recall(config: RecallConfig) -> dict[str, Any]:
    """Run, or go on with, the training; returns and prints the summary. Raises OpenbookError."""
    if config.threads:
        torch.set_num_threads(config.threads)
    be_deterministic()
    summary = _Run(config).train()
    print(json.dumps(summary), flush=True)
    return summary


def answer_loss(model: RetroModel, batch: RecallBatch) -> torch.Tensor:
    """Mean cross entropy (nats) of the answers' tokens and ends."""
    counted_BT = batch.labels_BT != IGNORED
    logits_NV = model(
        batch.ids_BT, batch.neighbor_ids_G1KR, batch.lengths_G1K, first_chunk=batch.phases, wanted_BT=counted_BT
    )
    return F.cross_entropy(logits_NV.float(), batch.labels_BT[counted_BT])


class _Run:
    def __init__(self, config: RecallConfig) -> None:
        self.config = config
        self.source: RecallSource = make_source(config.source, config.seed)
        if self.source.tokenizer.vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size {config.model.vocab_size} is less than the tokenizer's "
                f"{self.source.tokenizer.vocab_size}",
                field="model.vocab_size",
            )
        self.model = RetroModel(config.model)
        initialise(self.model, config.seed)
        if config.copying:
            start_copying(self.model, config.seed)
        self.model.train()
        self.optimisers = make_optimisers(self.model, config.optimiser, bfloat16=False)
        self.curriculum = Curriculum(config.curriculum)
        self.autocast = config.autocast
        self.trained_s = self.trained_cpu_s = 0.0
        self.tokens = {"decoder": 0, "encoder": 0}
        self.settings = config.model_dump(mode="json", exclude=_FREE) | {"source_digest": self.source.digest}
        self.checkpoint = config.out / "checkpoint.pt"

    def train(self) -> dict[str, Any]:
        config = self.config
        step = self._resume()
        if self.autocast is None:
            probed = probe_precision().seconds["prefill"]
            self.autocast = probed["bfloat16"] < probed["float32"]
        for each in self.optimisers:
            if isinstance(each, Muon) and self.autocast:
                each.arithmetic = torch.bfloat16
        end = min(config.steps, config.stop_at or config.steps)
        stopped_by = "steps" if end == config.steps else "stop_at"
        metrics = Metrics(config.out / "metrics.jsonl", first=True, resumed_at=step)
        begun = time.perf_counter()
        while step < end:
            record = self._timed_step(step)
            step += 1
            if step % config.log_every == 0 or record["advanced"]:
                metrics.write({"step": step, **record})
            if config.evaluation.every and step % config.evaluation.every == 0:
                metrics.write({"step": step, **self._evaluate("validation", config.evaluation.questions)})
            if config.checkpoint_every and step % config.checkpoint_every == 0:
                self._save(step)
            if config.max_seconds and step < end and time.perf_counter() - begun >= config.max_seconds:
                stopped_by = "max_seconds"
                break
        self._save(step)
        held_out = self._evaluate("held_out", config.evaluation.final)
        metrics.write({"step": step, **held_out})
        summary = {
            "steps": step,
            "stopped_by": stopped_by,
            **held_out,
            **{f"{name}_tokens": count for name, count in self.tokens.items()},
            "train_seconds": round(self.trained_s, 1),
            "train_cpu_seconds": round(self.trained_cpu_s, 1),
            "autocast": self.autocast,
            "parameters": sum(each.numel() for each in self.model.parameters()),
            "model": str(self._export()),
            "weights_hash": weights_hash(self.model),
        }
        write_bytes_atomically(config.out / "summary.json", json.dumps(summary, indent=1).encode())
        return summary

    def _timed_step(self, step: int) -> dict[str, Any]:
        """The record of a step; the clocks of training count steps alone, with the making of their questions."""
        begun, cpu = time.perf_counter(), time.process_time()
        record = self._step(step)
        seconds = time.perf_counter() - begun
        self.trained_s += seconds
        self.trained_cpu_s += time.process_time() - cpu
        return record | {"seconds": round(seconds, 4), "train_cpu_seconds": round(self.trained_cpu_s, 2)}

    def _step(self, step: int) -> dict[str, Any]:
        config = self.config
        rng = Random(f"{config.seed} step {step}")
        number = self.curriculum.draw(rng)
        level = config.curriculum.levels[number]
        questions = self.source.questions(rng, config.batch, level.neighbors, level.tokens)
        batch = to_batch(questions, self.source.end, config.model.chunk_length)
        self.tokens["decoder"] += sum(len(prompt) + len(answer) for each in questions for prompt, answer in each.asked)
        self.tokens["encoder"] += int(batch.lengths_G1K.sum())
        rate = learning_rate(config.optimiser, step, config.steps)
        begin_step(self.optimisers, rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(self.autocast)):
            loss = answer_loss(self.model, batch)
        torch.autograd.backward(loss)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimiser.clip_norm))
        value = float(loss.detach())
        if not (value < float("inf") and norm < float("inf")):
            self._save(step)
            raise OpenbookError(
                f"step {step + 1}: the loss is {value}, the gradient's norm {norm}; start again with lower rates in "
                "`optimiser` and another `out`",
                field="optimiser",
            )
        for optimiser in self.optimisers:
            optimiser.step()
        advanced = self.curriculum.observe(number, value)
        return {"loss": value, "level": number, "gradient_norm": norm, "learning_rate": rate, "advanced": advanced}

    def _evaluate(self, which: str, count: int) -> dict[str, Any]:
        """Under the name `which`: of the same questions at every step, other ones for each name; `seen`: on what is trained
        on."""
        settings, model = self.config.evaluation, self.config.model
        rng, shape = Random(f"{self.config.seed} {which}"), (count, model.num_neighbors, model.neighbor_length)
        pairs, seen = self.source.held_out(rng, *shape), self.source.questions(rng, *shape)
        self.model.eval()
        graded = grade(self.model, self.source.tokenizer, pairs, settings.max_tokens)
        graded["seen"] = grade_seen(self.model, self.source.tokenizer, seen, settings.max_tokens)
        self.model.train()
        return {which: {"questions": count, **{name: round(value, 4) for name, value in graded.items()}}}

    def _save(self, step: int) -> None:
        state: dict[str, Any] = {
            "step": step,
            "autocast": self.autocast,
            "model": self.model.state_dict(),
            "tokens": self.tokens,
        }
        state |= {"optimisers": [each.state_dict() for each in self.optimisers]}
        state |= {"curriculum": self.curriculum.record(), "seconds": [self.trained_s, self.trained_cpu_s]}
        save_state(self.checkpoint, self.settings, state)

    def _resume(self) -> int:
        self.config.out.mkdir(parents=True, exist_ok=True)
        state = load_state(self.checkpoint, self.settings)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        for optimiser, moments in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(moments)
        self.curriculum.restore(state["curriculum"])
        self.autocast, self.tokens = state["autocast"], state["tokens"]
        self.trained_s, self.trained_cpu_s = state["seconds"]
        return int(state["step"])

    def _export(self) -> Path:
        folder = self.config.out / "model"
        with tempfile.TemporaryDirectory() as name:
            self.source.tokenizer.save(Path(name))
            save(self.model, folder, name)
        return folder
