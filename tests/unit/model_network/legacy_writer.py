"""Writes checkpoints in the layout of NVIDIA's release: the cut by tensor-parallel rank is its own, not the importer's.

Rules: tests/golden/README.md. The classes are looked up by name when pickled, so stand-ins are put where Megatron has its own.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ARGS: dict[str, Any] = {
    "num_layers": 12,
    "hidden_size": 32,
    "ffn_hidden_size": 128,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "max_position_embeddings": 64,
    "padded_vocab_size": 96,
    "norm_epsilon": 1e-5,
    "apply_layernorm_1p": True,
    "position_embedding_type": "rope",
    "rotary_percent": 0.5,
    "swiglu": True,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "retro_add_retriever": True,
    "retro_num_neighbors": 2,
    "retro_num_retrieved_chunks": 2,
    "retro_encoder_layers": 2,
    "retro_attention_gate": 1.0,
    "params_dtype": torch.float32,
}


class ModelType:
    """Pickled under the name of Megatron's enumeration, by a call with its value."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (1,)

    def __init__(self, value: int = 1) -> None:
        self.value = value


def part_of(name: str, tensor: Tensor, rank: int, size: int, *, swiglu: bool = True) -> Tensor:
    """What a rank holds of a parameter."""
    if "word_embeddings" in name or "output_layer" in name:
        vocabulary = len(tensor) // size
        return tensor[rank * vocabulary : (rank + 1) * vocabulary]
    if any(word in name for word in ("query_key_value", "inter_attention.query", "inter_attention.key_value")):
        rows = len(tensor) // size
        return tensor[rows * rank : rows * rank + rows]
    if "dense_h_to_4h" in name:
        halves = [tensor[: len(tensor) // 2], tensor[len(tensor) // 2 :]] if swiglu else [tensor]
        rows = len(halves[0]) // size
        return torch.cat([half[rows * rank : rows * rank + rows] for half in halves])
    if name.endswith((".dense.weight", "dense_4h_to_h.weight")):
        columns = tensor.shape[1] // size
        return tensor[:, columns * rank : columns * (rank + 1)]
    return tensor


def write_checkpoint(
    folder: Path, tensors: dict[str, Tensor], size: int, args: dict[str, Any] | None = None, **extra: Any
) -> Path:
    """The folder, with `latest_checkpointed_iteration.txt` and one file per rank; `extra` goes into every file."""
    options = {**ARGS, "tensor_model_parallel_size": size, **(args or {})}
    folder.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    for rank in range(size):
        language_model: dict[str, Any] = {"embedding": {}, "encoder": {}, "output_layer": {}}
        for full, tensor in tensors.items():
            name = full.removeprefix("language_model.")
            cut = part_of(full, tensor, rank, size, swiglu=options["swiglu"]).clone()
            group, _, rest = name.partition(".")
            if group == "embedding":
                stem, _, kind = rest.partition(".")
                language_model["embedding"].setdefault(stem, {})[kind] = cut
                continue
            language_model[group][rest] = cut
            if rest.endswith(("query.weight", "dense.weight")):
                language_model[group][rest.replace("weight", "_extra_state")] = None
        record = {"args": argparse.Namespace(**options, rank=rank, model_type=ModelType()), "checkpoint_version": 3.0}
        record |= {"iteration": 0, "model": {"language_model": language_model}, **extra}
        save_rank(folder, rank, record)
    return folder


def save_rank(folder: Path, rank: int, record: dict[str, Any]) -> None:
    path = rank_file(folder, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _megatron_installed():
        torch.save(record, path)


def load_rank(folder: Path, rank: int) -> dict[str, Any]:
    """For a test that spoils a file: everything in it, trusted."""
    with _megatron_installed():
        return dict(torch.load(rank_file(folder, rank), weights_only=False))


@contextmanager
def _megatron_installed() -> Iterator[None]:
    names = ("megatron", "megatron.core", "megatron.core.enums")
    modules = {name: types.ModuleType(name) for name in names}
    modules["megatron.core.enums"].ModelType = ModelType  # type: ignore[attr-defined]
    home = ModelType.__module__
    ModelType.__module__ = names[-1]
    sys.modules.update(modules)
    try:
        yield
    finally:
        ModelType.__module__ = home
        for name in names:
            del sys.modules[name]


def rank_file(folder: Path, rank: int) -> Path:
    return folder / "release" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
