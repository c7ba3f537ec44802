"""The instruction-tuning loop."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from openbook_core.errors import InputError, OpenbookError
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel, load, save
from openbook_model.adapter import save_adapter
from openbook_model.precision import probe_precision
from openbook_model.resolve import resolve_folder
from openbook_trainer.data import IGNORED
from openbook_trainer.metrics import Metrics
from openbook_trainer.one_file import load_state, save_state
from openbook_trainer.optimiser import begin_step, learning_rate, make_optimisers
from openbook_trainer.sft.batches import Batches
from openbook_trainer.sft.config import SftConfig
from openbook_trainer.sft.lora import adapter_pairs, inject
from openbook_trainer.sft.packing import Packed

_COUNTS = ("examples", "left_out", "tokens")
_FREE = {"out", "threads", "stop_at", "max_seconds", "checkpoint_every", "blend", "passages"}


def run_sft(config: SftConfig) -> dict[str, Any]:
    """Run, or go on with, the tuning; returns and prints the summary. Raises OpenbookError."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with ExitStack() as stack:
        summary = _Run(config, stack).train()
    print(json.dumps(summary), flush=True)
    return summary


def packed_loss(model: RetroModel, packed: Packed) -> torch.Tensor:
    """Summed cross entropy (nats) of the answers' tokens; examples of a row do not see each other."""
    counted = packed.labels_BT != IGNORED
    logits_NV = model(
        packed.ids_BT,
        packed.neighbor_ids_BLKR,
        packed.neighbor_lengths_BLK,
        first_chunk=model.config.chunk_length,
        document_ids_BT=packed.documents_BT,
        wanted_BT=counted,
    )
    return F.cross_entropy(logits_NV.float(), packed.labels_BT[counted], reduction="sum")


class _Run:
    def __init__(self, config: SftConfig, stack: ExitStack) -> None:
        """`stack` closes the connection to the retriever."""
        self.config = config
        folder = resolve_folder(config.model)
        self.tokenizer = Tokenizer.load(folder)
        self.model = load(folder, torch.float32)
        self.batches = stack.enter_context(closing(Batches(config, self.model, self.tokenizer)))
        torch.manual_seed(config.seed)
        if config.lora:
            inject(self.model, config.lora)
        self.model.train()
        self.trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self.optimisers = make_optimisers(self.model, config.optimiser, bfloat16=bool(config.autocast))
        self.autocast = config.autocast
        self.examples, self.left_out = 0, 0
        self.settings = config.model_dump(mode="json", exclude=_FREE) | self.batches.record()

    def train(self) -> dict[str, Any]:
        config = self.config
        step = self._resume()
        if self.autocast is None:
            probed = probe_precision().seconds["prefill"]
            self.autocast = probed["bfloat16"] < probed["float32"]
        end = min(config.steps, config.stop_at or config.steps)
        metrics = Metrics(config.out / "metrics.jsonl", first=True, resumed_at=step)
        begun, cpu, tokens = time.perf_counter(), time.process_time(), 0
        stopped_by = "steps" if end == config.steps else "stop_at"
        while step < end:
            try:
                record = self._step(step)
            except OpenbookError:
                self._save(step)
                raise
            tokens += record["tokens"]
            step += 1
            metrics.write({"step": step, **record})
            if config.checkpoint_every and step % config.checkpoint_every == 0:
                self._save(step)
            if config.max_seconds and step < end and time.perf_counter() - begun >= config.max_seconds:
                stopped_by = "max_seconds"
                break
        self._save(step)
        seconds = time.perf_counter() - begun
        if not self.examples:
            raise InputError(
                f"none of {self.left_out} examples could be learnt from: no answer is in what the retriever finds. "
                "Serve the book that the blend's questions are about, or set only_answerable=false",
                field="only_answerable",
            )
        return {
            "steps": step,
            "stopped_by": stopped_by,
            "examples": self.examples,
            "left_out": self.left_out,
            "tokens": tokens,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "autocast": self.autocast,
            "snapshots": self.batches.snapshots,
            "parameters": sum(each.numel() for each in self.trained.values()),
            "written": str(self._export()),
        }

    def _step(self, step: int) -> dict[str, Any]:
        begun = time.perf_counter()
        batch = self.batches.at(step)
        waited = time.perf_counter() - begun
        rate = learning_rate(self.config.optimiser, step, self.config.steps)
        begin_step(self.optimisers, rate)
        self.examples, self.left_out = self.examples + batch.examples, self.left_out + batch.left_out
        record = {"loss": None, "learning_rate": rate, **{name: getattr(batch, name) for name in _COUNTS}}
        if batch.packed:
            record |= self._learn(step, batch.packed)
        return record | {"seconds": round(time.perf_counter() - begun, 3), "prepare_seconds": round(waited, 3)}

    def _learn(self, step: int, packed: Packed) -> dict[str, float]:
        """One update; the loss (nats per token of the answers) and the gradient's norm before clipping."""
        answers, total = int((packed.labels_BT != IGNORED).sum()), 0.0
        for row in packed.rows():
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(self.autocast)):
                loss = packed_loss(self.model, row) / answers
            torch.autograd.backward(loss)
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.optimiser.clip_norm))
        if not (total < float("inf") and norm < float("inf")):
            raise OpenbookError(
                f"step {step + 1}: the loss is {total}, the gradient's norm {norm}; start again with a lower "
                "optimiser.learning_rate and another `out`",
                field="optimiser.learning_rate",
            )
        for optimiser in self.optimisers:
            optimiser.step()
        return {"loss": total, "gradient_norm": norm}

    def _checkpoint(self) -> Path:
        return self.config.out / "checkpoint.pt"

    def _save(self, step: int) -> None:
        """What was trained, the optimiser's moments, and the step."""
        weights = {name: each.detach() for name, each in self.trained.items()}
        moments = [each.state_dict() for each in self.optimisers]
        state = {"step": step, "autocast": self.autocast, "weights": weights, "optimisers": moments}
        save_state(self._checkpoint(), self.settings, state | {"examples": self.examples, "left_out": self.left_out})

    def _resume(self) -> int:
        self.config.out.mkdir(parents=True, exist_ok=True)
        state = load_state(self._checkpoint(), self.settings)
        if state is None:
            return 0
        with torch.no_grad():
            for name, each in self.trained.items():
                each.copy_(state["weights"][name])
        for optimiser, moments in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(moments)
        self.autocast, self.examples, self.left_out = state["autocast"], state["examples"], state["left_out"]
        return int(state["step"])

    def _export(self) -> Path:
        config, prompt = self.config, self.config.prompt.model_dump(mode="json")
        if config.lora:
            folder = config.out / "adapter"
            pairs = adapter_pairs(self.model)
            save_adapter(folder, pairs, config.lora.rank, config.lora.alpha, config.model, prompt)
            return folder
        with tempfile.TemporaryDirectory() as folder_name:
            self.tokenizer.save(Path(folder_name))
            save(self.model, config.out / "model", folder_name, prompt=prompt)
        return config.out / "model"
