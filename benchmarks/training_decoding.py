"""Cached decoding of a RETRO and its GPT twin, a token of each in turns; random weights, the likeliest token each time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training_steps import twin_of

from openbook_model import DecodeCache, Neighbors, RetroConfig, RetroModel, initialise


class Decoder:
    """Both models, float32; each chunk that is completed reads `num_neighbors` whole neighbours."""

    def __init__(self, config: RetroConfig, *, with_twin: bool = True) -> None:
        self.config = config
        configs = {"retro": config, "twin": twin_of(config)}
        self._models = {name: _model(configs[name]) for name in configs if with_twin or name == "retro"}

    def round(self, sequences: int, prompt: int, tokens: int) -> dict[str, dict[str, Any]]:
        """By model: seconds of reading prompts of `prompt` tokens, and of the steps for `tokens` more of each sequence."""
        caches = {name: model.new_cache(sequences, prompt + tokens) for name, model in self._models.items()}
        ids_NT = torch.from_numpy(np.random.default_rng(0).integers(1, self.config.vocab_size, (sequences, prompt)))
        logits: dict[str, Tensor] = {}
        prefill_s, step_s = {}, dict.fromkeys(self._models, 0.0)
        for name, model in self._models.items():
            start = time.perf_counter()
            chunks = -(-prompt // self.config.chunk_length)
            found = [self._found(name, chunks)] * sequences
            logits[name] = model.prefill(caches[name], list(range(sequences)), list(ids_NT), found)
            prefill_s[name] = time.perf_counter() - start
        for number in range(tokens):
            for name in self._order(number):
                start = time.perf_counter()
                logits[name] = self._step(name, caches[name], logits[name])
                step_s[name] += time.perf_counter() - start
        return {name: {"prefill_s": prefill_s[name], "step_s": step_s[name]} for name in self._models}

    def _order(self, number: int) -> Iterator[str]:
        names = list(self._models)
        return iter(names if number % 2 else names[::-1])

    def _step(self, name: str, cache: DecodeCache, logits_NV: Tensor) -> Tensor:
        slots = range(cache.slots)
        due: Sequence[Neighbors | None] = [
            self._found(name, 1) if name == "retro" and cache.completes_chunk(slot) else None for slot in slots
        ]
        return self._models[name].step(cache, list(slots), logits_NV.argmax(dim=-1), due)

    def _found(self, name: str, chunks: int) -> Neighbors | None:
        if name != "retro":
            return None
        config = self.config
        shape = (chunks, config.num_neighbors, config.neighbor_length)
        return Neighbors(torch.from_numpy(np.random.default_rng(chunks).integers(1, config.vocab_size, shape)))


def _model(config: RetroConfig) -> RetroModel:
    model = RetroModel.allocate(config)
    initialise(model, 0)
    return model.eval()
