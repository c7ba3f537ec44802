"""Decoding of one model OFF and ON, in-process.

Axes: N sequences, T tokens of a prompt, L chunks, K neighbours, R tokens of a neighbour, V vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openbook_core.clients import RetrieverClient
from openbook_core.errors import OpenbookError
from openbook_generator.config import GeneratorConfig
from openbook_generator.models import load_model
from openbook_generator.retrieval import Retriever
from openbook_model import DecodeCache, Neighbors
from openbook_prompt.passage import Pin


def material(
    client: RetrieverClient,
    database: str,
    queries_ND: NDArray[np.float32],
    sequences: int,
    prompt_chunks: int,
    num_neighbors: int,
    neighbor_length: int,
) -> tuple[NDArray[np.int64], list[Neighbors]]:
    """Prompts int64 [N, T] of whole chunks of the book, and for each the neighbours of its chunks and of one more."""
    found = client.search(database, queries_ND, 1, tokens=True, text=True)
    table = found.chunks
    assert table.tokens is not None
    assert table.lengths is not None
    whole = np.flatnonzero((table.lengths == table.chunk_length).all(axis=1))
    if not len(whole):
        raise OpenbookError("the snapshot holds no passage that fills two chunks; take more documents")
    rows = np.resize(whole, sequences * prompt_chunks)
    prompts_NT = table.tokens[rows, : table.chunk_length].reshape(sequences, -1).astype(np.int64)
    retriever, pin = Retriever(client, timeout_s=30), Pin(database, found.snapshot, found.epoch)
    texts = [[table.texts[row] for row in own] for own in rows.reshape(sequences, prompt_chunks).tolist()]
    asked = [[*own, own[-1]] for own in texts]
    return prompts_NT, [retriever.neighbors(pin, own, num_neighbors, neighbor_length) for own in asked]


@dataclass(frozen=True)
class Decoded:
    """`tokens_per_s` is over the steps alone, summed over the sequences; ON, the last step takes neighbours."""

    tokens: int
    prefill_s: float
    step_s: float
    tokens_per_s: float


class Decoder:
    """The converted model, once with its gates at 0 (OFF) and once with all of them at `gate` (ON)."""

    def __init__(self, model: str, prompts_NT: NDArray[np.int64], neighbors: list[Neighbors], *, gate: float) -> None:
        """`neighbors`: of each prompt's chunks and of the chunk that is generated after it."""
        self._model, _ = load_model(GeneratorConfig(model=model))
        self._prompts, self._neighbors = list(torch.from_numpy(prompts_NT)), neighbors
        config = self._model.config
        self.cross_layers, self.neighbor_length = config.cross_attention_layers, config.neighbor_length
        self.dtype = str(self._model.embedding.weight.dtype).removeprefix("torch.")
        self._steps = config.chunk_length
        num_neighbors = int(neighbors[0].ids_LKR.shape[1])

        def cache() -> DecodeCache:
            length = prompts_NT.shape[1] + self._steps
            return self._model.new_cache(len(prompts_NT), length, num_neighbors=num_neighbors)

        self._caches = {False: cache()}
        for name, parameter in self._model.named_parameters():
            if name.endswith(".gate"):
                parameter.data.fill_(gate)
        self._caches[True] = cache()
        if self._caches[False].cross_attention or not self._caches[True].cross_attention:
            raise OpenbookError(f"{model} has trained gates or none; give a decoder whose RETRO parts are new")

    def round(self, batch: int) -> dict[str, Decoded]:
        """ "off" and "on": `batch` sequences are started and one whole chunk is generated for each, the likeliest token
        at a time.

        The two take turns after every step, so that other work on the machine disturbs them alike.
        """
        slots = list(range(batch))
        prefill_s, step_s = {False: 0.0, True: 0.0}, {False: 0.0, True: 0.0}
        logits: dict[bool, Tensor] = {}
        for on in (False, True):
            start = time.perf_counter()
            logits[on] = self._prefill(batch, on)
            prefill_s[on] = time.perf_counter() - start
        for number in range(self._steps):
            for on in (False, True) if number % 2 else (True, False):
                cache = self._caches[on]
                start = time.perf_counter()
                due = [self._due(cache, slot) for slot in slots] if on else None
                logits[on] = self._model.step(cache, slots, logits[on].argmax(dim=-1), due)
                step_s[on] += time.perf_counter() - start
        for cache in self._caches.values():
            for slot in slots:
                cache.release(slot)
        tokens = batch * self._steps
        return {
            name: Decoded(tokens, prefill_s[on], step_s[on], tokens / step_s[on])
            for name, on in (("off", False), ("on", True))
        }

    def on_off_difference(self) -> float:
        """Largest difference of the logits after a prompt; 0 would mean that ON did not read its neighbours."""
        logits = {on: self._prefill(1, on).float() for on in (False, True)}
        for cache in self._caches.values():
            cache.release(0)
        apart = float((logits[False] - logits[True]).abs().max())
        if not apart > 0:
            raise OpenbookError("the neighbours change nothing with open gates: ON was not measured")
        return apart

    def _prefill(self, batch: int, on: bool) -> Tensor:
        slots, prompts = list(range(batch)), self._prompts[:batch]
        found = [_rows(part, slice(0, -1)) for part in self._neighbors[:batch]] if on else None
        return self._model.prefill(self._caches[on], slots, prompts, found)

    def _due(self, cache: DecodeCache, slot: int) -> Neighbors | None:
        return _rows(self._neighbors[slot], slice(-1, None)) if cache.completes_chunk(slot) else None


def _rows(found: Neighbors, rows: slice) -> Neighbors:
    assert found.lengths_LK is not None
    return Neighbors(found.ids_LKR[rows], found.lengths_LK[rows])
