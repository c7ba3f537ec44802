"""The instruction-tuning loop."""

from __future__ import annotations

import json
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from openbook_core.clients import RetrieverClient
from openbook_core.errors import ConfigError, OpenbookError
from openbook_core.tokenizer import Tokenizer
from openbook_model import RetroModel, cross_attention_state, load, save
from openbook_model.adapter import save_adapter
from openbook_model.resolve import resolve_folder
from openbook_prompt.chat import ChatFormat
from openbook_prompt.passage import find_passages
from openbook_prompt.recipe import choose_shown
from openbook_trainer.data import IGNORED
from openbook_trainer.metrics import Metrics
from openbook_trainer.optimiser import learning_rate, make_optimiser
from openbook_trainer.sft.blend import load_blend, read_examples
from openbook_trainer.sft.config import SftConfig
from openbook_trainer.sft.lora import adapter_pairs, inject
from openbook_trainer.sft.packing import Encoded, Packed, encode_example, pack
from openbook_trainer.sft.readers import Example

_FREE = {"out", "threads", "stop_at", "max_seconds", "checkpoint_every", "blend", "passages"}


def run_sft(config: SftConfig) -> dict[str, Any]:
    """Run, or go on with, the tuning; returns and prints the summary. Raises OpenbookError."""
    if config.threads:
        torch.set_num_threads(config.threads)
    run = _Run(config)
    try:
        summary = run.train()
    finally:
        if run.client:
            run.client.close()
    print(json.dumps(summary), flush=True)
    return summary


def packed_loss(model: RetroModel, packed: Packed) -> torch.Tensor:
    """Summed cross entropy (nats) of the answers' tokens; examples of a row do not see each other."""
    logits = model(packed.ids_BT, document_ids_BT=packed.documents_BT)
    counted = packed.labels_BT != IGNORED
    return F.cross_entropy(logits[counted].float(), packed.labels_BT[counted], reduction="sum")


class _Run:
    def __init__(self, config: SftConfig) -> None:
        self.config = config
        blend = load_blend(config.blend)
        self.weights = [each.weight for each in blend.datasets]
        self.sets = read_examples(blend)
        retrieved = any(each.passages is None for rows in self.sets for each in rows)
        folder = resolve_folder(config.model)
        self.tokenizer = Tokenizer.load(folder)
        self.format = ChatFormat(self.tokenizer)
        self.model = load(folder, torch.float32)
        if cross_attention_state(self.model) == "on":
            raise ConfigError(
                "task sft puts passages into the prompt and gives the cross attention no neighbours; this model's "
                "gates are not 0, so tune a model whose gates are 0",
                field="model",
            )
        self.client, self.snapshot = None, ""
        if retrieved and config.passages:
            self.client = RetrieverClient(config.passages.address)
            live = self.client.describe(config.passages.database).live_snapshot
            self.snapshot = config.passages.snapshot or live
        torch.manual_seed(config.seed)
        if config.lora:
            inject(self.model, config.lora)
        self.model.train()
        self.trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self.optimiser = make_optimiser(self.model, config.optimiser)
        self.settings = config.model_dump(mode="json", exclude=_FREE)
        digest = sha256(repr((self.weights, self.sets)).encode()).hexdigest()
        self.settings |= {"examples_digest": digest, "snapshot": self.snapshot, "k": self._k()}

    def train(self) -> dict[str, Any]:
        config = self.config
        step = self._resume()
        end = min(config.steps, config.stop_at or config.steps)
        metrics = Metrics(config.out / "metrics.jsonl", first=True, resumed_at=step)
        begun, tokens, stopped_by = time.perf_counter(), 0, "steps" if end == config.steps else "stop_at"
        while step < end:
            record = self._step(step)
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
        return {
            "steps": step,
            "stopped_by": stopped_by,
            "tokens": tokens,
            "seconds": round(seconds, 1),
            "snapshot": self.snapshot,
            "parameters": sum(each.numel() for each in self.trained.values()),
            "written": str(self._export()),
        }

    def _k(self) -> int:
        return self.config.passages.k if self.config.passages else 0

    def _draw(self, step: int) -> list[Example]:
        """The examples of a step depend on the seed and the step alone."""
        draw = np.random.default_rng([self.config.seed, step])
        numbers = draw.choice(len(self.sets), size=self.config.examples, p=np.array(self.weights) / sum(self.weights))
        return [self.sets[number][int(draw.integers(len(self.sets[number])))] for number in numbers]

    def _encode(self, step: int) -> list[Encoded]:
        config, examples = self.config, self._draw(step)
        shown = [list(each.passages or ()) for each in examples]
        asked = [place for place, each in enumerate(examples) if each.passages is None]
        if self.client and config.passages and asked:
            questions = [examples[place].question for place in asked]
            settings = config.passages
            _, found = find_passages(
                self.client,
                settings.database,
                questions,
                settings.k,
                snapshot=self.snapshot,
                timeout_s=settings.deadline_s,
            )
            for place, passages in zip(asked, found, strict=True):
                extracts = choose_shown(examples[place].question, passages, config.prompt)
                shown[place] = [each.text for each in extracts]
        return [
            encode_example(self.format, self.tokenizer, example, texts, config.prompt, config.row_tokens)
            for example, texts in zip(examples, shown, strict=True)
            if not (config.only_answerable and texts) or _answers(example, texts)
        ]

    def _step(self, step: int) -> dict[str, Any]:
        begun = time.perf_counter()
        encoded = self._encode(step)
        waited = time.perf_counter() - begun
        rate = learning_rate(self.config.optimiser, step, self.config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        record = {"loss": 0.0, "learning_rate": rate, "examples": len(encoded), "tokens": 0}
        if encoded:
            packed = pack(encoded, self.config.row_tokens)
            answers = int((packed.labels_BT != IGNORED).sum())
            self.optimiser.zero_grad(set_to_none=True)
            for row in range(packed.ids_BT.shape[0]):
                part = Packed(*(each[row : row + 1] for each in (packed.ids_BT, packed.labels_BT, packed.documents_BT)))
                with torch.autocast("cpu", torch.bfloat16, enabled=self.config.autocast):
                    loss = packed_loss(self.model, part) / answers
                torch.autograd.backward(loss)
                record["loss"] += float(loss.detach())
            norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.optimiser.clip_norm))
            if not (record["loss"] < float("inf") and norm < float("inf")):
                raise OpenbookError(
                    f"step {step + 1}: the loss is {record['loss']}, the gradient's norm {norm}; lower "
                    "optimiser.learning_rate and resume from the last checkpoint",
                    field="optimiser.learning_rate",
                )
            self.optimiser.step()
            record |= {"gradient_norm": norm, "tokens": sum(len(each.ids) for each in encoded)}
        return record | {"seconds": round(time.perf_counter() - begun, 3), "retrieval_seconds": round(waited, 3)}

    def _checkpoint(self) -> Path:
        return self.config.out / "checkpoint.pt"

    def _save(self, step: int) -> None:
        """One file beside its place, then renamed: what was trained, the optimiser's moments, the step, the settings."""
        path = self._checkpoint()
        draft = path.with_suffix(".draft")
        weights = {name: each.detach() for name, each in self.trained.items()}
        state = {"step": step, "settings": json.dumps(self.settings), "weights": weights}
        torch.save(state | {"optimiser": self.optimiser.state_dict()}, draft)
        os.replace(draft, path)

    def _resume(self) -> int:
        self.config.out.mkdir(parents=True, exist_ok=True)
        if not self._checkpoint().is_file():
            return 0
        state = torch.load(self._checkpoint(), weights_only=True)
        then = json.loads(state["settings"])
        changed = [name for name in self.settings if self.settings[name] != then.get(name)]
        if changed:
            listing = "; ".join(f"{name}: now {self.settings[name]!r}, then {then.get(name)!r}" for name in changed)
            raise ConfigError(
                f"{self._checkpoint()} was made with other settings: {listing}. Set them back, or give another `out`",
                field=changed[0],
            )
        with torch.no_grad():
            for name, each in self.trained.items():
                each.copy_(state["weights"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])

    def _export(self) -> Path:
        config = self.config
        if config.lora:
            folder = config.out / "adapter"
            prompt = config.prompt.model_dump(mode="json")
            pairs = adapter_pairs(self.model)
            save_adapter(folder, pairs, config.lora.rank, config.lora.alpha, config.model, prompt)
            return folder
        folder = config.out / "tokenizer"
        self.tokenizer.save(folder)
        save(self.model, config.out / "model", folder)
        return config.out / "model"


def _answers(example: Example, texts: list[str]) -> bool:
    joined = " ".join(texts).lower()
    return any(each.lower() in joined for each in (example.answer, *example.aliases))
