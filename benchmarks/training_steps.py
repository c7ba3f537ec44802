"""Training steps as `openbook train` takes them, on batches of random tokens: what the benchmark's own sides are made of.

Axes: B sequences, T tokens, L chunks, K neighbours, R tokens of a neighbour.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openbook_model import RetroConfig, RetroModel, initialise
from openbook_model.accounting import training_flops
from openbook_trainer.compute import prepare_blocks
from openbook_trainer.config import ComputeConfig, OptimiserConfig
from openbook_trainer.data import IGNORED, Batch
from openbook_trainer.distributed import World, be_deterministic, process_group, shard
from openbook_trainer.evaluation import summed_loss
from openbook_trainer.neighbours import Neighbors
from openbook_trainer.optimiser import begin_step, make_optimisers

Work = tuple[Batch, Neighbors]
RATE = 3e-4
_WITHOUT, _SHORT = 0.1, 0.125  # shares of chunks without neighbours, of neighbours at the end of a document
_PEER_HEADS, _PEER_ROTARY = 8, 32


def twin_of(config: RetroConfig) -> RetroConfig:
    """The GPT of the same decoder."""
    return config.model_copy(update={"cross_attention_layers": ()})


def equal_to_peer(config: RetroConfig) -> RetroConfig:
    """The same decoder and an encoder as wide in retro-pytorch's shapes: 8 heads whatever it is asked for, GELU four times
    as wide with biases, an output layer of its own, rotary positions on 32 channels of a head."""
    heads = {"num_heads": _PEER_HEADS, "head_dim": config.hidden_size // _PEER_HEADS}
    encoder = {"hidden_size": config.hidden_size, **heads, "num_layers": config.encoder.num_layers, "conditioned": True}
    return RetroConfig.parse(
        {
            **{name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_layers", "max_positions")},
            **heads,
            "norm": "rmsnorm",
            "rotary_fraction": (_PEER_ROTARY + 0.5) / heads["head_dim"] if heads["head_dim"] > _PEER_ROTARY else 1.0,
            "mlp": "gelu",
            "output_bias": True,
            "mlp_bias": True,
            "tied_embeddings": False,
            "num_neighbors": config.num_neighbors,
            "cross_attention_layers": config.cross_attention_layers,
            "encoder": encoder,
        }
    )


def random_work(config: RetroConfig, sequences: int, chunks: int, seed: int) -> Work:
    """Sequences of whole chunks; token 0 is padding alone. A tenth of the chunks has no neighbours, as in training, and one
    neighbour in eight ends early."""
    random = np.random.default_rng(seed)
    tokens_BT = random.integers(1, config.vocab_size, (sequences, chunks * config.chunk_length + 1))
    shape = (sequences, chunks, config.num_neighbors)
    ids_BLKR = random.integers(1, config.vocab_size, (*shape, config.neighbor_length))
    lengths_BLK = np.full(shape, config.neighbor_length)
    short_BLK = random.random(shape) < _SHORT
    lengths_BLK[short_BLK] = random.integers(1, config.neighbor_length, int(short_BLK.sum()))
    lengths_BLK[random.random(shape[:2]) < _WITHOUT] = 0
    ids_BLKR[np.arange(config.neighbor_length) >= lengths_BLK[..., None]] = 0
    phases = (config.chunk_length,) * sequences
    batch = Batch(np.ascontiguousarray(tokens_BT[:, :-1]), np.ascontiguousarray(tokens_BT[:, 1:]), None, phases, ())
    return batch, Neighbors(ids_BLKR, lengths_BLK)


def save_work(work: Work, path: Path) -> None:
    """As .npz, which needs nothing of ours to be read."""
    batch, neighbors = work
    np.savez(
        path,
        input_ids=batch.input_ids_BT,
        labels=batch.labels_BT,
        phases=np.asarray(batch.first_chunk),
        neighbor_ids=neighbors.ids_BLKR,
        neighbor_lengths=neighbors.lengths_BLK,
    )


def load_work(path: Path) -> Work:
    """What `save_work` wrote."""
    with np.load(path) as file:
        batch = Batch(file["input_ids"], file["labels"], None, tuple(file["phases"].tolist()), ())
        return batch, Neighbors(file["neighbor_ids"], file["neighbor_lengths"])


class Steps:
    """A model in training; parameters are float32, blocks compute in `dtype`."""

    def __init__(self, config: RetroConfig, world: World, *, dtype: str = "float32", compiled: bool = False) -> None:
        self.config, self._world = config, world
        model = RetroModel.allocate(config)
        initialise(model, 0)
        self.model = model.to(world.device).train()
        prepare_blocks(self.model, ComputeConfig.parse({"dtype": dtype, "compile": compiled}))
        shard(self.model, world, getattr(torch, dtype))
        self._optimisers = make_optimisers(self.model, OptimiserConfig())

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def flops(self, work: Work) -> int:
        """Model FLOPs of a step."""
        batch, neighbors = work
        sequences, tokens = batch.input_ids_BT.shape
        read = dict(zip(("neighbors", "neighbor_length"), neighbors.ids_BLKR.shape[2:], strict=True))
        return sequences * training_flops(self.config, tokens, **read)

    def step(self, work: Work) -> float:
        """Forward, backward, clipping and update; its seconds."""
        batch, neighbors = work
        start = time.perf_counter()
        begin_step(self._optimisers, RATE)
        labels = int((batch.labels_BT != IGNORED).sum())
        loss = summed_loss(self.model, batch, neighbors, self._world.device)
        torch.autograd.backward(loss * (self._world.size / labels))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
        if not torch.isfinite(loss.detach()):  # waits for a GPU
            raise FloatingPointError("the loss is not finite")
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return time.perf_counter() - start


@contextmanager
def as_trained(device: str) -> Iterator[World]:
    """A world of this process alone, with the determinism that `openbook train` asks for on a CPU."""
    with process_group(device) as world:
        before = torch.are_deterministic_algorithms_enabled()
        if world.device.type == "cpu":
            be_deterministic()
        try:
            yield world
        finally:
            torch.use_deterministic_algorithms(before)


def peer_arguments(config: RetroConfig) -> Mapping[str, Any]:
    """retro-pytorch's arguments for the shapes of `equal_to_peer`."""
    return {
        "num_tokens": config.vocab_size,
        "max_seq_len": config.max_positions,
        "enc_dim": config.encoder.hidden_size,
        "enc_depth": config.encoder.num_layers,
        "enc_cross_attn_layers": list(config.encoder.cross_attention_layers),
        "dec_dim": config.hidden_size,
        "dec_depth": config.num_layers,
        "dec_cross_attn_layers": list(config.cross_attention_layers),
        "dim_head": config.head_dim,
        "chunk_size": config.chunk_length,
    }
