"""Greedy answers in batches through the slot cache, each prompt with a chunk grid of its own as in serving.

Axes: N sequences, V vocabulary, L chunks, K neighbours, R tokens of a neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openbook_core.tokenizer import Tokenizer
from openbook_model import Neighbors, RetroModel
from openbook_model.chunks import chunks_due, default_first_chunk
from openbook_prompt.chat import stop_ids
from openbook_trainer.finder import FindNeighbors


@dataclass
class _Sequence:
    """Prompt and reply of one slot; `fed` tokens are in the cache."""

    slot: int
    prompt: list[int]
    phase: int
    reply: list[int] = field(default_factory=list)
    fed: int = 0


class Decoder:
    """Owns the cache; without `find` the cross attention is off."""

    def __init__(
        self,
        model: RetroModel,
        tokenizer: Tokenizer,
        *,
        batch: int,
        max_context: int,
        find: FindNeighbors | None = None,
    ) -> None:
        self._model, self._tokenizer, self._find = model, tokenizer, find
        self._cache = model.new_cache(batch, max_context, num_neighbors=model.config.num_neighbors)
        self._stops = stop_ids(tokenizer)

    def answers(self, prompts: Sequence[list[int]], max_tokens: int) -> list[str]:
        """The reply to each prompt, at most `batch` of them; it ends at an end marker or after `max_tokens` tokens."""
        m = self._cache.chunk_length
        running = [_Sequence(slot, prompt, default_first_chunk(len(prompt), m)) for slot, prompt in enumerate(prompts)]
        everything = list(running)
        logits_NV = self._model.prefill(
            self._cache,
            [each.slot for each in running],
            [torch.tensor(each.prompt) for each in running],
            self._neighbors(running, [len(each.prompt) for each in running]),
            [each.phase for each in running],
        )
        while True:
            running = self._take(running, logits_NV, max_tokens)
            if not running:
                break
            tokens_N = torch.tensor([each.reply[-1] for each in running])
            found = self._neighbors(running, [1] * len(running))
            logits_NV = self._model.step(self._cache, [each.slot for each in running], tokens_N, found)
        return [self._tokenizer.decode(each.reply, skip_special=True).strip() for each in everything]

    def _take(self, running: list[_Sequence], logits_NV: Tensor, max_tokens: int) -> list[_Sequence]:
        left = []
        for each, token in zip(running, logits_NV.argmax(-1).tolist(), strict=True):
            each.fed = len(each.prompt) + len(each.reply)
            if token not in self._stops:
                each.reply.append(token)
            if token in self._stops or len(each.reply) >= max_tokens or self._cache.room(each.slot) < 1:
                self._cache.release(each.slot)
            else:
                left.append(each)
        return left

    def _neighbors(self, running: Sequence[_Sequence], counts: Sequence[int]) -> list[Neighbors | None] | None:
        if self._find is None:
            return None
        chunks = [
            chunks_due((each.prompt + each.reply)[: each.fed + count], each.fed, each.phase, self._cache.chunk_length)
            for each, count in zip(running, counts, strict=True)
        ]
        texts = [self._tokenizer.decode(chunk, skip_special=True) for own in chunks for chunk in own]
        if not texts:
            return None
        found, start = self._find(texts), 0
        rows: list[Neighbors | None] = []
        for own in chunks:
            end = start + len(own)
            assert found.lengths_LK is not None
            rows.append(Neighbors(found.ids_LKR[start:end], found.lengths_LK[start:end]) if own else None)
            start = end
        return rows
